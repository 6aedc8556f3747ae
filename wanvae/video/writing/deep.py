"""Pictures of more than 8 bits, rounded once from floats to the samples of a pixel format.

swscale is not used for them: it is off by up to 4 levels of 1023 from RGB of 16 bits to YUV of 10.
"""

from __future__ import annotations

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.plane import VideoPlane
from av.video.reformatter import Colorspace
from torch import Tensor

# The parts of red and blue in luma, by FFmpeg's number of the matrix.
_LUMA: dict[int, tuple[float, float]] = {
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.ITU601: (0.299, 0.114),
}


def deep_picture(image: Tensor, pixel_format: str, matrix: int) -> av.VideoFrame:
    """Returns the picture of an image ``(3, H, W)``, or ``(4, H, W)`` with alpha, in [-1, 1].

    Args:
        pixel_format: FFmpeg's name of a format of 9 to 16 bits: RGB, which becomes full range, or
            YUV, which becomes limited range with chroma samples in the middle of their pixels.
        matrix: FFmpeg's number of the matrix of YUV.
    """
    height, width = image.shape[1:]
    picture = av.VideoFrame(width, height, pixel_format)
    parts = picture.format.components
    white = 2 ** parts[0].bits - 1
    levels = (image.detach().float().cpu().clamp(-1, 1) + 1) / 2
    if picture.format.is_rgb:
        samples = levels * white
    else:
        samples = torch.cat([_yuv(levels[:3], *_LUMA[matrix], parts[0].bits), levels[3:] * white])
    order = ">u2" if picture.format.is_big_endian else "<u2"
    for number, plane in enumerate(picture.planes):
        # The samples of a pixel follow each other where they are in one plane.
        own = [
            _averaged(values, plane)
            for part, values in zip(parts, samples, strict=True)
            if part.plane == number
        ]
        rows = np.zeros((plane.height, plane.line_size // 2), order)
        rows[:, : plane.width * len(own)] = torch.stack(own, dim=-1).flatten(1).round().numpy()
        plane.update(rows.tobytes())
    return picture


def _yuv(rgb: Tensor, red: float, blue: float, bits: int) -> Tensor:
    """Returns levels of Y, Cb and Cr of limited range, not rounded, of RGB in [0, 1]."""
    r, g, b = rgb
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    return torch.stack([16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]) * 2 ** (bits - 8)


def _averaged(values: Tensor, plane: VideoPlane) -> Tensor:
    """Returns ``(H, W)`` as the means of as many values as a sample of a plane stands for."""
    height, width = values.shape
    step = -(-height // plane.height), -(-width // plane.width)
    return F.avg_pool2d(values[None], step, ceil_mode=True, count_include_pad=False)[0]
