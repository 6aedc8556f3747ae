"""Regions of an image, and which region of its input a layer needs for its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """The positions from ``start`` to ``stop`` (exclusive) of an axis of ``size`` positions."""

    start: int
    stop: int
    size: int

    def __len__(self) -> int:
        return self.stop - self.start

    def union(self, other: Span) -> Span:
        """Returns the smallest span that contains both spans."""
        return Span(min(self.start, other.start), max(self.stop, other.stop), self.size)

    def before_convolution(self, kernel: int, stride: int, before: int) -> Span:
        """Returns the span that a convolution reads to write this span.

        The input is ``stride`` times as long as the output. The convolution pads ``before`` zeros
        at the start; zeros are not part of the span.
        """
        size = self.size * stride
        start, stop = self._unclipped(kernel, stride, before)
        return Span(max(start, 0), min(stop, size), size)

    def padding(self, kernel: int, stride: int, before: int) -> tuple[int, int]:
        """Returns the zeros that this convolution adds at both ends: only where the image ends."""
        start, stop = self._unclipped(kernel, stride, before)
        return max(-start, 0), max(stop - self.size * stride, 0)

    def _unclipped(self, kernel: int, stride: int, before: int) -> tuple[int, int]:
        return self.start * stride - before, (self.stop - 1) * stride + kernel - before

    def before_repeating(self, times: int) -> Span:
        """Returns the span that a layer reads to write this span, if it repeats each position."""
        return Span(self.start // times, -(-self.stop // times), self.size // times)

    def repeated(self, times: int) -> Span:
        """Returns the span after each position is repeated ``times`` times."""
        return Span(self.start * times, self.stop * times, self.size * times)


# Rows and columns. Where a region is optional, None is the whole image.
Region: TypeAlias = "tuple[Span, Span]"


def make_whole_region(height: int, width: int) -> Region:
    """Returns the region of a whole image."""
    return Span(0, height, height), Span(0, width, width)


def expand_to_whole(region: Region) -> Region:
    """Returns the region of the whole image that ``region`` is a part of."""
    return make_whole_region(region[0].size, region[1].size)


def union(first: Region, second: Region) -> Region:
    """Returns the smallest region that contains both regions."""
    return first[0].union(second[0]), first[1].union(second[1])


def before_repeating(region: Region, times: int) -> Region:
    """Returns the region that a layer reads to write this region, if it repeats positions."""
    rows, columns = (span.before_repeating(times) for span in region)
    return rows, columns


def repeated(region: Region, times: int) -> Region:
    """Returns the region after each position is repeated ``times`` times along both axes."""
    rows, columns = (span.repeated(times) for span in region)
    return rows, columns


def crop(x: Tensor, region: Region, wanted: Region) -> Tensor:
    """Returns a view of the part ``wanted`` of ``x`` ``(..., H, W)``, which covers ``region``."""
    pairs = zip(region, wanted, strict=True)
    rows, columns = (slice(w.start - r.start, w.stop - r.start) for r, w in pairs)
    return x[..., rows, columns]


def crop_whole(x: Tensor, wanted: Region | None) -> Tensor:
    """Returns a view of the part ``wanted`` of a whole image; None is the whole image."""
    return x if wanted is None else crop(x, expand_to_whole(wanted), wanted)
