"""For tests of training: a folder with a video, and a fresh start of accelerate."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from wanvae.video import write_video


@pytest.fixture
def folder(tmp_path) -> Path:
    """A video of colours that drift over the picture."""
    folder = tmp_path / "videos"
    folder.mkdir()
    time, y, x = torch.meshgrid(torch.arange(12), torch.arange(32), torch.arange(48), indexing="ij")
    phases = [x / 9 + time / 5, y / 7 - time / 6, (x + y) / 11]
    video = 0.7 * torch.stack([torch.sin(phase) for phase in phases])
    write_video(folder / "waves.mp4", video, Fraction(25))
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()
