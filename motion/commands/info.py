"""``wanvae-motion info``: what a file is. A checkpoint, motion, features, tokens or latents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import Namespace

from motion.checkpoints.architecture import Untold
from motion.checkpoints.formats import Checkpoint
from motion.commands.convert import load_complete
from motion.commands.options import (
    add_reading_options,
    add_untold_options,
    read_reading,
    read_untold,
)
from motion.config import RVQVAEConfig
from motion.features.feature_files import read_features
from motion.features.published import PUBLISHED
from motion.features.units import are_in_own_units
from motion.files.arrays import load_array
from motion.files.formats import READERS, read_motion
from motion.files.joints import RATES, read_joints
from motion.files.reading import GUESSED, Reading
from motion.latents import LatentOrigin, holds_latents, read_latents
from motion.networks.receptive import effective_kernels, receptive_field
from motion.skeleton.tree import Skeleton
from motion.tokens import Origin, describe_token_rate, holds_tokens, name_codes, read_tokens
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.config import to_json_dict

# What a quantizer holds beside its codes and what they are computed from.
STATISTICS = ("sums", "counts", "initialized", "base")


def add_options(parser: Parser) -> None:
    parser.add_argument("file", help="a checkpoint, motion, features, tokens or latents")
    parser.reads("file")
    add_reading_options(parser)
    add_untold_options(parser)


def run(arguments: Namespace) -> None:
    untold, reading = read_untold(arguments), read_reading(arguments)
    for line in describe_file(arguments.file, untold, reading):
        print(line)


def describe_file(
    path: str | os.PathLike[str], untold: Untold | None = None, reading: Reading = GUESSED
) -> Iterator[str]:
    """Describes a file of any kind in lines.

    Args:
        untold: what to assume where the tensors of a checkpoint do not tell it.
        reading: what a motion file does not tell.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if holds_tokens(path):
        yield from describe_tokens(path)
    elif holds_latents(path):
        yield from describe_latents(path)
    elif suffix in READERS:
        yield from describe_motion(path, reading)
    elif suffix == ".npy":
        yield from describe_array(path, reading)
    else:
        yield from describe_checkpoint(path, load_complete(path, untold))


def describe_motion(path: Path, reading: Reading) -> Iterator[str]:
    clip = read_motion(path, reading)
    yield f"{path}: motion, {path.suffix[1:]}"
    yield show_timing(len(clip), clip.fps)
    yield from describe_skeleton(clip.skeleton)
    if path.suffix.lower() == ".bvh":
        guessed = {"unit": reading.unit, "up": reading.up}
        for name in (name for name, given in guessed.items() if given is None):
            yield f"note: {name}: guessed, because BVH files do not tell it; name it with --{name}"


def describe_skeleton(skeleton: Skeleton) -> Iterator[str]:
    yield f"joints: {skeleton.joints}, from {skeleton.names[0]} to {skeleton.names[-1]}"
    yield f"unit: {skeleton.unit:g} m, {skeleton.up} up"
    yield f"size: {skeleton.span:.3f} m along the bones between the ends furthest apart"


def describe_array(path: Path, reading: Reading) -> Iterator[str]:
    """Describes a .npy file: positions of joints, or features."""
    if load_array(path).ndim == 3:
        positions, skeleton = read_joints(path, unit=reading.unit, up=reading.up)
        yield f"{path}: positions of {skeleton.joints} joints"
        yield show_timing(len(positions), RATES[skeleton.joints])
        yield "note: frame rate: assumed as published, because the file does not tell it"
        return
    features = read_features(path)
    channels = features.shape[1]
    if channels not in PUBLISHED:
        yield f"{path}: features, {channels} channels of no known kind"
        yield f"frames: {len(features)}"
        return
    kind = PUBLISHED[channels]
    yield f"{path}: features of {kind.title}, {channels} channels"
    yield show_timing(len(features), kind.fps)
    yield f"joints: {kind.skeleton.joints}"
    if are_in_own_units(features):
        yield "units: their own, not normalized"
    else:
        yield "note: units: normalized, or not known: rotations do not have length 1"


