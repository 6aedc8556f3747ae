"""Finds where scenes of a video end and begin: hard cuts, fades and dissolves.

A frame is compared with the one before it after its blocks have moved to where they fit best, so
that fast motion counts little. A cut is a change that is larger than the changes around it, and
after which nothing looks like what was before, so that a flash is no cut. In a dissolve, frames are
mixtures of a frame before and a frame after. A fade passes through frames of one colour.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

# Pixels per side of the pictures that are compared, and of the blocks that move in them.
SIDE = 32
BLOCK = 8
# Sums the pixels of each block in a row.
COLUMNS = np.repeat(np.eye(SIDE // BLOCK, dtype=np.float32), BLOCK, axis=0)
# How far a block moves, in pixels of these pictures.
REACH = 4
# Indices that repeat the edges of a picture.
PADDED = np.ix_(*2 * [np.arange(-REACH, SIDE + REACH).clip(0, SIDE - 1)])
# Frames before and after a frame that are compared across it: the longest flash, plus 1.
ACROSS = 4
# Frames around a change that it is compared with.
AROUND = 3
# A change from which on it is a cut if it is larger than the changes around it; and a change that
# only has to be as large as these. 1 is the contrast of the picture.
SMALLEST_CHANGE = 0.06
CERTAIN_CHANGE = 0.4
# How many times as large as the changes around it a change must be, if it is not certain.
STANDING_OUT = 1.5
CERTAIN_STANDING_OUT = 1.08
# The share of a change that the frames across it must differ by as well.
LASTING = 0.7
# Changes around it that small do not count, because all are noise.
LEAST_AROUND = 0.03
# A lower contrast than this, in levels of 255, does not make noise a change.
LEAST_CONTRAST = 8.0
# A frame of one colour has a contrast below this.
FLAT = 3.5
# The longest part of a fade on each side of its flat frames.
LONGEST_FADE = 25
# How much contrast must change from frame to frame in a fade.
FADING = 1.02
# Lengths of dissolves that are looked for, in frames, and how long the longest may become.
DISSOLVES = (8, 14, 22)
REACH_OF_DISSOLVE = 16
# How far frames of a dissolve may be from mixtures, as a share of the change.
MIXED = 0.22
# Motion leaves less than this share of a change, over so many frames before and after.
MOVED, MOVED_IN = 0.6, 2
# Mean change in levels of 255, and change as above, from its begin to its end.
LEAST_DISSOLVED = 6.0
CHANGE_OF_DISSOLVE = 0.3
# Frames that are kept behind and ahead of the one that is decided.
BEHIND, AHEAD = 40, 27


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame as it is compared.

    Attributes:
        luma: ``(SIDE, SIDE)``, float32, in levels of 255.
        normal: the same with mean 0 and contrast 1.
        contrast: standard deviation of the luma.
        change: from the frame before, as ``change_between`` measures it.
    """

    luma: NDArray[np.float32]
    normal: NDArray[np.float32]
    contrast: float
    change: float


@dataclass(frozen=True, slots=True)
class Transition:
    """Where a scene ends and the next one begins.

    Attributes:
        first: the first frame that is not of the scene before.
        end: the first frame of the scene after; ``first`` for a hard cut.
    """

    first: int
    end: int


