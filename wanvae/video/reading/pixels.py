"""The pixels of FFmpeg's pictures as floats in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, VideoReformatter
from torch import Tensor

from wanvae.video.colour.colours import Colours
from wanvae.video.common import INTERPOLATION
from wanvae.video.reading.losses import has_alpha

# The values that are scaled at a time, so that they stay in the cache of the processor.
_BLOCK = 2**16
# Where red, green and blue are among the planes of FFmpeg's planar RGB.
_PLANES_OF_RGB = (2, 0, 1)


def pixels_of(
    frame: av.VideoFrame, reformatter: VideoReformatter, width: int, height: int, colours: Colours
) -> tuple[Tensor, Tensor | None]:
    """Returns RGB ``(3, H, W)`` in [-1, 1], and alpha ``(1, H, W)`` in [-1, 1] if there is any.

    Args:
        frame: a picture with the tags of its colours.
        reformatter: converts the pictures of one video.
        width, height: the size that the picture is scaled to.
        colours: what the tags say.

    Raises:
        FFmpegError: FFmpeg cannot convert the picture.
    """
    deep = _bits(frame) > 8 or colours.is_converted
    with_alpha = has_alpha(frame)
    picture = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format=_format(frame, deep=deep, with_alpha=with_alpha),
        interpolation=INTERPOLATION,
    )
    channels = _channels(picture)
    black, white = _levels(frame, deep)
    if colours.is_converted:
        rgb = colours.convert(np.stack(channels[:3], axis=-1), black, white) * 2 - 1
    else:
        rgb = _scale(channels[:3], black, white)
    if not with_alpha:
        return rgb, None
    return rgb, _scale(channels[3:], 0, _full_range(frame, deep))


def _format(frame: av.VideoFrame, *, deep: bool, with_alpha: bool) -> str:
    """FFmpeg's name of the RGB that a frame becomes.

    YUV becomes planar RGB. Its values are the same, and swscale is three to four times as fast.
    """
    if with_alpha:
        return "rgba64le" if deep else "rgba"
    if frame.format.name.startswith(("yuv", "nv", "p0", "p2", "p4")):
        return "gbrp16le" if deep else "gbrp"
    return "rgb48le" if deep else "rgb24"


def _channels(picture: av.VideoFrame) -> list[np.ndarray]:
    """The samples ``(H, W)`` of red, green, blue, and alpha if there is any; views of a picture."""
    if not picture.format.name.startswith("gbrp"):
        return list(np.moveaxis(picture.to_ndarray(), -1, 0))
    planes = [picture.planes[number] for number in _PLANES_OF_RGB]
    kind = np.dtype("<u2" if picture.format.components[0].bits > 8 else "u1")
    return [
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : picture.width]
        for plane in planes
    ]


def _scale(channels: Sequence[np.ndarray], black: int, white: int) -> Tensor:
    """Scales samples ``(H, W)`` of each channel to ``(C, H, W)`` in [-1, 1]."""
    height, width = channels[0].shape
    scaled = np.empty((len(channels), height, width), np.float32)
    half = np.float32((white - black) / 2)
    step = max(1, _BLOCK // width)
    beyond = black > 0 or white < np.iinfo(channels[0].dtype).max
    for samples, values in zip(channels, scaled, strict=True):
        for row in range(0, height, step):
            block = values[row : row + step]
            # Converted as a whole first: NumPy converts operands in small pieces, which is slower.
            block[:] = samples[row : row + step]
            if black > 0:
                block -= black
            block /= half
            block -= 1
            if beyond:
                block.clip(-1, 1, out=block)
    return torch.from_numpy(scaled)


def _bits(frame: av.VideoFrame) -> int:
    """Bits per sample, 8 to 16: swscale does not distinguish fewer or more."""
    return min(max(8, *(component.bits for component in frame.format.components)), 16)


def _full_range(frame: av.VideoFrame, deep: bool) -> int:
    """The highest level after swscale copies a full range to 8 or 16 bit.

    It shifts samples up, except for RGB of more than 8 bits.
    """
    bits = _bits(frame)
    if not deep:
        return 255
    return 65535 if frame.format.is_rgb and bits > 8 else (2**bits - 1) << (16 - bits)


def _levels(frame: av.VideoFrame, deep: bool) -> tuple[int, int]:
    """The levels of black and white after swscale converts a frame to RGB of 8 bit, or 16 if deep.

    Gray is copied as if it were always full range.
    """
    unit = 256 if deep else 1
    gray = frame.format.name.startswith("gray")
    if gray and frame.color_range == ColorRange.MPEG:
        return 16 * unit, 235 * unit
    # Deep YUV and gray are shifted up, not stretched: white stays short of 65535.
    if frame.format.is_rgb or gray or frame.color_range == ColorRange.JPEG:
        return 0, _full_range(frame, deep)
    return 0, 255 * unit
