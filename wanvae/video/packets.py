"""Counting the frames of a video without decoding them."""

from __future__ import annotations

import av

from wanvae.video.common import Source, address, one_line_errors


def count_packets(source: Source) -> int:
    """Returns the number of frames of a video that are shown. Reads the file, but decodes nothing.

    Raises:
        VideoError: the file cannot be read.
    """
    with (
        one_line_errors("read", source),
        av.open(address(source), metadata_errors="replace") as container,
    ):
        stream = container.streams.best("video")
        # The last packet is empty: it only says that the file ends.
        return sum(
            bool(packet.size) and not packet.is_discard for packet in container.demux(stream)
        )