class CutDetector:
    """Finds the transitions of one video, frame after frame, in constant memory."""

    def __init__(self) -> None:
        self._pictures: deque[Picture] = deque()
        # The number of the first picture that is kept, of the next to add, and of the next to
        # decide.
        self._offset, self._count, self._next = 0, 0, 0
        self._found: list[Transition] = []
        self._flat_since: int | None = None

    def add(self, luma: NDArray[np.float32]) -> None:
        """Adds the next frame.

        Args:
            luma: ``(SIDE, SIDE)`` in levels of 255.
        """
        centred = luma - luma.sum() / SIDE**2
        contrast = float(np.vdot(centred, centred)) ** 0.5 / SIDE
        normal = centred / max(contrast, LEAST_CONTRAST)
        last = self._pictures[-1] if self._pictures else None
        change = 0.0 if last is None else change_between(last.normal, normal)
        self._pictures.append(Picture(luma, normal, contrast, change))
        self._count += 1
        if self._count - self._next > AHEAD:
            self._decide()
        if len(self._pictures) > BEHIND + AHEAD:
            self._pictures.popleft()
            self._offset += 1

    @property
    def decided(self) -> int:
        """How many frames are decided: transitions that begin before are known."""
        return max(0, self._next - REACH_OF_DISSOLVE)

    def scene_of(self, number: int) -> int | None:
        """Returns the first frame of the scene of a decided frame; None inside a transition."""
        start = max((each.end for each in self._found if each.first <= number), default=0)
        return start if start <= number else None

    def finish(self) -> list[Transition]:
        """Returns the transitions in their order, after the last frame."""
        while self._next < self._count:
            self._decide()
        if self._flat_since is not None:
            self._add_fade(self._flat_since, self._count)
        return list(merged(self._found))

    def _at(self, number: int) -> Picture | None:
        if not self._offset <= number < self._count:
            return None
        return self._pictures[number - self._offset]

    def _range(self, first: int, end: int) -> list[Picture]:
        found = (self._at(number) for number in range(first, end))
        return [picture for picture in found if picture is not None]

    def _decide(self) -> None:
        """Decides about the next frame, of which ``AHEAD`` following ones are known."""
        number = self._next
        picture = self._at(number)
        assert picture is not None
        if self._is_cut(number, picture):
            self._found.append(Transition(number, number))
        self._find_dissolve(number, picture)
        flat = picture.contrast < FLAT
        if flat and self._flat_since is None:
            self._flat_since = number
        elif not flat and self._flat_since is not None:
            self._add_fade(self._flat_since, number)
            self._flat_since = None
        self._next += 1

    def _is_cut(self, number: int, picture: Picture) -> bool:
        change = picture.change
        if change < SMALLEST_CHANGE:
            return False
        around = self._range(number - AROUND, number) + self._range(number + 1, number + 1 + AROUND)
        most = max((each.change for each in around), default=0.0)
        stands_out = change / max(most, LEAST_AROUND)
        if stands_out < (CERTAIN_STANDING_OUT if change >= CERTAIN_CHANGE else STANDING_OUT):
            return False
        before = self._range(number - ACROSS, number)
        after = self._range(number, number + ACROSS)
        least = LASTING * change
        return all(change_between(a.normal, b.normal) >= least for a in before for b in after)

    def _find_dissolve(self, number: int, picture: Picture) -> None:
        """Adds the dissolve whose middle the frame is, if it is one."""
        for length in reversed(DISSOLVES):
            start, end = self._at(number - length // 2), self._at(number + length // 2)
            if start is None or end is None:
                continue
            step = end.luma - start.luma
            if np.abs(step).sum() < LEAST_DISSOLVED * SIDE**2:
                continue
            share, rest = mixture(start.luma, step, picture.luma)
            if not 0.35 < share < 0.65 or rest > MIXED:
                continue
            if change_between(start.normal, end.normal) < CHANGE_OF_DISSOLVE:
                continue
            quarters = self._range(number - length // 4, number - length // 4 + 1)
            quarters += self._range(number + length // 4, number + length // 4 + 1)
            if any(mixture(start.luma, step, each.luma)[1] > 1.5 * MIXED for each in quarters):
                continue
            if self._moves(number):
                continue
            self._found.append(self._extent(number, start.luma, step))
            return

    def _moves(self, number: int) -> bool:
        """Whether the change around a frame is motion, which looks mixed if it is blurred."""
        before, after = self._at(number - MOVED_IN), self._at(number + MOVED_IN)
        if before is None or after is None:
            return True
        unmoved = float(np.abs(before.normal - after.normal).sum()) / SIDE**2
        return change_between(before.normal, after.normal) < MOVED * unmoved

    def _extent(
        self, middle: int, start: NDArray[np.float32], step: NDArray[np.float32]
    ) -> Transition:
        """Returns a dissolve from its first to its last mixture."""

        def is_mixture(number: int) -> bool:
            picture = self._at(number)
            return picture is not None and 0.04 < mixture(start, step, picture.luma)[0] < 0.96

        first = end = middle
        while middle - first < REACH_OF_DISSOLVE and is_mixture(first - 1):
            first -= 1
        while end - middle < REACH_OF_DISSOLVE and is_mixture(end):
            end += 1
        return Transition(first, end)

    def _add_fade(self, first: int, end: int) -> None:
        """Adds frames of one colour, with the fades on both sides of them."""
        before, after = self._at(first - 1), self._at(end)
        short = end - first < ACROSS
        if short and before is not None and after is not None:
            change = change_between(before.normal, after.normal)
            if change < CHANGE_OF_DISSOLVE:
                return  # a flash
        first -= self._fading(first, -1)
        end += self._fading(end - 1, 1)
        self._found.append(Transition(first, end))

    def _fading(self, number: int, direction: int) -> int:
        """Returns how many frames fade, next to a frame of one colour."""
        count = 0
        while count < LONGEST_FADE:
            here = self._at(number + direction * count)
            there = self._at(number + direction * (count + 1))
            if here is None or there is None or there.contrast < FADING * here.contrast:
                break
            count += 1
        return count


def merged(found: list[Transition]) -> Iterator[Transition]:
    """Yields transitions in their order. Those that touch become one."""
    held: Transition | None = None
    for each in sorted(found, key=lambda each: (each.first, each.end)):
        if held is None:
            held = each
        elif each.first <= held.end + 1:
            held = Transition(held.first, max(held.end, each.end))
        else:
            yield held
            held = each
    if held is not None:
        yield held


def change_between(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Returns the mean absolute difference of two pictures whose blocks move to fit best."""
    unmoved = float(np.abs(before - after).sum()) / SIDE**2
    if unmoved < LEAST_AROUND:
        return unmoved
    places = sliding_window_view(before[PADDED], after.shape)
    errors = np.abs(places - after).reshape(-1, SIDE) @ COLUMNS  # sums along each row of a block
    blocks = errors.reshape(-1, SIDE // BLOCK, BLOCK, SIDE // BLOCK).sum(2)
    return float(blocks.min(0).mean()) / BLOCK**2


def mixture(
    start: NDArray[np.float32], step: NDArray[np.float32], luma: NDArray[np.float32]
) -> tuple[float, float]:
    """Returns the share of ``step`` that is nearest to a picture, and how far it is from there.

    The distance is a share of the length of ``step``.
    """
    difference = luma - start
    length = float(np.vdot(step, step)) + 1e-6
    share = float(np.vdot(difference, step)) / length
    rest = difference - share * step
    return share, float(np.sqrt(np.vdot(rest, rest) / length))
