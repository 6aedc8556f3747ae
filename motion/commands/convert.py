"""Conversion: checkpoints to another layout, motion files to another kind or through features."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from motion.checkpoints import formats
from motion.checkpoints.architecture import PUBLISHED_FEATURES, Untold
from motion.checkpoints.formats import Checkpoint, Layout
from motion.config import FeatureSpec, ResnetConfig, RVQVAEConfig
from motion.errors import MotionError
from motion.features.normalizer import Normalizer
from motion.features.rotations import extract_features, restore_onto
from motion.features.statistics import FeatureStatistics
from motion.files.formats import read_motion, write_motion
from motion.model import RVQVAE
from motion.skeleton.clip import MotionClip
from wanvae.engine.checkpoint import check_tensors

WRITERS = {Layout.NATIVE: formats.save_native, Layout.MOMASK: formats.save_momask}
# Features that tell all of a motion but where it begins.
COMPLETE = FeatureSpec(rot6d="rows")


@dataclass(frozen=True)
class CheckpointReport:
    """What the conversion of a checkpoint did.

    Attributes:
        source: the layout that was read.
        tensors: how many tensors it has, by their native names.
        notes: what was assumed in reading and lost in writing, for people; one sentence each.
    """

    source: Layout
    tensors: int
    notes: tuple[str, ...]


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    target: Layout,
    untold: Untold | None = None,
    statistics: FeatureStatistics | None = None,
) -> CheckpointReport:
    """Write the checkpoint ``source``, of any layout, as ``destination`` in another.

    Args:
        destination: ``.safetensors`` for native, ``.tar`` or ``.pth`` for momask.
        untold: what to take for what the tensors of ``source`` do not tell.
        statistics: by which the model was trained to normalize features, for those whose file does
            not say.

    Raises:
        CheckpointError: ``source`` cannot be read or is no complete model, or ``destination``
            cannot be written, or its layout has no such model. Nothing is written then.
        ValueError: ``statistics`` are of another number of channels.
    """
    checkpoint = load_complete(source, untold)
    config, tensors = checkpoint.config, checkpoint.tensors
    if statistics is not None:
        normalizer = Normalizer(config.channels)
        normalizer.set(statistics)
        tensors = tensors | normalizer.state_dict(prefix="normalizer.")
    WRITERS[target](destination, config, tensors)
    notes = list(checkpoint.notes)
    if statistics is not None:
        notes = [note for note in notes if not note.startswith("normalizer:")]
    if target is Layout.MOMASK:
        notes += lost_in_momask(config)
    return CheckpointReport(checkpoint.layout, len(tensors), tuple(notes))


def load_complete(path: str | os.PathLike[str], untold: Untold | None = None) -> Checkpoint:
    """Read a checkpoint of any layout and check that its tensors are those of its architecture.

    Raises:
        CheckpointError: it cannot be read or is no complete model.
    """
    checkpoint = formats.load(path, untold)
    with torch.device("meta"):
        check_tensors(RVQVAE(checkpoint.config), checkpoint.tensors, path)
    return checkpoint


def lost_in_momask(config: RVQVAEConfig) -> list[str]:
    """Notes on what a momask file does not tell, and its readers do not assume."""
    resnet, assumed = config.resnet, ResnetConfig()
    given = {
        "--activation": (resnet.activation, assumed.activation),
        "--norm": (resnet.norm if resnet.norm != "BN" else None, assumed.norm),
        "--dilation-growth-rate": (resnet.dilation_growth_rate[0], assumed.dilation_growth_rate[0]),
    }
    options = [f"{name} {value}" for name, (value, usual) in given.items() if value != usual]
    lost = ["moving averages of the codes, for training"]
    if options:
        lost.append(f"options, so give {' '.join(options)} to read it")
    if PUBLISHED_FEATURES.get(config.channels) != (config.features, config.fps):
        lost.append("what the features are, so motion files cannot be read")
    return [f"not kept in the momask layout: {what}" for what in lost]


@dataclass(frozen=True)
class MotionReport:
    """What the conversion of a motion file did.

    Attributes:
        frames: how many.
        largest_error: the farthest that a joint is from where it was, metres.
        size: of the skeleton, along its bones between the points furthest apart, metres.
    """

    frames: int
    largest_error: float
    size: float

    @property
    def relative_error(self) -> float:
        """The error in sizes of the skeleton; of a lone joint, which has none, in metres."""
        return self.largest_error / (self.size or 1.0)


def convert_motion(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, roundtrip: bool = False
) -> MotionReport:
    """Write a motion file as one of another kind, read that again, and compare.

    Args:
        roundtrip: make features of the motion, and motion of these, before it is written.

    Raises:
        MotionError: ``source`` cannot be read, or the kind of ``destination`` cannot hold it.
        CheckpointError: ``destination`` cannot be written.
    """
    if roundtrip and Path(source).suffix.lower() != Path(destination).suffix.lower():
        raise MotionError(f"{destination} must end as {source} does, to go there and back")
    clip = read_motion(source)
    write_motion(destination, through_features(clip) if roundtrip else clip)
    written = read_motion(destination)
    errors = (written.pose.positions - clip.pose.positions).norm(dim=-1)
    return MotionReport(len(clip), errors.max().item(), clip.skeleton.span)


def through_features(clip: MotionClip) -> MotionClip:
    """The clip that the features of a clip lead back to."""
    return restore_onto(clip, extract_features(clip, COMPLETE), COMPLETE)