def describe_tokens(path: Path) -> Iterator[str]:
    tokens = read_tokens(path)
    indices, origin = tokens.indices, tokens.origin
    length, layers = indices.shape
    yield f"{path}: {length} tokens of {layers} codes, from {indices.min()} to {indices.max()}"
    if origin is None:
        yield "origin: not known"
        return
    yield f"codebooks: of {origin.codes} codes, digest {origin.books}"
    yield from describe_origin(origin)


def describe_latents(path: Path) -> Iterator[str]:
    latents = read_latents(path)
    length, channels = latents.posterior.mean.shape
    yield f"{path}: {length} continuous latents of {channels} numbers"
    if latents.origin is None:
        yield "origin: not known"
        return
    yield f"model: digest {latents.origin.model[:16]}"
    yield from describe_origin(latents.origin)


def describe_origin(origin: Origin | LatentOrigin) -> Iterator[str]:
    yield show_timing(origin.frames, origin.fps)
    if origin.actor is not None:
        yield from describe_skeleton(origin.actor.skeleton)


def show_timing(frames: int, fps: float) -> str:
    return f"frames: {frames} at {fps:g} per second, {frames / fps:.2f} s"


def describe_checkpoint(path: Path, checkpoint: Checkpoint) -> Iterator[str]:
    config, tensors = checkpoint.config, checkpoint.tensors
    count = sum(t.numel() for n, t in tensors.items() if n.startswith(("encoder.", "decoder.")))
    quantizer = [n for n in tensors if n.startswith("quantizer.")]
    codes = sum(tensors[n].numel() for n in quantizer if not n.endswith(STATISTICS))
    yield f"{path}: {checkpoint.layout.value} layout"
    of_codes = f", {codes:,} of the codes" if quantizer else ""
    yield f"parameters: {count:,} of encoder and decoder{of_codes}"
    yield f"{name_codes(config)}: {describe_token_rate(config)}"
    yield from describe_reach(config)
    if checkpoint.skeleton is not None:
        yield from describe_skeleton(checkpoint.skeleton)
    for name, value in to_json_dict(config).items():
        # Only one of the two networks is used, and a quantizer only by tokenizers.
        parts = ("resnet", "wan", "quantizer")
        if name not in parts or name in (config.network, config.bottleneck):
            nested = isinstance(value, dict)
            shown = ", ".join(f"{key} {x}" for key, x in value.items()) if nested else value
            yield f"{name}: {shown}"
    for note in checkpoint.notes:
        yield f"note: {note}"


def describe_reach(config: RVQVAEConfig) -> Iterator[str]:
    """Describes which frames a token depends on, and the kernels that this follows from."""
    field = receptive_field(config)
    frames = "all frames" if field.frames is None else f"{field.frames} frames"
    ahead = "to the end of the motion" if field.lookahead is None else f"{field.lookahead} frames"
    before, after, tokens_before, tokens_after = (
        "all" if count is None else count
        for count in (
            field.frames_before,
            field.frames_after,
            field.tokens_before,
            field.tokens_after,
        )
    )
    yield (
        f"receptive field: a token sees {frames} ({before} before its own "
        f"{field.frames_of_token} and {after} after), its frames "
        f"{tokens_before} tokens before and {tokens_after} after"
    )
    yield f"look-ahead: {ahead}"
    if config.smoothing.after:
        yield f"delay: a stream gives each frame {config.smoothing.after} frames after its token"
    if config.network == "resnet":
        stages = ", then ".join(" ".join(map(str, stage)) for stage in effective_kernels(config))
        yield f"effective kernels: {stages}"


INFO = Command(
    run,
    add_options,
    "Say what a checkpoint, a motion file, or a file of tokens or latents is, and what was "
    "assumed.",
)
