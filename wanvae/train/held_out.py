"""Scores of a model on clips that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from einops import rearrange
from torch import Tensor

from wanvae.config import WanVAEConfig, check_length, check_size
from wanvae.engine.config import check
from wanvae.engine.training.evaluating import evaluating
from wanvae.errors import UserError
from wanvae.folders.listing import may_be_media
from wanvae.metrics.images import psnr, ssim
from wanvae.model import WanVAE
from wanvae.video import VideoError, VideoInfo, probe, read_clip

# From frames of a reconstruction and of the original, both (N, C, H, W) in [-1, 1], to a number.
Metric: TypeAlias = Callable[[Tensor, Tensor], "Tensor | float"]
METRICS: Mapping[str, Metric] = MappingProxyType({"psnr": psnr, "ssim": ssim})


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The clips on which a model is judged.

    Attributes:
        folder: searched, with its subfolders, for videos and images. Do not train on them. Without
            a folder there is no evaluation.
        frames: frames of each clip, 1 + 4n for the official temporal factor, from the middle of its
            video. An image is a clip of one frame.
        size: height and width in pixels of the square in the middle of the frame that is judged.
        clips: how many files to use at most, the first by name.
    """

    folder: str | None = None
    frames: int = 17
    size: int = 128
    clips: int = 16

    def __post_init__(self) -> None:
        for name in ("frames", "size", "clips"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")


@dataclass(frozen=True)
class HeldOutClip:
    """A clip on which models are judged.

    Attributes:
        name: path of its file inside the folder.
        video: ``(C, T, H, W)`` in [-1, 1].
    """

    name: str
    video: Tensor


@dataclass(frozen=True)
class HeldOutScores:
    """The scores of a model.

    Attributes:
        rows: the value of each metric by name, for each clip by name.
        means: the mean of each metric over the clips.
    """

    rows: dict[str, dict[str, float]]
    means: dict[str, float]


def read_held_out(config: EvaluationConfig, model: WanVAEConfig) -> list[HeldOutClip]:
    """The clips that ``config`` describes, the same each time.

    Files that cannot be read, or are too small or short, are left out.

    Args:
        model: the config of the model that encodes the clips.

    Raises:
        UserError: the model cannot encode clips of this shape, or the folder holds none.
    """
    check_size(model, config.size, config.size)
    check_length(model, config.frames)
    clips = list(islice(usable_clips(config, model.encodes_alpha), config.clips))
    if not clips:
        raise UserError(
            f"no usable file in the evaluation folder {config.folder!r}: it needs videos of "
            f"{config.size} pixels or more and {config.frames} frames or more, or such images"
        )
    return clips


def usable_clips(config: EvaluationConfig, alpha: bool) -> Iterator[HeldOutClip]:
    """A clip of each file of the folder that is large and long enough, sorted by name.

    Args:
        alpha: whether clips are RGBA, or RGB.
    """
    if config.folder is None:
        return
    folder = Path(config.folder)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if not path.is_file() or not may_be_media(relative):
            continue
        try:
            info = probe(path)
            frames = 1 if info.is_image else config.frames
            if min(info.height, info.width) < config.size:
                continue
            video = read_clip(path, middle(info, frames), frames, alpha=alpha)
        except VideoError:
            continue
        yield HeldOutClip(relative, centre_crop(video, config.size))


def middle(info: VideoInfo, frames: int) -> float:
    """The start of the middle ``frames`` of a video, in seconds; 0 if its length is unknown."""
    return float(max(0, (info.frames or 0) - frames) // 2 / info.fps)


def centre_crop(video: Tensor, size: int) -> Tensor:
    """The square of ``size`` in the middle of ``(C, T, H, W)``."""
    top, left = ((side - size) // 2 for side in video.shape[2:])
    return video[:, :, top : top + size, left : left + size].contiguous()


def evaluate(
    vae: WanVAE,
    clips: Sequence[HeldOutClip],
    metrics: Mapping[str, Metric] = METRICS,
    accelerator: Accelerator | None = None,
) -> HeldOutScores:
    """Reconstructs each clip from the mode of its latents, and compares.

    Args:
        metrics: by name.
        accelerator: of several processes, which share the clips. All must call this, and each gets
            the whole result.
    """
    rank, ranks = 0, 1
    if accelerator is not None:
        rank, ranks = accelerator.process_index, accelerator.num_processes
    rows = [(clip.name, compare(vae, clip, metrics)) for clip in clips[rank::ranks]]
    if ranks > 1:
        rows = gather_object(rows)
    by_name = dict(rows)
    ordered = {clip.name: by_name[clip.name] for clip in clips}
    means = {name: sum(row[name] for row in ordered.values()) / len(clips) for name in metrics}
    return HeldOutScores(ordered, means)


def compare(vae: WanVAE, clip: HeldOutClip, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Each metric of the reconstruction of a clip."""
    frames = rearrange(reconstruct(vae, clip.video), "c t h w -> t c h w")
    originals = rearrange(clip.video, "c t h w -> t c h w").to(frames.device)
    return {name: float(metric(frames, originals)) for name, metric in metrics.items()}


def comparison_grid(vae: WanVAE, clips: Sequence[HeldOutClip], frames: int = 3) -> Tensor:
    """One picture ``(C, H, W)`` in [-1, 1]: for each clip, frames above their reconstructions.

    Args:
        clips: of one size.
        frames: of each clip, evenly spread from its first to its last.
    """
    rows = []
    for clip in clips:
        chosen = torch.linspace(0, clip.video.shape[1] - 1, frames).round().long()
        for video in (clip.video, reconstruct(vae, clip.video).cpu()):
            rows.append(rearrange(video[:, chosen], "c t h w -> c h (t w)"))
    return torch.cat(rows, dim=1)


def reconstruct(vae: WanVAE, video: Tensor) -> Tensor:
    """``(C, T, H, W)`` encoded and decoded, in float32 on the device of the model."""
    with evaluating(vae):
        return vae.decode(vae.encode(video[None]).mode())[0].float()
