"""Frames on their way into a model."""

import torch

from tests.calling_threads import needs_linux, threads_started
from wanvae.frames import pad_to_multiple, stack_images


def test_padding_repeats_edges_and_copies_only_what_it_pads() -> None:
    video = torch.rand(1, 3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    padded = pad_to_multiple(video, 4)
    assert padded.shape == (1, 3, 2, 8, 8)
    assert torch.equal(padded[..., :5, :], video)
    assert torch.equal(padded[..., 5:, :], video[..., 4:, :].expand(-1, -1, -1, 3, -1))
    assert pad_to_multiple(padded, 4) is padded


@needs_linux
def test_frames_are_stacked_in_the_thread_that_calls() -> None:
    clip = torch.rand(3, 4, 200, 600, generator=torch.Generator().manual_seed(0))
    images = clip.unbind(1)
    assert torch.equal(stack_images(images), clip)
    assert threads_started(lambda: stack_images(images)) == 0
    assert threads_started(lambda: clip + clip) == 1  # the helper notices threads
