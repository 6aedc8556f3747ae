"""Images of 16 bits lose nothing, alone, as a video, and on a background."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from wanvae.video import ReadOptions, read_video

KINDS = {
    ".png": ("png", {"rgb": "rgb48be", "rgba": "rgba64be", "gray": "gray16be"}),
    ".tif": ("tiff", {"rgb": "rgb48le", "rgba": "rgba64le", "gray": "gray16le"}),
}
CHANNELS = {"rgb": (3,), "rgba": (4,), "gray": ()}


def save(path: Path, kind: str, seed: int = 0) -> torch.Tensor:
    """Writes an image of noise; returns its levels from 0 to 1, (C, H, W) in float64."""
    codec, formats = KINDS[path.suffix]
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 2**16, (20, 30, *CHANNELS[kind]), dtype=np.uint16)
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = 30, 20, formats[kind]
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format=formats[kind])))
        output.mux(stream.encode(None))
    levels = torch.from_numpy(np.atleast_3d(pixels).astype(np.float64)) / 65535
    return levels.permute(2, 0, 1)


def levels(video: torch.Tensor, number: int = 0) -> torch.Tensor:
    return (video[:, number].double() + 1) / 2


# Far less than one of 65535 levels.
CLOSE = {"atol": 1e-7, "rtol": 0}


@pytest.mark.parametrize("suffix", KINDS)
def test_no_level_is_lost(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for kind in ("rgb", "gray"):
        expected = save(path, kind).expand(3, -1, -1)
        torch.testing.assert_close(levels(read_video(path)[0]), expected, **CLOSE)


@pytest.mark.parametrize("suffix", KINDS)
def test_alpha_of_16_bits_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    expected = save(path, "rgba")
    torch.testing.assert_close(levels(read_video(path, alpha=True)[0]), expected, **CLOSE)
    colour, opacity = expected[:3], expected[3:]
    for background, behind in (((0, 0, 0), 0.0), ((255, 255, 255), 1.0)):
        with pytest.warns(UserWarning, match="is laid on"):
            video, _ = read_video(path, options=ReadOptions(background=background))
        mixed = colour * opacity + behind * (1 - opacity)
        torch.testing.assert_close(levels(video), mixed, **CLOSE)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_folder_of_them_is_a_video(tmp_path: Path, suffix: str) -> None:
    images = [save(tmp_path / f"{number}{suffix}", "rgb", number) for number in range(3)]
    with pytest.warns(UserWarning, match="its 3 images are one video"):
        video, _ = read_video(tmp_path, fps=Fraction(5))
    for number, expected in enumerate(images):
        torch.testing.assert_close(levels(video, number), expected, **CLOSE)
