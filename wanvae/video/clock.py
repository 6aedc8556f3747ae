"""Times of packets and frames. They go on where times in the file restart, jump or repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import inf
from typing import NamedTuple, TypeVar

from av import Packet
from av.container import InputContainer
from av.format import Flags

T = TypeVar("T")

# Seconds. A longer step of a clock that may restart, as in MPEG streams, is no pause but a jump.
LONGEST_PAUSE = 10

# Steps back, in frames, that a container may guess wrong, and that nobody needs to be told of.
_SMALL_STEP = 4


def restarts(file: InputContainer) -> bool:
    """Returns whether the clock of a file may restart, as in MPEG streams."""
    return Flags.ts_discont in Flags(file.format.flags)


def time_of(packet: Packet) -> Fraction | None:
    """Returns when a packet begins, in seconds; None if the file does not say."""
    ticks = packet.dts if packet.pts is None else packet.pts
    return None if ticks is None else ticks * packet.time_base


def length_of(packet: Packet) -> Fraction:
    """Returns how long a packet lasts, in seconds; 0 if the file does not say."""
    return (packet.duration or 0) * packet.time_base


class _Reading(NamedTuple):
    """A time in the file, and what was added to it, in ticks."""

    time: int
    offset: int


class Clock:
    """Continues the times of packets at the rate of the stream after a restart or a jump.

    A single packet whose time is far off moves nothing but itself: the next packet goes on from the
    packet before it.

    Args:
        period: ticks from frame to frame.
        longest_gap: ticks forward that are still a pause of the video. Longer steps are jumps of
            the clock.
        by_keyframes: read the times at which keyframes are shown, instead of the decoding times of
            all packets, because the container has none.
    """

    def __init__(
        self, period: int, longest_gap: float = inf, *, by_keyframes: bool = False
    ) -> None:
        self._period = period
        self._longest_gap = longest_gap
        self._by_keyframes = by_keyframes
        self._last: _Reading | None = None
        self._before_last: _Reading | None = None
        self._end = 0  # continued time of the packet that is last

    def adjust(self, packet: Packet) -> bool:
        """Writes continued times into a packet, in decoding order. Returns whether it jumps far."""
        far = False
        time = packet.dts
        if self._by_keyframes:
            time = packet.pts if packet.is_keyframe else None
        if time is not None:
            offset = self._offset(time)
            far = self._last is not None and (
                abs(offset - self._last.offset) > _SMALL_STEP * self._period
            )
            self._before_last, self._last = self._last, _Reading(time, offset)
        offset = self._last.offset if self._last is not None else 0
        if offset:
            packet.pts = None if packet.pts is None else packet.pts + offset
            packet.dts = None if packet.dts is None else packet.dts + offset
        if self._by_keyframes:
            self._end = max(self._end, packet.pts or 0)
        else:
            self._end = self._end if packet.dts is None else packet.dts
        return far

    def _offset(self, time: int) -> int:
        """Returns what to add to a time."""
        last, before = self._last, self._before_last
        if last is None:
            return 0
        if self._follows(time, last.time):
            return last.offset
        if before is not None and time > before.time and self._follows(time, before.time):
            return before.offset
        return self._end + self._period - time

    def _follows(self, time: int, earlier: int) -> bool:
        return 0 <= time - earlier <= self._longest_gap


def increasing(
    timed: Iterable[tuple[Fraction | None, T]], period: Fraction
) -> Iterator[tuple[Fraction, T]]:
    """Yields items with times that increase. Looks one item ahead.

    A time that does not lie between its neighbours is replaced by their middle. Items without a
    time follow the last by a ``period``, and items of one time follow each other closely.
    """
    last: Fraction | None = None
    held: tuple[Fraction, T] | None = None
    for time, item in timed:
        if time is None:
            before = held[0] if held is not None else None
            time = Fraction(0) if before is None else before + period
        if held is not None:
            last = _between(last, held[0], time, period)
            yield last, held[1]
        held = time, item
    if held is not None:
        yield _between(last, held[0], None, period), held[1]


def _between(
    last: Fraction | None, time: Fraction, following: Fraction | None, period: Fraction
) -> Fraction:
    """Returns the time of an item, given the time before it and the time in the file after it."""
    if last is None:
        return time
    if following is not None and last < following and not last < time < following:
        return (last + following) / 2
    if time > last:
        return time
    return last + (period if following is None else period / 16)


def on_grid(time: Fraction, rate: Fraction, tick: Fraction) -> Fraction:
    """Returns the multiple of a frame's duration that ``time`` is the rounded value of, if any.

    Containers round times to ticks, Matroska to milliseconds. Two rounded times differ by less than
    a tick from the exact difference.

    Args:
        time: seconds from the first frame.
        rate: frames per second of the grid. Nothing is done if a frame has few ticks.
        tick: seconds.
    """
    if 4 * tick * rate > 1:
        return time
    exact = round(time * rate) / rate
    return exact if abs(exact - time) < tick else time
