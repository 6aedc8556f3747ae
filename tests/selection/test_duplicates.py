"""Signatures and duplicates: copies have the same bits, other movements have others."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.scenes import scene
from wanvae.selection.analysis import pack, unpack
from wanvae.selection.duplicates import bits_between, find_duplicates
from wanvae.selection.signature import Signature, Signer


def small(video: Tensor) -> list[np.ndarray]:
    levels = F.interpolate((video[:1].transpose(0, 1) + 1) * 127.5, (64, 64), mode="area")
    return list(levels[:, 0].numpy().astype(np.uint8))


def signatures(video: Tensor) -> np.ndarray:
    signer = Signer()
    return unpack(pack([signer.sign(picture) for picture in small(video)]))


def duplicates(*videos: Tensor) -> dict[int, int]:
    found = [signatures(video) for video in videos]
    return find_duplicates(found, [len(each) == 1 for each in found])


def test_signatures_are_packed_and_unpacked() -> None:
    some = [Signature(1, 2**63 + 5), Signature(2**64 - 1, 0)]
    assert unpack(pack(some)).tolist() == [[1, 2**63 + 5], [2**64 - 1, 0]]
    assert unpack(pack([])).shape == (0, 2)


def test_copies_have_nearly_the_same_bits() -> None:
    video = scene(1, 12, 96, 128, speed=4)
    bars = F.pad((video + 1) * 0.9, (0, 0, 14, 14)) - 1
    wide = F.interpolate(video, (48, 90), mode="area")
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    for copy in (bars, wide, video + 0.03 * noise):
        one, other = signatures(video), signatures(copy)
        assert bits_between(one[:, 0], other[:, 0]).mean() < 5
        assert bits_between(one[2:, 1], other[2:, 1]).mean() < 10
    others = signatures(scene(2, 12, 96, 128, speed=4))
    assert bits_between(signatures(video)[:, 0], others[:, 0]).mean() > 20


def test_the_longest_of_copies_is_kept() -> None:
    video = scene(1, 16, speed=4)
    assert duplicates(video[:, :9], scene(2, 16), video, scene(3, 9)) == {0: 2}
    assert duplicates(video, video, scene(2, 16), video) == {1: 0, 3: 0}
    assert duplicates(video, video[:, 5:14]) == {1: 0}


def test_another_movement_before_one_background_is_no_copy() -> None:
    background, movement = scene(1, 1, speed=0).expand(3, 16, -1, -1), scene(7, 16, speed=5)
    other = movement.flip(3)
    one, two = (background.clone() for _ in range(2))
    one[..., 24:40, 24:40] = movement[..., 24:40, 24:40]
    two[..., 24:40, 24:40] = other[..., 24:40, 24:40]
    assert duplicates(one, two) == {}
    assert duplicates(one, one * 0.95) == {1: 0}


def test_images_are_compared_with_images_alone() -> None:
    assert duplicates(scene(1, 1), scene(2, 1), scene(1, 1) * 0.95, scene(1, 9)) == {2: 0}


def test_pictures_of_one_colour_are_no_copies() -> None:
    assert duplicates(torch.zeros(3, 9, 64, 64), torch.zeros(3, 9, 64, 64)) == {}
    assert find_duplicates([], []) == {}


def test_very_many_alike_take_no_time_of_their_own() -> None:
    same = signatures(scene(1, 4, speed=0))
    found = find_duplicates([same] * 3000, [False] * 3000)
    assert set(found.values()) <= set(range(3000)) and len(found) > 2800
