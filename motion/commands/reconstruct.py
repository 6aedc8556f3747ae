"""From file to file through the model: motion to tokens to motion, and to pictures of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from motion.checkpoints.architecture import PUBLISHED_FEATURES
from motion.checkpoints.formats import require_suffix
from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.evaluate.evaluation import count_indices
from motion.features.humanml3d import read_features, recover_positions, skeleton_of
from motion.features.recording import Recording, check_channels, read_recording, suffixes_of
from motion.features.rotations import restore_clip
from motion.files.formats import read_motion
from motion.metrics import mpjpe, rotation_error
from motion.model import RVQVAE
from motion.render import Figure, render
from motion.skeleton.packaged import PACKAGED_SKELETONS
from motion.skeleton.tree import Skeleton
from motion.tokens import Body, Origin, Tokens, check_tokens, digest_of, read_tokens, write_tokens

# What stick figures can be written to.
FIGURE_SUFFIXES = (".mp4", ".mov", ".mkv", ".png", ".jpg", ".webp")


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """What a reconstruction came to.

    Attributes:
        frames: how many, at the frame rate of the model.
        file_fps: frames per second of the original; None if they are not known.
        fps: of the model.
        mpjpe: mean distance of joints from where they were, in millimetres.
        rotation_error: mean angle between rotations of joints, in degrees.
        tokens: how many, each of a code a layer.
        used: how many codes of each layer they use.
    """

    frames: int
    file_fps: float | None
    fps: float
    mpjpe: float
    rotation_error: float
    tokens: int
    used: tuple[int, ...]


def tokenize(model: RVQVAE, recording: Recording) -> Tokens:
    """The tokens of a recording, and what it takes to go back."""
    clip, config = recording.clip, model.config
    body = None
    if clip is not None:
        body = Body(
            skeleton=clip.skeleton,
            start=clip.start,
            betas=clip.betas,
            gender=clip.gender,
        )
    origin = Origin(
        frames=len(recording),
        fps=config.fps,
        codes=config.quantizer.codes,
        books=digest_of(model),
        body=body,
    )
    return Tokens(model.encode(recording.features[None])[0].cpu(), origin)


def tokenize_file(
    model: RVQVAE, source: str | os.PathLike[str], destination: str | os.PathLike[str]
) -> Tokens:
    """Write the tokens of a motion file.

    Raises:
        MotionError: ``source`` cannot be read, or is not of the model's features.
        CheckpointError: ``destination`` cannot be written.
    """
    tokens = tokenize(model, read_recording(source, model.config))
    write_tokens(destination, tokens)
    return tokens


def detokenize(
    model: RVQVAE, tokens: Tokens, *, layers: int | None = None, skeleton: Skeleton | None = None
) -> Recording:
    """The motion of tokens, as a recording of what the model makes of them.

    Args:
        layers: of the quantizer, the first, to decode from; None is all.
        skeleton: to move; None is that of the tokens, or else a packaged one.

    Raises:
        MotionError: the skeleton does not fit the model, or there is none.
    """
    config, origin = model.config, tokens.origin
    frames = None if origin is None else origin.frames
    features = model.decode(tokens.indices[None], frames, layers=layers)[0].cpu()
    if config.features is None:
        body = skeleton_of(config.channels)
        return Recording(config=config, features=features, skeleton=body, clip=None)
    body = None if origin is None else origin.body
    if skeleton is None:
        skeleton = packaged_skeleton(config) if body is None else body.skeleton
    start = (0.0, 0.0) if body is None else body.start
    clip = restore_clip(features.double(), config.features, skeleton, config.fps, start=start)
    if body is not None:
        clip = replace(clip, betas=body.betas, gender=body.gender)
    return Recording(config=config, features=features, skeleton=skeleton, clip=clip)


def packaged_skeleton(config: RVQVAEConfig) -> Skeleton:
    """The skeleton of this package with as many joints as the features of a model have."""
    spec = config.features
    for body in PACKAGED_SKELETONS:
        if spec is not None and spec.channels(body.joints) == config.channels:
            return body
    raise MotionError(
        f"the tokens do not say their skeleton, and none of the package has the joints of "
        f"{config.channels} channels; give a file that has it, --skeleton FILE.bvh"
    )


def read_skeleton(path: str | os.PathLike[str], config: RVQVAEConfig) -> Skeleton:
    """The skeleton of a motion file, which a model must have features for."""
    skeleton, spec = read_motion(path).skeleton, config.features
    if spec is not None:
        found = spec.channels(skeleton.joints)
        check_channels(Path(path), found, config.channels, f" of {skeleton.joints} joints")
    return skeleton


def detokenize_file(
    model: RVQVAE,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    layers: int | None = None,
    skeleton: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Recording:
    """Write the motion of a file of tokens: as motion, or as a stick figure.

    Args:
        layers: of the quantizer, the first, to decode from; None is all.
        skeleton: a motion file whose skeleton is to move.
        progress: show a progress bar while drawing.

    Raises:
        MotionError: ``source`` is no tokens of ``model``, or the skeleton does not fit.
        CheckpointError, VideoError: ``destination`` cannot be written.
    """
    motion = suffixes_of(model.config)
    require_suffix(destination, *motion, *FIGURE_SUFFIXES)
    tokens = read_tokens(source)
    check_tokens(tokens, model, source)
    body = None if skeleton is None else read_skeleton(skeleton, model.config)
    recording = detokenize(model, tokens, layers=layers, skeleton=body)
    if Path(destination).suffix in motion:
        recording.write(destination, recording.features)
    else:
        figure = figure_of(recording, recording.features)
        render(destination, [figure], model.config.fps, progress=progress)
    return recording


def reconstruct_file(
    model: RVQVAE,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    layers: int | None = None,
) -> ReconstructionReport:
    """Write what the model makes of a motion file, and compare.

    Args:
        layers: of the quantizer, the first, to decode from; None is all.

    Raises:
        MotionError: ``source`` cannot be read, or is not of the model's features.
        CheckpointError: ``destination`` cannot be written.
    """
    require_suffix(destination, *suffixes_of(model.config))
    recording = read_recording(source, model.config)
    indices, features = reconstruct(model, recording, layers)
    joints, original = recording.joints_of(features), recording.joints
    recording.write(destination, features)
    counts = count_indices(model, indices)
    return ReconstructionReport(
        frames=len(recording),
        file_fps=recording.file_fps,
        fps=model.config.fps,
        mpjpe=mpjpe(joints.positions, original.positions),
        rotation_error=rotation_error(joints.rotations, original.rotations),
        tokens=indices.shape[1],
        used=tuple((counts > 0).sum(1).tolist()),
    )


def reconstruct(
    model: RVQVAE, recording: Recording, layers: int | None = None
) -> tuple[Tensor, Tensor]:
    """Indices ``(1, T', Q)`` of a recording, and the features ``(T, D)`` they stand for."""
    indices = model.encode(recording.features[None])
    return indices, model.decode(indices, len(recording), layers=layers)[0].cpu()


def render_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    model: RVQVAE | None = None,
    *,
    progress: bool = False,
) -> None:
    """Draw a motion file as a stick figure, beside what a model makes of it if one is given.

    Args:
        destination: ends in .mp4 or .mkv, or in .png for a picture of some frames.
        progress: show a progress bar.

    Raises:
        MotionError: ``source`` cannot be read, or is not of the model's features.
        CheckpointError, VideoError: ``destination`` cannot be written.
    """
    require_suffix(destination, *FIGURE_SUFFIXES)
    if model is None:
        figure, fps = read_figure(source)
        figures = [figure]
    else:
        recording, fps = read_recording(source, model.config), model.config.fps
        _, decoded = reconstruct(model, recording)
        figures = [figure_of(recording, features) for features in (recording.features, decoded)]
    render(destination, figures, fps, progress=progress)


def figure_of(recording: Recording, features: Tensor) -> Figure:
    """The stick figure that moves by ``features`` ``(T, D)`` as ``recording`` did."""
    if recording.clip is None:
        return Figure.of_joints(recover_positions(features), recording.skeleton)
    return Figure.of_clip(recording.restored(features))


def read_figure(path: str | os.PathLike[str]) -> tuple[Figure, float]:
    """The stick figure of a motion file of any kind, and its frames per second."""
    if Path(path).suffix.lower() != ".npy":
        clip = read_motion(path)
        return Figure.of_clip(clip), clip.fps
    features = read_features(path)
    channels = features.shape[1]
    figure = Figure.of_joints(recover_positions(features), skeleton_of(channels))
    return figure, PUBLISHED_FEATURES[channels][1]
