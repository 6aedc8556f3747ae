"""The times of written frames, in the ticks of a file."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from wanvae.video.common import Notices
from wanvae.video.writing.formats import Container

_FINE_TICKS = 90_000  # per second, the least precision of times where a file may choose its ticks


class Schedule:
    """Gives each frame its time in a file.

    Args:
        fps: frames per second of frames without a time.
        container: what the file can say about times.
        notices: what people are told of the file.

    Attributes:
        fps: the rate, as exactly as files say it.
        tick: the unit of times, in seconds.
        least_step: the fewest ticks from frame to frame.
        frames: how many frames have a time.
        last_given: seconds of the last time that was given; None if none was.

    Raises:
        ValueError: the file counts time too coarsely for the rate.
    """

    def __init__(self, fps: Fraction, container: Container, notices: Notices) -> None:
        self.fps = Fraction(fps).limit_denominator(_FINE_TICKS)
        # A whole number of ticks per frame keeps the rate exact; many ticks keep given times so.
        many = max(1, _FINE_TICKS // self.fps.numerator)
        fine = Fraction(1, self.fps.numerator * many)
        self.tick = (container.tick or fine) if container.keeps_times else 1 / self.fps
        stored = container.stored_tick or self.tick
        if self.fps * stored > 1 and container.keeps_times and container.tick is None:
            raise ValueError(
                f"it counts time in 1/{stored.denominator} s, too coarse for {self.fps} frames per "
                "second"
            )
        self.least_step = max(container.least_ticks, ceil(stored / self.tick))
        self.frames = 0
        self._container = container
        self._notices = notices
        self._first, self._next = Fraction(0), Fraction(0)
        self.last_given: float | None = None
        self._last_ticks = 0

    def end(self, time: float | None) -> int:
        """Returns the ticks where the last frame ends.

        Args:
            time: seconds; None for 1 / fps after it begins.
        """
        if time is not None:
            return round(Fraction(time) / self.tick)
        return self._last_ticks + max(self.least_step, round(1 / self.fps / self.tick))

    def place(self, time: float | None) -> int:
        """Returns the ticks of the next frame.

        Args:
            time: seconds; None for 1 / fps after the last frame.

        Raises:
            ValueError: the time does not follow the last one.
        """
        if time is not None:
            if self.last_given is not None and time <= self.last_given:
                raise ValueError(f"time {time} s follows {self.last_given} s")
            self.last_given, self._next = time, Fraction(time)
        exact = self._next
        if not self.frames:
            self._first = exact
        ticks = round(exact / self.tick)
        # Times closer than a tick still need a tick each.
        ticks = max(ticks, self._last_ticks + self.least_step if self.frames else 0)
        if not self._container.keeps_times:
            ticks = self.frames
        self._tell(exact, ticks)
        self._next, self._last_ticks = exact + 1 / self.fps, ticks
        self.frames += 1
        return ticks

    def _tell(self, exact: Fraction, ticks: int) -> None:
        """Tells of times that the file does not have."""
        regular = self._first + self.frames / self.fps
        if not self._container.keeps_times and abs(exact - regular) > 1 / (2 * self.fps):
            self._notices.tell(
                f"it holds no times, so its frames follow each other at {float(self.fps):g} per "
                "second; the video has other times",
                once="times",
            )
        if self._container.tick is not None and ticks * self.tick - exact > self.tick:
            most = 1 / (self._container.least_ticks * self.tick)
            self._notices.tell(
                f"it shows at most {most} frames per second, and has more, so it is slower than "
                "the video",
                once="slower",
            )
