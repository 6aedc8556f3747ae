"""Scores of a model on clips that it is not trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from einops import rearrange
from torch import Tensor

from wanvae.config import WanVAEConfig, encodes_alpha
from wanvae.engine.config import check
from wanvae.engine.evaluating import evaluating
from wanvae.engine.litter import describe_ignored, suffix_of
from wanvae.engine.storage.remote_path import Location, location
from wanvae.engine.training.notices import warn_about
from wanvae.errors import UserError
from wanvae.folders.excerpts import ALL_LEFT_OUT, longest_of_manifest, read_excerpt
from wanvae.folders.listing import MEDIA_SUFFIXES, Listing, list_files, may_be_media
from wanvae.folders.manifest import Entry, reason
from wanvae.metrics.images import psnr, ssim
from wanvae.metrics.temporal import TemporalError
from wanvae.posterior import Posterior
from wanvae.train.trainee import Trained
from wanvae.train.upscaling import Downscaling, check_clips, scale_down
from wanvae.video import ReadOptions, VideoError, VideoInfo, probe, read_clip
from wanvae.video.reading.options import AS_STORED

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
        video: ``(C, T, H, W)`` in [-1, 1], with which reconstructions are compared.
        input: what is encoded instead of it; None is the video itself.
    """

    name: str
    video: Tensor
    input: Tensor | None = None

    @property
    def seen(self) -> Tensor:
        """What is encoded."""
        return self.video if self.input is None else self.input


@dataclass(frozen=True)
class HeldOutScores:
    """The scores of a model.

    Attributes:
        rows: the value of each figure by name, for each clip by name.
        means: the mean of each figure over the clips that have it.
    """

    rows: dict[str, dict[str, float]]
    means: dict[str, float]


@dataclass(frozen=True)
class HeldOutFolder:
    """What is used of an evaluation folder.

    Attributes:
        clips: a clip of each file that is used, sorted by name.
        ignored: how many files are no videos or images, by suffix; or empty.
    """

    clips: list[HeldOutClip]
    ignored: str


def read_held_out(
    config: EvaluationConfig,
    model: WanVAEConfig,
    *,
    reading: ReadOptions = AS_STORED,
    report: bool = True,
) -> HeldOutFolder:
    """The clips that ``config`` describes, the same each time.

    Files that cannot be read, or are too small or short, are left out.

    Args:
        model: the config of the model that encodes the clips.
        reading: how pictures come out of the files.
        report: warn of files that are left out. One process of a run should.

    Raises:
        UserError: the model cannot encode clips of this shape, or the folder holds none.
    """
    clips = f"evaluation.frames {config.frames} and evaluation.size {config.size}"
    check_clips(model, clips, config.frames, config.size, config.size)
    if config.folder is None:
        raise UserError("there is no evaluation folder; name one as evaluation.folder")
    folder = location(config.folder)
    listing = list_held_out(folder)
    scenes = longest_of_manifest(folder, listing.files)
    clips, left_out, others = [], [], Counter[str]()
    for file in listing.files:
        if len(clips) == config.clips:
            break
        try:
            alpha = encodes_alpha(model)
            clips.append(read_file(folder, file.path, config, alpha, scenes, reading))
        except VideoError as error:
            if suffix_of(file.path) in MEDIA_SUFFIXES:
                left_out.append(f"{file.path}: {reason(error, folder / file.path)}")
            else:
                others[suffix_of(file.path)] += 1
    if left_out and report:
        warn_about(f"{len(left_out)} files in {config.folder!r} cannot be evaluated", left_out)
    if not clips:
        raise UserError(
            f"no usable file in the evaluation folder {config.folder!r}: it needs videos of "
            f"{config.size} pixels or more and {config.frames} frames or more, or images as large; "
            "evaluation.size and evaluation.frames choose smaller clips"
        )
    return HeldOutFolder(clips, describe_ignored(listing.ignored + others))


