"""Frames on their way into a model."""

import torch

from wanvae.frames import pad_to_multiple


def test_padding_repeats_edges_and_copies_only_what_it_pads() -> None:
    video = torch.rand(1, 3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    padded = pad_to_multiple(video, 4)
    assert padded.shape == (1, 3, 2, 8, 8)
    assert torch.equal(padded[..., :5, :], video)
    assert torch.equal(padded[..., 5:, :], video[..., 4:, :].expand(-1, -1, -1, 3, -1))
    assert pad_to_multiple(padded, 4) is padded
