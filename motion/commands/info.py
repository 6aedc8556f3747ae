"""What a file is, in lines for people: a checkpoint, motion, features or tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from motion.checkpoints.architecture import PUBLISHED_FEATURES, Untold
from motion.checkpoints.formats import Checkpoint
from motion.commands.convert import load_complete
from motion.config import RVQVAEConfig
from motion.features.humanml3d import read_features, skeleton_of
from motion.files.formats import READERS, read_motion
from motion.networks.receptive import effective_kernels, receptive_field
from motion.skeleton.tree import Skeleton
from motion.tokens import holds_tokens, read_tokens
from wanvae.engine.config import to_json_dict


def describe_file(path: str | os.PathLike[str], untold: Untold | None = None) -> Iterator[str]:
    """The lines on a file of any kind.

    Args:
        untold: what to take for what the tensors of a checkpoint do not tell.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if holds_tokens(path):
        yield from describe_tokens(path)
    elif suffix in READERS:
        yield from describe_motion(path)
    elif suffix == ".npy":
        yield from describe_features(path)
    else:
        yield from describe_checkpoint(path, load_complete(path, untold))


def describe_motion(path: Path) -> Iterator[str]:
    clip = read_motion(path)
    yield f"{path}: motion, {path.suffix[1:]}"
    yield timing(len(clip), clip.fps)
    yield from describe_skeleton(clip.skeleton)


def describe_skeleton(skeleton: Skeleton) -> Iterator[str]:
    yield f"joints: {skeleton.joints}, from {skeleton.names[0]} to {skeleton.names[-1]}"
    yield f"unit: {skeleton.unit:g} m, {skeleton.up} up"
    yield f"size: {skeleton.span:.3f} m along the bones between the ends furthest apart"


def describe_features(path: Path) -> Iterator[str]:
    features = read_features(path)
    channels = features.shape[1]
    kind = {263: "HumanML3D", 251: "KIT"}[channels]
    yield f"{path}: features of {kind}, {channels} channels"
    yield timing(len(features), PUBLISHED_FEATURES[channels][1])
    yield f"joints: {skeleton_of(channels).joints}"


def describe_tokens(path: Path) -> Iterator[str]:
    tokens = read_tokens(path)
    indices, origin = tokens.indices, tokens.origin
    length, layers = indices.shape
    yield f"{path}: {length} tokens of {layers} codes, from {indices.min()} to {indices.max()}"
    if origin is None:
        yield "origin: not known"
        return
    yield f"codebooks: of {origin.codes} codes, digest {origin.books}"
    yield timing(origin.frames, origin.fps)
    if origin.body is not None:
        yield from describe_skeleton(origin.body.skeleton)


def timing(frames: int, fps: float) -> str:
    return f"frames: {frames} at {fps:g} per second, {frames / fps:.2f} s"


def describe_checkpoint(path: Path, checkpoint: Checkpoint) -> Iterator[str]:
    config, tensors = checkpoint.config, checkpoint.tensors
    count = sum(t.numel() for n, t in tensors.items() if n.startswith(("encoder.", "decoder.")))
    codes = tensors["quantizer.books.codes"].numel()
    yield f"{path}: {checkpoint.layout.value} layout"
    yield f"parameters: {count:,} of encoder and decoder, {codes:,} of the codes"
    yield f"tokens: {token_rate(config)}"
    yield from describe_reach(config)
    for name, value in to_json_dict(config).items():
        # Of the two networks only that which is there.
        if name not in ("resnet", "wan") or name == config.network:
            nested = isinstance(value, dict)
            shown = ", ".join(f"{key} {x}" for key, x in value.items()) if nested else value
            yield f"{name}: {shown}"
    for note in checkpoint.notes:
        yield f"note: {note}"


def token_rate(config: RVQVAEConfig) -> str:
    layers, codes = config.quantizer.layers, config.quantizer.codes
    return f"{config.fps / config.factor:g} per second, each of {layers} codes, of {codes}"


def describe_reach(config: RVQVAEConfig) -> Iterator[str]:
    """What tokens and frames depend on, and the kernels that make it so."""
    field = receptive_field(config)
    frames = "all frames" if field.frames is None else f"{field.frames} frames"
    ahead = "to the end of the motion" if field.lookahead is None else f"{field.lookahead} frames"
    yield (
        f"receptive field: a token sees {frames} ({extent(field.frames_before)} before its own "
        f"{field.frames_of_token} and {extent(field.frames_after)} after), its frames "
        f"{extent(field.tokens_before)} tokens before and {extent(field.tokens_after)} after"
    )
    yield f"look-ahead: {ahead}"
    if config.network == "resnet":
        stages = ", then ".join(" ".join(map(str, stage)) for stage in effective_kernels(config))
        yield f"effective kernels: {stages}"


def extent(count: int | None) -> str:
    return "all" if count is None else str(count)
