"""Pictures of 8 bits are the image, clamped and rounded once."""

import math

import numpy as np
import pytest
import torch

from wanvae.video.common import INTERPOLATION
from wanvae.video.writing.planar import planar_picture


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(48, 64), (21, 33), (3, 70_000)])
def test_planes_hold_the_rounded_channels(channels: int, size: tuple[int, int]) -> None:
    values = torch.Generator().manual_seed(0)
    frames = torch.rand(channels, 2, *size, generator=values) * 2.4 - 1.2
    image = frames[:, 1]  # whose channels are not beside each other
    expected = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1)
    picture = planar_picture(image)
    packed = picture.to_ndarray(format="rgb24" if channels == 3 else "rgba")
    assert np.array_equal(packed, expected.numpy())


def test_values_that_are_no_numbers_are_written_without_a_warning() -> None:
    image = torch.zeros(3, 4, 4)
    image[0, 0, 0] = math.nan
    packed = planar_picture(image).to_ndarray(format="rgb24")
    assert (packed.reshape(-1)[1:] == 128).all()


def test_alpha_stays_exact_beside_yuv() -> None:
    """FFmpeg is off by one in half of the pixels where alpha comes from packed pixels."""
    image = torch.rand(4, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = planar_picture(image).reformat(format="yuva420p", interpolation=INTERPOLATION)
    plane = picture.planes[3]
    alpha = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width]
    assert np.array_equal(alpha, ((image[3] + 1) * 127.5).round().byte().numpy())
