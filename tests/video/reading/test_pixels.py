"""Pixels as floats are those of packed RGB, whichever way is taken."""

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from wanvae.video.colour.colours import colours_of
from wanvae.video.common import INTERPOLATION
from wanvae.video.reading.pixels import pixels_of


@pytest.mark.parametrize("size", [(64, 48), (33, 21), (322, 182)])
@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize(
    ("layout", "deep"),
    [
        ("yuv420p", None),
        ("yuv422p", None),
        ("yuv444p", None),
        ("nv12", None),
        ("yuyv422", None),
        ("yuv420p10le", (10, 0, "<u2")),
        ("yuv444p12be", (12, 0, ">u2")),
        ("p010le", (10, 6, "<u2")),
        ("rgb24", None),
    ],
)
def test_planes_have_the_values_of_packed_pixels(
    layout: str, deep: tuple[int, int, str] | None, matrix: int, size: tuple[int, int]
) -> None:
    packed, white = ("rgb24", 255) if deep is None else ("rgb48le", 65280)
    frame = av.VideoFrame(*size, layout)
    values = np.random.default_rng(0)
    for plane in frame.planes:
        samples = values.integers(0, 256, plane.buffer_size, dtype=np.uint8)
        if deep is not None:
            bits, shift, kind = deep
            samples = values.integers(0, 2**bits, plane.buffer_size // 2) << shift
            samples = samples.astype(kind)
        plane.update(samples.tobytes())
    frame.colorspace, frame.color_range, frame.color_primaries = matrix, 1, 1
    for width, height in (size, (size[0] + 7, size[1] - 2)):
        expected = VideoReformatter().reformat(
            frame, width=width, height=height, format=packed, interpolation=INTERPOLATION
        )
        levels = torch.from_numpy(expected.to_ndarray().astype(np.float32)).permute(2, 0, 1)
        found, alpha = pixels_of(frame, VideoReformatter(), width, height, colours_of(frame))
        assert alpha is None
        assert torch.equal(found, (levels / (white / 2) - 1).clamp(-1, 1))
