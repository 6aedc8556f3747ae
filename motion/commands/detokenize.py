"""``wanvae-motion detokenize``: tokens to motion."""

from __future__ import annotations

import os
from dataclasses import replace

from jsonargparse import Namespace
from torch import Tensor

from motion.commands.options import (
    WRITTEN_HELP,
    add_layers_option,
    add_model_options,
    add_reading_options,
    load_tokenizer,
    print_loss,
    read_reading,
)
from motion.commands.skeletons import read_skeleton
from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.evaluate.reconstruction import make_figure
from motion.features.actors import match_file, match_model
from motion.features.recording import (
    Recording,
    check_output,
    find_features_skeleton,
    suffixes_written,
)
from motion.features.rotations import restore_motion
from motion.files.formats import find_suffix
from motion.files.reading import GUESSED, Reading
from motion.model import RVQVAE
from motion.models import MotionModel
from motion.render import FIGURE_SUFFIXES, render
from motion.skeleton.packaged import PACKAGED_SKELETONS
from motion.skeleton.tree import Skeleton
from motion.tokens import Actor, Tokens, check_tokens, read_tokens
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.files import refuse_overwriting


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "input",
        help="tokens: .npz or .safetensors; or .npy of indices (T, Q), (1, T, Q), (1, T) or (T,)",
    )
    parser.add_argument(
        "output",
        help=f"file to write: {WRITTEN_HELP}; .mp4 or .png to look at",
    )
    parser.reads("input", "skeleton")
    parser.writes("output")
    add_layers_option(parser)
    parser.add_argument(
        "--skeleton",
        help="motion file or checkpoint with the skeleton to move (default: the skeleton of the "
        "tokens, else of the model, else a packaged skeleton with the same number of joints)",
    )
    add_reading_options(parser)
    add_model_options(parser, packaged=True)


def run(arguments: Namespace) -> None:
    recording = detokenize_file(
        load_tokenizer(arguments),
        arguments.input,
        arguments.output,
        layers=arguments.layers,
        skeleton=arguments.skeleton,
        reading=read_reading(arguments),
        progress=arguments.progress,
    )
    fps = recording.config.fps
    print(f"{arguments.input} -> {arguments.output}: {len(recording)} frames at {fps:g} per second")
    print_what_is_lost(arguments.output, recording)


def print_what_is_lost(destination: str, recording: Recording) -> None:
    """Prints what a written file does not hold of the features; nothing for a stick figure."""
    if find_suffix(destination) in suffixes_written(recording.config):
        print_loss(recording.describe_loss(destination, recording.features))


def detokenize(
    model: RVQVAE, tokens: Tokens, *, layers: int | None = None, skeleton: Skeleton | None = None
) -> Recording:
    """Returns the motion of tokens.

    Args:
        layers: decode from the first so many layers of the quantizer; None is all.
        skeleton: the skeleton to move, with the joints in any order; None is the skeleton of the
            tokens, else the skeleton of the model, else a packaged one.

    Raises:
        MotionError: the skeleton does not fit the model, or there is none.
    """
    origin = tokens.origin
    frames = None if origin is None else origin.frames
    features = model.decode(tokens.indices[None], frames, layers=layers)[0].cpu()
    actor = None if origin is None else origin.actor
    return make_recording(model, features, actor, skeleton)


