"""Training clips: random crops from a folder of videos."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from wanvae.video import VideoError, VideoInfo, probe, read_clip

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where training clips come from.

    Attributes:
        folder: searched for videos, with its subfolders.
        frames: frames per clip, 1 + 4n for the official temporal factor.
        size: height and width of a clip in pixels.
        largest_scale: a crop covers between 1 and this many times size, drawn anew for each clip
            and scaled down to size; limited by the video's own size.
        crops_per_clip: how many samples in a row are crops of the same decoded clip: decoding often
            costs more than training a small model.
        flip: mirror half of the crops.
    """

    folder: str = "data"
    frames: int = 5
    size: int = 128
    largest_scale: float = 1.0
    crops_per_clip: int = 1
    flip: bool = True


class VideoClips(Dataset):
    """An endless list of random crops ``(3, T, H, W)`` in [-1, 1].

    Sample ``number`` is drawn from (seed, number) alone: any number of workers and processes sees
    the same samples, and a run that resumes needs to know only how many it has used.

    Raises:
        VideoError: the folder holds no video that is large and long enough.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.videos = find_videos(config)
        self._clip_number, self._clip = -1, torch.empty(0)

    def __getitem__(self, number: int) -> Tensor:
        clip_number = number // self.config.crops_per_clip
        if clip_number != self._clip_number:
            self._clip_number, self._clip = clip_number, self.read_clip(clip_number)
        return random_crop(self._clip, self.config, np.random.default_rng([self.seed, 0, number]))

    def read_clip(self, number: int) -> Tensor:
        """A random whole clip ``(3, T, height, width)``, of which samples are crops."""
        random = np.random.default_rng([self.seed, 1, number])
        path, info = self.videos[random.integers(len(self.videos))]
        start = random.integers(frame_count(info) - self.config.frames + 1)
        return read_clip(path, float(start / info.fps), self.config.frames)


def random_crop(clip: Tensor, config: DataConfig, random: np.random.Generator) -> Tensor:
    """A random square of ``(C, T, H, W)``, scaled down to ``config.size`` and perhaps mirrored."""
    largest = min(clip.shape[2:])
    scale = random.uniform(1, min(config.largest_scale, largest / config.size))
    side = min(largest, round(config.size * scale))
    top, left = (random.integers(length - side + 1) for length in clip.shape[2:])
    crop = clip[:, :, top : top + side, left : left + side]
    if side != config.size:
        size = (config.size, config.size)
        crop = F.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False)
    if config.flip and random.random() < 0.5:
        crop = crop.flip(3)
    return crop.contiguous()


def find_videos(config: DataConfig) -> list[tuple[Path, VideoInfo]]:
    """The videos below ``config.folder`` that clips can be cut from, in a fixed order."""
    videos, unusable = [], []
    for path in sorted(Path(config.folder).rglob("*")):
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        try:
            info = probe(path)
        except VideoError as error:
            unusable.append(str(error))
            continue
        if min(info.height, info.width) < config.size or frame_count(info) < config.frames:
            unusable.append(f"{path}: smaller or shorter than a clip")
        else:
            videos.append((path, info))
    if unusable:
        warnings.warn(f"{len(unusable)} videos left out, the first: {unusable[0]}", stacklevel=2)
    if not videos:
        raise VideoError(
            f"no usable video in {config.folder!r}: it needs some of {config.size} pixels or more "
            f"and {config.frames} frames or more ({', '.join(sorted(VIDEO_SUFFIXES))})"
        )
    return videos


def frame_count(info: VideoInfo) -> int:
    """Frames of a video, 0 where its container does not tell."""
    return info.frames or 0