def usable_clips(config: EvaluationConfig, alpha: bool = False) -> Iterator[HeldOutClip]:
    """A clip of each file of the folder that is large and long enough, sorted by name.

    Args:
        alpha: whether clips are RGBA, or RGB.
    """
    if config.folder is None:
        return
    folder = location(config.folder)
    files = list_held_out(folder).files
    scenes = longest_of_manifest(folder, files)
    for file in files:
        with suppress(VideoError):
            yield read_file(folder, file.path, config, alpha, scenes)


def list_held_out(folder: Location) -> Listing:
    """The files of a folder that may be videos or images, sorted. Tars are not read.

    Raises:
        VideoError: there is no such folder.
    """
    listing = list_files(folder)
    files = [file for file in listing.files if may_be_media(file.path)]
    tars = Counter(suffix_of(file.path) for file in set(listing.files) - set(files))
    return Listing(sorted(files, key=lambda file: Path(file.path)), listing.ignored + tars)


def read_file(
    folder: Location,
    name: str,
    config: EvaluationConfig,
    alpha: bool,
    scenes: Mapping[str, Entry | None] = MappingProxyType({}),
    reading: ReadOptions = AS_STORED,
) -> HeldOutClip:
    """The clip of a file of the folder; VideoError if it cannot be read, or is too small.

    Args:
        alpha: whether the clip is RGBA, or RGB.
        scenes: the scene of each file that has some in the index, as ``longest_of_manifest`` says.
        reading: how pictures come out of the file.
    """
    path = folder / name
    if name in scenes:
        scene = scenes[name]
        if scene is None:
            raise VideoError(ALL_LEFT_OUT)
        if scene.excerpt is not None:
            return HeldOutClip(name, read_scene(folder, scene, config, alpha, reading))
    info = probe(path)
    if min(info.height, info.width) < config.size:
        raise VideoError(f"it has {info.width}x{info.height} pixels, too few")
    frames = 1 if info.is_image else config.frames
    start = middle(info, frames)
    video = read_clip(path, start, frames, alpha=alpha, options=reading)
    return HeldOutClip(name, centre_crop(video, config.size))


def read_scene(
    folder: Location, scene: Entry, config: EvaluationConfig, alpha: bool, reading: ReadOptions
) -> Tensor:
    """The middle of a scene; VideoError if it cannot be read, or is too small."""
    if min(scene.height, scene.width) < config.size:
        raise VideoError(f"its scenes have {scene.width}x{scene.height} pixels, too few")
    frames = 1 if scene.is_image else config.frames
    if scene.frames < frames:
        raise VideoError(f"its longest scene has {scene.frames} frames, too few")
    start = (scene.frames - frames) // 2 / scene.fps
    clip = read_excerpt(scene, folder, start, frames, 1, alpha=alpha, options=reading)
    return centre_crop(clip, config.size)


