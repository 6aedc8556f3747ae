"""Pieces become one tensor, on their own device or another one."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import tiny
from wanvae.execution import joining
from wanvae.execution.joining import RoadToHost, join

lengths_of_pieces = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def numbered(frames: int, batch: int = 2) -> torch.Tensor:
    return torch.arange(float(batch * 3 * frames * 4)).view(batch, 3, frames, 2, 2)


@given(lengths=lengths_of_pieces, channels_last=st.booleans())
def test_pieces_are_joined(lengths, channels_last):
    video = numbered(sum(lengths))
    if channels_last:
        video = video.contiguous(memory_format=torch.channels_last_3d)
    joined = join(iter(video.split(lengths, dim=2)), sum(lengths))
    assert torch.equal(joined, video)
    assert joined.is_contiguous()


def test_no_pieces_are_nothing():
    assert join([], 0) is None


def test_pieces_are_taken_to_their_end():
    ended = []

    def pieces():
        yield numbered(3)
        ended.append(True)

    assert torch.equal(join(pieces(), 3), numbered(3))
    assert ended


@pytest.mark.parametrize("lengths", [(3,), (1, 2)], ids=str)
def test_the_result_is_on_the_device_that_is_asked_for(lengths):
    pieces = numbered(3).split(lengths, dim=2)
    joined = join(pieces, 3, torch.device("meta"))
    assert joined.is_meta and joined.shape == numbered(3).shape


def test_a_video_is_decoded_to_another_device():
    vae = tiny()
    latents = torch.randn(1, 2, 3, 2, 2).double()
    video = vae.decode(latents)
    assert torch.equal(vae.decode(latents, output_device="cpu"), video)
    elsewhere = vae.decode(latents, output_device="meta")
    assert elsewhere.is_meta and elsewhere.shape == video.shape


def test_memory_that_a_gpu_can_write_to_is_not_needed(monkeypatch):
    """Systems limit it."""
    asked = []

    def empty(shape, *, dtype, pin_memory=False):
        asked.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return torch.empty(shape, dtype=dtype)

    monkeypatch.setattr(joining, "torch", SimpleNamespace(empty=empty))
    assert joining.allocate_on_host((2, 3), torch.float16).shape == (2, 3)
    assert asked == [True, False]


class Stream:
    """A stream of a GPU that does nothing before it has waited for what it reads."""

    def __init__(self, device: object = None) -> None:
        self.waited_for: list[object] = []
        self.waited = False

    def wait_stream(self, other: object) -> None:
        self.waited_for.append(other)

    def synchronize(self) -> None:
        self.waited = True


def test_the_road_to_the_host_copies_blocks_beside_the_gpu(monkeypatch):
    used, computing, copied = [], Stream(), []

    @contextmanager
    def using(stream):
        assert stream.waited_for[-1] is computing
        used.append(stream)
        yield

    copy = torch.Tensor.copy_

    def copy_block(target, source, non_blocking=False):
        assert target.is_contiguous() and source.is_contiguous() and non_blocking
        copied.append(target.shape)
        return copy(target, source)

    cuda = SimpleNamespace(Stream=Stream, stream=using, current_stream=lambda device: computing)
    monkeypatch.setattr(joining, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(torch.Tensor, "copy_", copy_block)
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: kept.append(stream))
    video = numbered(5)
    whole = torch.full_like(video, torch.nan)
    road = RoadToHost(torch.device("cpu"))
    for start, stop in ((0, 1), (1, 5)):
        piece = video[:, :, start:stop].contiguous(memory_format=torch.channels_last_3d)
        road.send(piece, whole[:, :, start:stop])
    road.wait()
    assert torch.equal(whole, video)
    assert copied == [(1, 2, 2)] * 6 + [(4, 2, 2)] * 6
    assert len({*used, *kept}) == 1 and used[0].waited
