"""Videos of scenes for tests: textures that move, each scene another one."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.video import write_video


def texture(seed: int, height: int, width: int) -> Tensor:
    """A picture ``(1, H, W)`` of soft spots, 6 from top to bottom, with levels in [-0.8, 0.8]."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.rand(1, 1, 6, 6 * width // height, generator=generator) * 1.6 - 0.8
    return F.interpolate(spots, (height, width), mode="bilinear")[0]


def scene(seed: int, frames: int, height: int = 64, width: int = 64, speed: int = 1) -> Tensor:
    """A video ``(3, T, H, W)`` of a texture that moves by ``speed`` pixels a frame."""
    picture = texture(seed, height, width + frames * speed)
    moved = [picture[:, :, number * speed :][:, :, :width] for number in range(frames)]
    return torch.stack(moved, dim=1).expand(3, -1, -1, -1)


def lumas(video: Tensor, side: int = 32) -> list[np.ndarray]:
    """The brightness of each frame as the detector of cuts takes it."""
    levels = (video[:1].transpose(0, 1) + 1) * 127.5
    return list(F.adaptive_avg_pool2d(levels, side)[:, 0].numpy().astype(np.float32))


def write_scenes(path: Path, *scenes: Tensor, fps: int = 25) -> Path:
    """Writes scenes one after the other to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, torch.cat(scenes, dim=1), fps)
    return path
