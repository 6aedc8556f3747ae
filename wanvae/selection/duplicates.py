"""Finds scenes that show the same as others: copies and parts, also scaled or encoded again.

Two scenes are compared where at least one of their signatures agrees in 16 of its 64 bits as they
are, at the offset in time that follows. So not every pair of scenes is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wanvae.selection.signature import EARLIER

# Bits of a part of a signature by which pairs are found, and parts of a signature.
PART, PARTS = 16, 4
# How many signatures with the same part each one is compared with.
MOST_ALIKE = 32
# Largest mean number of bits, of 64, by which copies differ: of pictures, and of the pictures of
# images and of scenes without movement.
PICTURES_DIFFER, IMAGES_DIFFER = 10.0, 4.0
# The same of movements: of few signatures, and of as many as MANY. Others differ by 32 in the mean.
FEW_MOVEMENTS_DIFFER, MOVEMENTS_DIFFER, MANY = 12.0, 15.0, 6
# Fewer signatures with movement than this do not tell whether scenes move alike.
FEWEST_MOVING = 2
# The share of a scene that must be in the other one.
COVERED = 0.9
# The number of bits that are set in a byte.
BITS_SET = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True, slots=True)
class Match:
    """A scene that shows the same as another one, or as a part of it.

    Attributes:
        scene: position of the scene.
        of: position of the other one, which is as long or longer.
    """

    scene: int
    of: int


def find_duplicates(scenes: Sequence[NDArray[np.uint64]], images: Sequence[bool]) -> dict[int, int]:
    """Returns which scenes to leave out, with a scene that is kept and shows the same.

    The longest scene is kept, and the first one of those as long.

    Args:
        scenes: the signatures of each scene, ``(N, 2)`` as ``unpack`` returns them.
        images: whether it is an image. A scene of one signature alone does not tell enough.
    """
    lengths = [len(each) for each in scenes]
    pairs = (pair for pair in candidates(scenes) if images[pair[0]] == images[pair[1]])
    found = [match_of(scenes, *pair, images=images[pair[0]]) for pair in pairs]
    matches = {match for match in found if match is not None}
    left_out: dict[int, int] = {}
    for match in sorted(matches, key=lambda match: (-lengths[match.of], match.of, match.scene)):
        # A copy of a copy.
        kept = left_out.get(match.of, match.of)
        if match.scene not in left_out and match.scene != kept:
            left_out[match.scene] = kept
    return left_out


def candidates(scenes: Sequence[NDArray[np.uint64]]) -> Iterator[tuple[int, int, int]]:
    """Yields pairs of scenes that may show the same, and the offset of the second in the first.

    The first of a pair is the longer one, or the one of the smaller position.
    """
    lengths = np.array([len(each) for each in scenes], int)
    if not lengths.sum():
        return
    pictures = np.concatenate(scenes)[:, 0]
    scene = np.repeat(np.arange(len(scenes)), lengths)
    place = np.arange(len(pictures)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    known = pictures != 0
    pictures, scene, place = pictures[known], scene[known], place[known]
    found = []
    for part in range(PARTS):
        keys = (pictures >> np.uint64(PART * part)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        for distance in range(1, min(MOST_ALIKE, len(order) - 1) + 1):
            one, other = order[:-distance], order[distance:]
            same = (keys[one] == keys[other]) & (scene[one] != scene[other])
            one, other = one[same], other[same]
            near = bits_between(pictures[one], pictures[other]) <= PICTURES_DIFFER
            one, other = one[near], other[near]
            longer = lengths[scene[one]], -scene[one]
            swap = (longer[0] < lengths[scene[other]]) | (
                (longer[0] == lengths[scene[other]]) & (longer[1] < -scene[other])
            )
            one, other = np.where(swap, other, one), np.where(swap, one, other)
            found.append(np.stack([scene[one], scene[other], place[one] - place[other]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 3), int)
    yield from (tuple(pair) for pair in pairs.tolist())


def match_of(
    scenes: Sequence[NDArray[np.uint64]], longer: int, shorter: int, offset: int, *, images: bool
) -> Match | None:
    """Returns the match of two scenes at an offset; None if they show something else.

    Args:
        images: whether they are images.
    """
    one, other = scenes[longer], scenes[shorter]
    first, end = max(0, offset), min(len(one), offset + len(other))
    if end - first < COVERED * len(other):
        return None
    one, other = one[first:end], other[first - offset : end - offset]
    known = (one[:, 0] != 0) & (other[:, 0] != 0)
    if known.sum() < COVERED * len(known):
        return None
    pictures = bits_between(one[known, 0], other[known, 0]).mean()
    # The first signatures of a scene have no movement.
    ones, others = one[EARLIER:, 1], other[EARLIER:, 1]
    moving = [movements != 0 for movements in (ones, others)]
    both, either = moving[0] & moving[1], moving[0] | moving[1]
    if not either.any() and (images or len(either) >= FEWEST_MOVING):
        return Match(shorter, longer) if pictures <= IMAGES_DIFFER else None
    if both.sum() < FEWEST_MOVING or both.sum() < either.sum() / 2:
        return None
    movements = bits_between(ones[both], others[both]).mean()
    limit = MOVEMENTS_DIFFER if both.sum() >= MANY else FEW_MOVEMENTS_DIFFER
    alike = pictures <= PICTURES_DIFFER and movements <= limit
    return Match(shorter, longer) if alike else None


def bits_between(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns how many bits of each pair of numbers differ."""
    differing = np.ascontiguousarray(one ^ other).view(np.uint8).reshape(-1, 8)
    return BITS_SET[differing].sum(1, dtype=np.int64)
