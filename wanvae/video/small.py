"""The brightness of frames in few pixels, to look at many videos quickly."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from wanvae.video.common import one_line_errors
from wanvae.video.reading.reader import VideoReader


class SmallPictures:
    """Iterates over the frames that a reader has left, with their times, as small gray pictures.

    Pictures are upright ``(side, side)`` in levels of 255, whatever the shape of the video is; each
    pixel is the mean of the area that it covers.
    """

    def __init__(self, reader: VideoReader, side: int) -> None:
        self._reader = reader
        self._side = side
        self._frame: av.VideoFrame | None = None
        # One for each size: each prepares itself anew when the size changes.
        self._small, self._whole = VideoReformatter(), VideoReformatter()

    def __iter__(self) -> Iterator[tuple[Fraction, NDArray[np.uint8]]]:
        for time, frame in self._reader.decoded():
            self._frame = frame
            yield time, self._gray(self._small, self._side, self._side)

    def whole(self) -> NDArray[np.uint8]:
        """Returns the brightness of the latest frame in its full size ``(H, W)``, upright."""
        info = self._reader.info
        height, width = self._reader.orientation.stored_size(info.height, info.width)
        return self._gray(self._whole, width, height)

    def _gray(self, reformatter: VideoReformatter, width: int, height: int) -> NDArray[np.uint8]:
        assert self._frame is not None
        with one_line_errors("read", self._reader.path):
            picture = reformatter.reformat(
                self._frame, width=width, height=height, format="gray", interpolation="AREA"
            )
        return self._reader.orientation.apply(torch.from_numpy(picture.to_ndarray())).numpy()
