"""Counting the frames of a video without decoding them."""

from __future__ import annotations

from fractions import Fraction

import av

from wanvae.video.common import Source, address, one_line_errors

# Seconds that may be missing at the end; containers round or pad their durations.
ALLOWED_SHORTFALL = Fraction(1, 2)


def count_frames(source: Source, expected: int | None) -> int:
    """Returns the number of frames of a video that are shown. Reads the file, but decodes nothing.

    Args:
        expected: the number that the duration in the header lets expect. It counts if it is larger
            and the file ends before that duration: then frames are missing.

    Raises:
        VideoError: the file cannot be read.
    """
    with (
        one_line_errors("read", source),
        av.open(address(source), metadata_errors="replace") as container,
    ):
        stream = container.streams.best("video")
        if stream is None:
            return 0
        count, first, end = 0, None, 0
        for packet in container.demux(stream):
            # The last packet is empty: it only says that the file ends.
            if not packet.size or packet.is_discard:
                continue
            count += 1
            if packet.pts is not None:
                first = packet.pts if first is None else min(first, packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
        tick = stream.time_base or Fraction(1, av.time_base)
        # Matroska counts its duration from time 0, at which the first frame need not be.
        length = (end - (0 if "matroska" in container.format.name else first or 0)) * tick
        said = Fraction(container.duration or 0, av.time_base)
        if stream.duration:
            said = stream.duration * tick
        elif len(container.streams) > 1:
            said = Fraction(0)
    cut_short = first is not None and said - length > ALLOWED_SHORTFALL
    return max(count, expected or 0) if cut_short else count