def make_recording(
    model: MotionModel, features: Tensor, actor: Actor | None, skeleton: Skeleton | None
) -> Recording:
    """Returns the motion of features ``(T, D)`` that a model decoded.

    Args:
        actor: who moved, if that is known.
        skeleton: the skeleton to move, with the joints in any order; None is the skeleton of the
            actor, else the skeleton of the model, else a packaged one.

    Raises:
        MotionError: there is no skeleton with the joints of the model.
    """
    config = model.config
    if config.features is None:
        skeleton = find_features_skeleton(config)
        return Recording(config=config, features=features, skeleton=skeleton, clip=None)
    if skeleton is None and actor is not None:
        skeleton = actor.skeleton
    elif skeleton is None:
        skeleton = model.skeleton or find_packaged_skeleton(config)
    try:
        matching = match_model(skeleton, config, model.skeleton)
    except MotionError as error:
        raise type(error)(
            f"the skeleton that is to move {error}; give another one with --skeleton"
        ) from None
    arranged = skeleton if matching is None else matching.arranged
    clip = restore_motion(
        features.double(),
        config.features,
        arranged,
        config.fps,
        start=(0.0, 0.0) if actor is None else actor.start,
        start_heading=0.0 if actor is None else actor.heading,
    )
    if actor is not None:
        clip = replace(clip, betas=actor.betas, gender=actor.gender)
    return Recording(
        config=config, features=features, skeleton=arranged, clip=clip, matching=matching
    )


def find_packaged_skeleton(config: RVQVAEConfig) -> Skeleton:
    """Returns the packaged skeleton with as many joints as the features of a model have.

    Raises:
        MotionError: there is none.
    """
    spec = config.features
    for skeleton in PACKAGED_SKELETONS:
        if spec is not None and spec.channels(skeleton.joints) == config.channels:
            return skeleton
    raise MotionError(
        f"the tokens do not say their skeleton, and no packaged skeleton has the joints of "
        f"{config.channels} channels; give a file that has it, --skeleton FILE.bvh"
    )


def detokenize_file(
    model: RVQVAE,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    layers: int | None = None,
    skeleton: str | os.PathLike[str] | None = None,
    reading: Reading = GUESSED,
    progress: bool = False,
) -> Recording:
    """Writes the motion of a file of tokens, as a motion file or as a stick figure.

    Args:
        layers: decode from the first so many layers of the quantizer; None is all.
        skeleton: a motion file, or a checkpoint, with the skeleton to move.
        reading: what the file of the skeleton does not tell.
        progress: show a progress bar while drawing.

    Raises:
        MotionError: ``source`` does not hold tokens of ``model``, or the skeleton does not fit.
        FileError, VideoError: ``destination`` cannot be written, or is ``source`` or ``skeleton``.
    """
    refuse_overwriting(destination, [source, skeleton])
    check_output(destination, model.config, *FIGURE_SUFFIXES)
    tokens = read_tokens(source)
    check_tokens(tokens, model, source)
    chosen = None if skeleton is None else choose_skeleton(skeleton, model, reading)
    recording = detokenize(model, tokens, layers=layers, skeleton=chosen)
    write_recording(destination, recording, progress=progress)
    return recording


def choose_skeleton(path: str | os.PathLike[str], model: MotionModel, reading: Reading) -> Skeleton:
    """Reads the skeleton of a motion file, for a model to move.

    Raises:
        MotionError: the file cannot be read, or its skeleton does not fit the model.
    """
    skeleton = read_skeleton(path, reading)
    if model.config.features is not None:
        advice = (
            "write the motion without --skeleton; then python -m motion convert OUT.bvh YOURS.bvh "
            f"--skeleton {path} moves this skeleton"
        )
        match_file(path, skeleton, model.config, model.skeleton, advice)
    return skeleton


def write_recording(
    destination: str | os.PathLike[str], recording: Recording, *, progress: bool = False
) -> None:
    """Writes a recording as a motion file or as a stick figure, as the suffix says.

    Args:
        progress: show a progress bar while drawing.

    Raises:
        FileError, VideoError: the file cannot be written.
    """
    if find_suffix(destination) in suffixes_written(recording.config):
        recording.write(destination, recording.features)
    else:
        figure = make_figure(recording, recording.features)
        render(destination, [figure], recording.config.fps, progress=progress)


DETOKENIZE = Command(
    run,
    add_options,
    "Write the motion of a file of tokens, or of the indices of another program. If the features "
    "have no root, as the 330 channels of BEAT2, the motion stays where it began.",
)