def middle(info: VideoInfo, frames: int) -> float:
    """The start of the middle ``frames`` of a video, in seconds; 0 if its length is unknown."""
    return float(max(0, (info.frames or 0) - frames) // 2 / info.fps)


def centre_crop(video: Tensor, size: int) -> Tensor:
    """The square of ``size`` in the middle of ``(C, T, H, W)``."""
    top, left = ((side - size) // 2 for side in video.shape[2:])
    return video[:, :, top : top + size, left : left + size].contiguous()


def evaluate(
    vae: Trained,
    clips: Sequence[HeldOutClip],
    metrics: Mapping[str, Metric] = METRICS,
    accelerator: Accelerator | None = None,
    *,
    downscaling: Downscaling = "area",
) -> HeldOutScores:
    """Reconstructs each clip from the mode of its latents, and compares.

    Besides the metrics, clips have the figures of ``temporal_figures`` and "kl_bits", the KL
    divergence of the latents from N(0, 1) in bits per pixel. A clip without changes has no
    "flicker", and an image no "temporal" either.

    Args:
        metrics: by name.
        accelerator: of several processes, which share the clips. All must call this, and each gets
            the whole result.
        downscaling: how clips are scaled down for the encoder if the decoder upscales.
    """
    rank, ranks = 0, 1
    if accelerator is not None:
        rank, ranks = accelerator.process_index, accelerator.num_processes
    rows = [(clip.name, compare(vae, clip, metrics, downscaling)) for clip in clips[rank::ranks]]
    if ranks > 1:
        rows = gather_object(rows)
    by_name = dict(rows)
    ordered = {clip.name: by_name[clip.name] for clip in clips}
    names = dict.fromkeys(name for row in ordered.values() for name in row)
    values = {name: [row[name] for row in ordered.values() if name in row] for name in names}
    return HeldOutScores(ordered, {name: sum(own) / len(own) for name, own in values.items()})


def compare(
    vae: Trained,
    clip: HeldOutClip,
    metrics: Mapping[str, Metric],
    downscaling: Downscaling = "area",
) -> dict[str, float]:
    """Each figure of the reconstruction of a clip."""
    video, posterior = reconstruct(vae, clip.seen, downscaling)
    frames = rearrange(video, "c t h w -> t c h w")
    originals = rearrange(clip.video, "c t h w -> t c h w").to(frames.device)
    bits = posterior.kl().sum().item() / math.log(2)
    return {
        **{name: float(metric(frames, originals)) for name, metric in metrics.items()},
        **temporal_figures(frames, originals, vae.config.temporal_factor),
        "kl_bits": bits / clip.video[0].numel(),
    }


def names_of_figures(
    clips: Iterable[HeldOutClip], metrics: Iterable[str], factor: int
) -> tuple[str, ...]:
    """The names of the means that ``evaluate`` gives, in their order.

    Args:
        metrics: their names.
        factor: the temporal factor of the model.
    """
    temporal: dict[str, float] = {}
    for length in {clip.video.shape[1] for clip in clips}:
        # Errors that change from frame to frame.
        errors = torch.arange(length).float().square()[:, None]
        temporal |= temporal_figures(errors, torch.zeros_like(errors), factor)
    return (*metrics, *temporal, "kl_bits")


def temporal_figures(frames: Tensor, originals: Tensor, factor: int) -> dict[str, float]:
    """ "temporal" and "flicker" of wanvae.metrics.temporal, if there are enough frames for them."""
    errors = TemporalError(factor)
    for original, frame in zip(originals, frames, strict=True):
        errors.add(original, frame)
    figures = {"temporal": errors.value, "flicker": errors.flicker}
    return {name: value for name, value in figures.items() if value is not None}


def comparison_grid(
    vae: Trained,
    clips: Sequence[HeldOutClip],
    frames: int = 3,
    *,
    downscaling: Downscaling = "area",
) -> Tensor:
    """One picture ``(C, H, W)`` in [-1, 1]: for each clip, frames above their reconstructions.

    Between them is what is encoded, where it is not the clip itself.

    Args:
        clips: of one size.
        frames: of each clip, evenly spread from its first to its last.
        downscaling: as for ``evaluate``.
    """
    rows = []
    for clip in clips:
        chosen = torch.linspace(0, clip.video.shape[1] - 1, frames).round().long()
        encoded = () if clip.input is None else (clip.input,)
        output, _ = reconstruct(vae, clip.seen, downscaling)
        for video in (clip.video, *encoded, output.cpu()):
            rows.append(rearrange(video[:, chosen], "c t h w -> c h (t w)"))
    return torch.cat(rows, dim=1)


def reconstruct(
    vae: Trained, video: Tensor, downscaling: Downscaling = "area"
) -> tuple[Tensor, Posterior]:
    """``(C, T, H, W)`` encoded and decoded, in float32 on the device of the model; its latents.

    The encoder of a model whose decoder upscales gets the video scaled down.
    """
    encoded = scale_down(video[None], vae.config.upscale_factor, downscaling)
    with evaluating(vae):
        posterior = vae.encode(encoded)
        return vae.decode(posterior.mode())[0].float(), posterior
