"""Pictures of 8 bits, rounded from floats."""

from __future__ import annotations

import av
import numpy as np
from torch import Tensor

# The values that are rounded at a time, so that they stay in the cache of the processor.
_BLOCK = 2**16
# Which channel of an image each plane of FFmpeg's planar RGB holds: green, blue, red, and alpha.
_CHANNELS = (1, 2, 0, 3)


def planar_picture(image: Tensor) -> av.VideoFrame:
    """Returns the picture of an image ``(3, H, W)``, or ``(4, H, W)`` with alpha, in [-1, 1].

    Values are clamped and rounded once, in the memory of the picture.

    Args:
        image: float32 on the CPU.
    """
    channels, height, width = image.shape
    picture = av.VideoFrame(width, height, "gbrap" if channels == 4 else "gbrp")
    step = max(1, _BLOCK // width)
    levels = np.empty((step, width), np.float32)
    values = image.numpy()
    for plane, channel in zip(picture.planes, _CHANNELS[:channels], strict=True):
        samples = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        for row in range(0, height, step):
            rows = values[channel, row : row + step]
            block = levels[: len(rows)]
            np.clip(rows, -1, 1, out=block)
            block += 1
            block *= 127.5
            np.rint(block, out=block)
            with np.errstate(invalid="ignore"):  # of values that are no numbers
                samples[row : row + step, :width] = block
    return picture
