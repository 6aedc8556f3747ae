"""Convolutions by frames: PyTorch's numbers and gradients, from contiguous tensors alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import WAN22, random_video, tiny
from wanvae.nn.kernels.by_frames import convolve_by_frames, convolve_doubled_contiguously
from wanvae.nn.kernels.convolution import CONVOLUTIONS, convolve_by_pytorch
from wanvae.nn.kernels.dispatch import TABLE, Observer
from wanvae.nn.kernels.doubled import convolve_doubled_by_pytorch


class Convolutions(TorchDispatchMode):
    """Checks inside ``with`` that convolutions read contiguous tensors, none of them 3D.

    Attributes:
        count: how many there were.
    """

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert "pad" not in function.overloadpacket.__name__
        if function.overloadpacket.__name__ == "convolution":
            self.count += 1
            assert args[0].is_contiguous() and args[1].is_contiguous()
            assert args[0].dim() == 4
        return function(*args, **(kwargs or {}))


def channels_innermost(shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@given(
    batch=st.integers(1, 2),
    frames=st.integers(5, 7),
    taps=st.integers(1, 3),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    with_bias=st.booleans(),
)
def test_three_axes(
    batch: int,
    frames: int,
    taps: int,
    stride: tuple[int, int],
    padding: int,
    dilation: int,
    with_bias: bool,
) -> None:
    x = channels_innermost((batch, 2, frames, 5, 4))
    weight = channels_innermost((3, 2, 3, 3, 3))[:, :, -taps:]
    bias = torch.randn(3).double() if with_bias else None
    geometry = (stride[0], stride[1], stride[1]), (padding, 1, 1), (dilation, 1, 1)
    with Convolutions() as convolutions:
        found = convolve_by_frames(x, weight, bias, *geometry)
    torch.testing.assert_close(found, convolve_by_pytorch(x, weight, bias, *geometry))
    assert convolutions.count == taps


@pytest.mark.parametrize("axes", [1, 2])
def test_fewer_axes(axes: int) -> None:
    x, weight = channels_innermost((2, 2, *[5] * axes)), channels_innermost((3, 2, *[3] * axes))
    geometry = [1] * axes, [1] * axes, [1] * axes
    found = convolve_by_frames(x, weight, None, *geometry)
    torch.testing.assert_close(found, CONVOLUTIONS[axes + 2](x, weight, None, *geometry))


def test_gradients() -> None:
    x, weight = channels_innermost((1, 2, 4, 3, 3)), channels_innermost((2, 2, 2, 3, 3))
    geometry = (1, 1, 1), (0, 1, 1), (1, 1, 1)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return convolve_by_frames(x, weight, None, *geometry)

    assert torch.autograd.gradcheck(convolve, (x.requires_grad_(), weight.requires_grad_()))


def test_doubled_images() -> None:
    x, weight = channels_innermost((2, 2, 3, 4)), channels_innermost((3, 2, 3, 3))
    bias = torch.randn(3).double()
    with Convolutions():
        found = convolve_doubled_contiguously(x, weight, bias)
    torch.testing.assert_close(found, convolve_doubled_by_pytorch(x, weight, bias))


@pytest.mark.parametrize("observer", Observer)
@pytest.mark.parametrize("variant", [{}, WAN22], ids=["Wan2.1", "Wan2.2"])
def test_models_on_apple_gpus_pad_nothing_and_convolve_contiguous_images(
    observer: Observer, variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of Apple's GPUs, on a CPU."""
    vae, video = tiny(**variant), random_video(9)
    with torch.no_grad():
        expected = vae(video)
    for row in TABLE.values():
        monkeypatch.setitem(row, "cpu", TABLE[observer]["mps"])
    with torch.no_grad(), Convolutions() as convolutions:
        found = vae(video)
        streamed = vae.decode(vae.encode(video).mode())
    torch.testing.assert_close(found.video, expected.video)
    torch.testing.assert_close(streamed, expected.video.clamp(-1, 1))
    assert convolutions.count
