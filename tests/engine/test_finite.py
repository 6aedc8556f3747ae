"""What is not finite is told by name, for one pass over the result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import random_video, tiny
from wanvae.engine import finite
from wanvae.engine.finite import NotFiniteError, check_weights, is_finite
from wanvae.errors import UserError
from wanvae.execution.meter import MemoryMeter

NAN, INF = float("nan"), float("inf")


@given(
    values=st.lists(st.floats(width=16), min_size=1, max_size=9),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_every_value_counts(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(values, dtype=dtype)
    assert is_finite(x) == bool(x.isfinite().all())


def test_values_whose_sum_overflows_are_finite() -> None:
    assert is_finite(torch.full((8,), 3e38))
    assert is_finite(torch.full((8,), 65504.0, dtype=torch.float16))


def test_infinities_do_not_cancel() -> None:
    assert not is_finite(torch.tensor([INF, -INF, 1.0]))


def test_values_of_a_gpu_that_was_not_started_can_be_looked_at() -> None:
    with FakeTensorMode():
        assert finite.can_look_at(torch.empty(1, device="cuda"))


def overflowing() -> torch.nn.Module:
    """A model whose activations overflow in float16, and in float32 do not."""
    vae = tiny().float()
    for layer in (vae.encoder.conv1, vae.decoder.conv1):
        for parameter in (layer.weight, layer.bias):
            parameter.data.mul_(1e4)
        layer.weight.data.mul_(1e2)
    return vae


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("tile_size", [None, 8])
def test_latents_that_are_not_finite_are_refused(value: float, tile_size: int | None) -> None:
    vae, latents = tiny(), torch.zeros(1, 2, 2, 2, 2, dtype=torch.float64)
    session = vae.stream_decode(tile_size=tile_size)
    session.push(latents)
    latents[0, 1, 1, 0, 1] = value
    for decode in (lambda: vae.decode(latents, tile_size=tile_size), lambda: session.push(latents)):
        with pytest.raises(NotFiniteError, match="the latents are not finite"):
            decode()
    # What is refused breaks nothing.
    session.push(latents[:, :, :1])


@pytest.mark.parametrize("value", [NAN, INF])
def test_latents_that_nobody_looked_at_show_in_the_result(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """As on a GPU, where a look at the latents would wait for what computes them."""
    vae, latents = tiny(), torch.zeros(1, 2, 2, 2, 2, dtype=torch.float64)
    latents[0, 1, 1, 0, 1] = value
    monkeypatch.setattr("wanvae.autoencoder.check_input", lambda *_: None)
    with pytest.raises(NotFiniteError, match="the latents are not finite"):
        vae.decode(latents)


def test_a_video_that_is_not_finite_is_refused() -> None:
    vae, video = tiny(), random_video(5)
    video[0, 1, 2, 3, 4] = NAN
    for encode in (vae.encode, vae.stream_encode().push):
        with pytest.raises(NotFiniteError, match="the video is not finite"):
            encode(video)


def test_a_model_that_overflows_names_the_dtype_that_would_do() -> None:
    video = random_video(5).float()
    latents = overflowing().encode(video).mode()
    vae = overflowing().half()
    session = vae.stream_encode()
    for encode in (vae.encode, session.push):
        with pytest.raises(NotFiniteError, match=r"in float16: encode in bfloat16.* or in float32"):
            encode(video)
    with pytest.raises(UserError, match="stream is broken"):
        session.push(video)
    with pytest.raises(NotFiniteError, match=r"in float16: decode in bfloat16.* or in float32"):
        vae.decode(torch.ones_like(latents))
    vae = overflowing().bfloat16()
    vae.decode(latents)
    vae.encoder.conv1.weight.data.fill_(NAN)
    with pytest.raises(NotFiniteError, match=r"encode in float32; if .* checkpoint is damaged"):
        vae.encode(video)


class Reads(TorchDispatchMode):
    """Counts the values that operations read inside ``with``."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.values += sum(x.numel() for x in args if isinstance(x, torch.Tensor))
        return function(*args, **(kwargs or {}))


def test_a_look_reads_every_value_once_and_takes_no_memory() -> None:
    x = torch.rand(1, 3, 9, 64, 64).half()
    with Reads() as reads:
        assert is_finite(x)
    assert reads.values < 1.001 * x.numel()
    with MemoryMeter([x]) as meter:
        assert is_finite(x)
    assert meter.peak < 100


def test_decoding_looks_at_its_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[int, ...]] = []
    look = finite.is_finite
    monkeypatch.setattr(finite, "is_finite", lambda x: looked.append(tuple(x.shape)) or look(x))
    latents = tiny().encode(random_video(9)).mean
    assert looked == [(1, 4, 3, 2, 2)]
    tiny().decode(latents, tile_size=8)
    assert looked[1:] == [(1, 2, 3, 2, 2), (1, 3, 9, 16, 16)]


def test_pixels_from_0_to_255_are_told() -> None:
    vae, video = tiny(), 255 * torch.rand(1, 3, 5, 16, 16, dtype=torch.float64)
    match = r"the video has values from .* to 25\d.*, but models take pixels in \[-1, 1\]: scale"
    with pytest.warns(UserWarning, match=match):
        vae.encode(video)
    with pytest.warns(UserWarning, match=match):
        vae.stream_encode().push(video)
    vae.encode(video / 127.5 - 1)


def test_damaged_weights_are_told_by_name() -> None:
    vae = tiny()
    check_weights(vae, "a.safetensors")
    vae.decoder.conv1.bias.data[1] = NAN
    with pytest.raises(NotFiniteError, match=r"^a\.safetensors holds .* in decoder\.conv1\.bias: "):
        check_weights(vae, "a.safetensors")
