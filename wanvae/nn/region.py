"""Parts of an image, and how much of its input a layer needs for a part of its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Positions ``start`` to ``stop`` (exclusive) of an axis that has ``size`` of them in all."""

    start: int
    stop: int
    size: int

    def __len__(self) -> int:
        return self.stop - self.start

    def union(self, other: Span) -> Span:
        """The smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.stop, other.stop), self.size)

    def before_convolution(self, kernel: int, stride: int, before: int) -> Span:
        """What a convolution that pads ``before`` zeros at the start reads to give this span.

        Its input is ``stride`` times as long as its output; padding is no part of the span.
        """
        size = self.size * stride
        start, stop = self._unclipped(kernel, stride, before)
        return Span(max(start, 0), min(stop, size), size)

    def padding(self, kernel: int, stride: int, before: int) -> tuple[int, int]:
        """Zeros that such a convolution adds at both ends: only where the image ends."""
        start, stop = self._unclipped(kernel, stride, before)
        return max(-start, 0), max(stop - self.size * stride, 0)

    def _unclipped(self, kernel: int, stride: int, before: int) -> tuple[int, int]:
        return self.start * stride - before, (self.stop - 1) * stride + kernel - before

    def before_repeating(self, times: int) -> Span:
        """The span that repeating each position ``times`` times reads to give this span."""
        return Span(self.start // times, -(-self.stop // times), self.size // times)

    def repeated(self, times: int) -> Span:
        """The span after each position is repeated ``times`` times."""
        return Span(self.start * times, self.stop * times, self.size * times)


# Rows and columns. None, where a region is optional, is the whole image.
Region: TypeAlias = "tuple[Span, Span]"


def make_whole_region(height: int, width: int) -> Region:
    """All of an image."""
    return Span(0, height, height), Span(0, width, width)


def expand_to_whole(region: Region) -> Region:
    """All of the image that ``region`` is a part of."""
    return make_whole_region(region[0].size, region[1].size)


def union(first: Region, second: Region) -> Region:
    """The smallest region that holds both."""
    return first[0].union(second[0]), first[1].union(second[1])


def before_repeating(region: Region, times: int) -> Region:
    """The region that repeating each position ``times`` times reads to give this region."""
    rows, columns = (span.before_repeating(times) for span in region)
    return rows, columns


def repeated(region: Region, times: int) -> Region:
    """The region after each position is repeated ``times`` times along both axes."""
    rows, columns = (span.repeated(times) for span in region)
    return rows, columns


def crop(x: Tensor, region: Region, wanted: Region) -> Tensor:
    """The part ``wanted`` of ``x`` ``(..., H, W)``, which covers ``region``; a view."""
    pairs = zip(region, wanted, strict=True)
    rows, columns = (slice(w.start - r.start, w.stop - r.start) for r, w in pairs)
    return x[..., rows, columns]


def crop_whole(x: Tensor, wanted: Region | None) -> Tensor:
    """The part ``wanted`` of a whole image ``x`` ``(..., H, W)``; None is the whole image."""
    return x if wanted is None else crop(x, expand_to_whole(wanted), wanted)
