"""``wanvae-motion convert``: a checkpoint to another layout, a motion file to another format."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jsonargparse import Namespace

from motion.checkpoints import formats
from motion.checkpoints.architecture import PUBLISHED_FEATURES, Untold
from motion.checkpoints.formats import Checkpoint, Layout
from motion.commands.convert_joints import convert_from_joints, convert_to_features, read_clip
from motion.commands.options import (
    add_reading_options,
    add_untold_options,
    read_reading,
    read_untold,
)
from motion.commands.skeletons import read_skeleton
from motion.config import FeatureSpec, ResnetConfig, RVQVAEConfig
from motion.errors import MotionError
from motion.features.channels import check_skeleton
from motion.features.feature_files import SUFFIX as ARRAY
from motion.features.normalizer import Normalizer
from motion.features.published import NAMES
from motion.features.rotations import extract_features, restore_onto
from motion.features.statistics import FeatureStatistics
from motion.files.arrays import read_array
from motion.files.formats import (
    READERS,
    check_suffix,
    match_packaged,
    read_motion,
    write_motion,
)
from motion.files.formats import WRITERS as MOTION_WRITERS
from motion.files.joints import SUFFIX as JOINTS_SUFFIX
from motion.files.joints import describe_lost_rate
from motion.files.reading import GUESSED, Reading
from motion.models import make_model
from motion.skeleton.clip import MotionClip
from motion.skeleton.packaged import PACKAGED_SKELETONS
from motion.skeleton.retarget import Retargeted, retarget_with_report
from motion.skeleton.tree import Skeleton
from wanvae.engine.checkpoint import check_tensors
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.config import check
from wanvae.engine.files import atomic_path, refuse_overwriting
from wanvae.engine.text import first_few
from wanvae.errors import UserError

LAYOUTS = (Layout.NATIVE, Layout.MOMASK)
# These features hold all of a motion except where it begins.
COMPLETE = FeatureSpec(rot6d="rows")
# Of a joint in a written file, divided by the size of the skeleton. Rounding is far below.
LARGEST_ERROR = 1e-3


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "input",
        help="checkpoint of any layout; .bvh, .npz of SMPL-X, SMPL+H or SMPL, .pkl of AIST++; .npy "
        "of joints (T, 22, 3) or (T, 21, 3), or of features of HumanML3D, KIT or MotionStreamer",
    )
    parser.add_argument(
        "output",
        help="file to write: .safetensors (native), .tar or .pth (momask); "
        f"{', '.join(MOTION_WRITERS)}; .npy of features",
    )
    parser.reads("input", "mean", "std", "skeleton", "target")
    parser.writes("output", formats.files_beside_momask)
    layouts = [layout.value for layout in LAYOUTS]
    parser.add_argument("--to", choices=layouts, help="layout of the checkpoint to write")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            help=".npy that the features of a published checkpoint are normalized with, like "
            "Mean.npy and Std.npy of HumanML3D",
        )
    parser.add_argument(
        "--skeleton",
        help="motion file or checkpoint with the skeleton to move as the input moves; or, for a "
        "checkpoint that does not hold one, motion that it was trained on",
    )
    parser.add_argument(
        "--path-rounds",
        type=int,
        help="how often the converted model feeds errors of path and heading back when it encodes "
        "(default: as before)",
    )
    parser.add_argument(
        "--roundtrip",
        action="store_true",
        help="turn a motion into features and back, and say how large the error is",
    )
    parser.add_argument(
        "--features",
        choices=list(NAMES),
        help="write features of HumanML3D (263 channels), KIT (251) or MotionStreamer (272)",
    )
    parser.add_argument(
        "--target",
        help="file of joints or features of the data set, whose bone lengths the features of "
        "HumanML3D or KIT get (default: the lengths of the motion)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        help="frames per second of a .npy file (default: as published for its joints or features)",
    )
    add_reading_options(parser)
    add_untold_options(parser)


def run(arguments: Namespace) -> None:
    suffix = Path(arguments.input).suffix.lower()
    motion_file = suffix in READERS or suffix == ARRAY
    if Path(arguments.input).is_dir() and arguments.to is None:
        raise UserError(
            f"{arguments.input} is a folder; name one file of it, and convert each alone"
        )
    if refuses_options(arguments) if motion_file else misses_layout(arguments):
        raise UserError(
            f"{arguments.input}: a checkpoint needs --to and takes no --roundtrip; a motion file "
            f"({' or '.join(READERS)}) takes --skeleton, --roundtrip or --features alone, and "
            "--target and --fps"
        )
    check_joint_options(arguments, suffix)
    joints = suffix == ARRAY and arguments.skeleton is None
    if motion_file and (arguments.features is not None or joints):
        show_joint_conversion(arguments)
    elif motion_file:
        show_motion_conversion(arguments)
    else:
        show_checkpoint_conversion(arguments)


def refuses_options(arguments: Namespace) -> bool:
    """Whether options are given that a motion file does not take, or not together."""
    rounds = arguments.path_rounds is not None
    if any([arguments.to, arguments.mean, arguments.std, rounds, *read_untold(arguments).given]):
        return True
    return arguments.skeleton is not None and any([arguments.roundtrip, arguments.features])


def misses_layout(arguments: Namespace) -> bool:
    """Whether --to is missing for a checkpoint, or options of motion files are given with it."""
    others = [arguments.roundtrip, arguments.features, arguments.target, arguments.fps]
    return arguments.to is None or any(others)


def show_checkpoint_conversion(arguments: Namespace) -> None:
    report = convert_checkpoint(
        arguments.input,
        arguments.output,
        Layout(arguments.to),
        read_untold(arguments),
        read_statistics(arguments),
        find_skeleton(arguments),
        arguments.path_rounds,
    )
    print(f"{report.source.value} to {arguments.to}: {report.tensors} tensors")
    for note in report.notes:
        print(f"note: {note}")


def check_joint_options(arguments: Namespace, suffix: str) -> None:
    """Raises UserError if options of joints and features do not go together."""
    if arguments.target is not None and arguments.features not in ("humanml3d", "kit"):
        raise UserError("--target is for --features humanml3d or kit; leave it out")
    if arguments.fps is not None:
        check(suffix == ARRAY, "--fps", arguments.fps, "for .npy files; other files tell it")
        check(0 < arguments.fps < float("inf"), "--fps", arguments.fps, "above 0")
    if arguments.roundtrip and (suffix == ARRAY or arguments.features is not None):
        raise UserError("--roundtrip is for motion files, without --features; leave it out")


def show_joint_conversion(arguments: Namespace) -> None:
    source, destination, reading = arguments.input, arguments.output, read_reading(arguments)
    if arguments.features is None:
        report = convert_from_joints(source, destination, reading=reading, fps=arguments.fps)
    else:
        report = convert_to_features(
            source,
            destination,
            arguments.features,
            target=arguments.target,
            reading=reading,
            fps=arguments.fps,
        )
    print(f"{source} -> {destination}: {report.frames} frames at {report.fps:g} per second")
    for note in report.notes:
        print(f"note: {note}")


def show_motion_conversion(arguments: Namespace) -> None:
    if arguments.skeleton is not None:
        show_retargeting(arguments)
        return
    report = convert_motion(
        arguments.input,
        arguments.output,
        roundtrip=arguments.roundtrip,
        reading=read_reading(arguments),
    )
    error = ""
    if report.largest_error is not None:
        error = (
            f", largest joint error {report.largest_error * 1000:.3g} mm, "
            f"{report.relative_error:.2g} of the skeleton's size"
        )
    print(f"{arguments.input} -> {arguments.output}: {report.frames} frames{error}")
    for note in report.notes:
        print(f"note: {note}")


def show_retargeting(arguments: Namespace) -> None:
    moved, notes = retarget_file(
        arguments.input,
        arguments.output,
        arguments.skeleton,
        read_reading(arguments),
        fps=arguments.fps,
    )
    clip, plan, feet = moved.clip, moved.plan, moved.feet
    skeletons = f"{plan.source.joints} joints to {plan.target.joints}"
    print(f"{arguments.input} -> {arguments.output}: {len(clip)} frames, {skeletons}")
    for note in notes:
        print(f"note: {note}")
    print(f"the path is {plan.scale:.3g} times as long, as the legs are")
    if plan.at_rest:
        print(f"note: stay at rest, because {arguments.input} has no such joints: ", end="")
        print(first_few(plan.at_rest))
    if feet is None:
        print("note: feet are not corrected, because their names are not known")
        return
    print(
        f"standing feet: {feet.height_mm[1]:.1f} mm from their height in the original "
        f"({feet.height_mm[0]:.1f} mm before correction), sliding at {feet.slide_m_s[1]:.3f} m/s "
        f"({feet.slide_m_s[0]:.3f} before, {feet.source_slide_m_s:.3f} in the original)"
    )


def read_statistics(arguments: Namespace) -> FeatureStatistics | None:
    """Reads the statistics of ``--mean`` and ``--std``; None without them."""
    paths = arguments.mean, arguments.std
    if None not in paths:
        return FeatureStatistics(*(read_array(Path(path), ndim=1) for path in paths))
    if any(paths):
        raise UserError("--mean and --std belong together; give both")
    return None


@dataclass(frozen=True)
class CheckpointReport:
    """The result of the conversion of a checkpoint.

    Attributes:
        source: the layout that was read.
        tensors: the number of tensors, by their native names.
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
    skeleton: Skeleton | None = None,
    path_rounds: int | None = None,
) -> CheckpointReport:
    """Writes a checkpoint of any layout in another layout.

    Args:
        source: the checkpoint to read.
        destination: ``.safetensors`` for native, ``.tar`` or ``.pth`` for momask. It may be
            ``source`` itself.
        untold: what to assume where the tensors of ``source`` do not tell it.
        statistics: the mean and standard deviation that the features of the model are normalized
            with, if the file of ``source`` does not hold them.
        skeleton: the skeleton whose motion the model knows, in place of the one in ``source``.
        path_rounds: replaces ``path_rounds`` of the config; None keeps it.

    Raises:
        CheckpointError: ``source`` cannot be read or is not a complete model, ``destination``
            cannot be written, or its layout has no such model. Then nothing is written.
        UserError: ``statistics`` have another number of channels, or ``skeleton`` has another
            number of joints, or the model cannot have ``path_rounds``.
    """
    checkpoint = load_complete(source, untold)
    config, tensors = checkpoint.config, checkpoint.tensors
    if path_rounds is not None:
        config = replace(config, path_rounds=path_rounds)
    if statistics is not None:
        normalizer = Normalizer(config.channels)
        normalizer.set(statistics)
        tensors = tensors | normalizer.state_dict(prefix="normalizer.")
    if skeleton is not None:
        check_skeleton(config, skeleton)
    notes = list(checkpoint.notes)
    for given, what in ((statistics, "normalizer:"), (skeleton, "skeleton:")):
        if given is not None:
            notes = [note for note in notes if not note.startswith(what)]
    skeleton = skeleton or checkpoint.skeleton
    if target is Layout.MOMASK:
        formats.save_momask(destination, config, tensors)
        notes += lost_in_momask(config, skeleton)
    else:
        formats.save_native(destination, config, tensors, skeleton)
    return CheckpointReport(checkpoint.layout, len(tensors), tuple(notes))


def load_complete(path: str | os.PathLike[str], untold: Untold | None = None) -> Checkpoint:
    """Reads a checkpoint of any layout, and checks that its tensors fit its architecture.

    Raises:
        CheckpointError: the file cannot be read, or is not a complete model.
    """
    checkpoint = formats.load(path, untold)
    with torch.device("meta"):
        check_tensors(make_model(checkpoint.config), checkpoint.tensors, path)
    return checkpoint


def find_skeleton(arguments: Namespace) -> Skeleton | None:
    """Reads the skeleton of ``--skeleton``; None without it.

    The joints have the order that models of earlier versions have them in.
    """
    if arguments.skeleton is None:
        return None
    skeleton = read_skeleton(arguments.skeleton, read_reading(arguments))
    packaged = match_packaged(skeleton)
    return skeleton if packaged is None else packaged.arranged


def lost_in_momask(config: RVQVAEConfig, skeleton: Skeleton | None) -> list[str]:
    """Returns notes on what a momask file does not hold and its readers do not assume."""
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
    elif skeleton not in (None, *PACKAGED_SKELETONS):
        lost.append("the skeleton")
    if config.path_rounds:
        lost.append("path_rounds, so tokens of long motion drift")
    return [f"not kept in the momask layout: {what}" for what in lost]


@dataclass(frozen=True)
class MotionReport:
    """The result of the conversion of a motion file.

    Attributes:
        frames: the number of frames.
        largest_error: the largest distance of a joint from its original position, metres; None for
            files that are only written.
        size: the length along the bones between the two points furthest apart, metres.
        notes: what is not kept, for people; one sentence each.
    """

    frames: int
    largest_error: float | None
    size: float
    notes: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float:
        """The largest error divided by the size; in metres if the skeleton is one point."""
        return (self.largest_error or 0.0) / (self.size or 1.0)


def convert_motion(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    roundtrip: bool = False,
    reading: Reading = GUESSED,
) -> MotionReport:
    """Writes a motion file in another format; if such files can be read, reads it and compares.

    Args:
        roundtrip: turn the motion into features and back before it is written.
        reading: what ``source`` does not tell.

    Raises:
        MotionError: ``source`` cannot be read, the format of ``destination`` cannot hold it, or
            one would read another motion from ``destination``. Then nothing is written.
        FileError: ``destination`` cannot be written, or is ``source``.
    """
    refuse_overwriting(destination, [source])
    if roundtrip and Path(source).suffix.lower() != Path(destination).suffix.lower():
        raise MotionError(f"{destination} must end as {source} does, to go there and back")
    clip = read_motion(source, reading)
    # Nothing guesses a unit that somebody had to name.
    suffix = check_suffix(Path(destination), MOTION_WRITERS)
    told = Reading(unit=clip.skeleton.unit) if suffix == ".bvh" else GUESSED
    if suffix not in READERS:
        MOTION_WRITERS[suffix](Path(destination), clip)
        notes = lost_in_writing(clip, None)
        if suffix == JOINTS_SUFFIX:
            notes += (describe_lost_rate(clip.fps),)
        return MotionReport(len(clip), None, clip.skeleton.span, notes)
    with atomic_path(destination) as temporary:
        write_motion(temporary, pass_through_features(clip) if roundtrip else clip)
        written = read_motion(temporary, told)
        errors = (written.pose.positions - clip.pose.positions).norm(dim=-1)
        notes, largest = lost_in_writing(clip, written), errors.max().item()
        report = MotionReport(len(clip), largest, clip.skeleton.span, notes)
        if report.relative_error > LARGEST_ERROR:
            raise MotionError(
                f"{destination} is not written: a joint would be up to "
                f"{largest * 1000:.3g} mm away from its place, "
                f"{report.relative_error:.2g} of the skeleton's size"
            )
    return report


def retarget_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    skeleton: str | os.PathLike[str],
    reading: Reading = GUESSED,
    *,
    fps: float | None = None,
) -> tuple[Retargeted, tuple[str, ...]]:
    """Writes the motion of a file as motion of another skeleton.

    Args:
        source: a motion file, or a .npy file of joints or features; see ``read_joint_motion``.
        skeleton: a motion file or a checkpoint with the skeleton to move.
        reading: what ``source`` does not tell.
        fps: frames per second of a .npy file; by default as published.

    Returns:
        The motion, and sentences on what was assumed of a .npy file.

    Raises:
        MotionError: a file cannot be read, the skeletons do not fit, or the format of
            ``destination`` cannot hold the motion.
        CheckpointError: the checkpoint cannot be read.
        FileError: ``destination`` cannot be written, or is another of the files.
    """
    refuse_overwriting(destination, [source, skeleton])
    check_suffix(Path(destination), MOTION_WRITERS)
    clip, notes = read_clip(source, reading, fps)
    try:
        moved = retarget_with_report(clip, read_skeleton(skeleton))
    except MotionError as error:
        raise MotionError(f"{source} with the skeleton of {skeleton}: {error}") from None
    write_motion(destination, moved.clip)
    return moved, notes


def lost_in_writing(clip: MotionClip, written: MotionClip | None) -> tuple[str, ...]:
    """Returns notes on what a clip has beside its motion, and what is written of it has not.

    Args:
        written: the clip as it is read again; None for files that hold motion alone.
    """
    lost = []
    expressions = None if written is None else written.expressions
    if clip.expressions is not None and clip.expressions.any() and expressions is None:
        lost.append("facial expressions")
    if any(clip.betas) and not (written and written.betas):
        lost.append("shape parameters (betas)")
    return tuple(f"not kept: {what}" for what in lost)


def pass_through_features(clip: MotionClip) -> MotionClip:
    """Turns a clip into features and back."""
    return restore_onto(clip, extract_features(clip, COMPLETE), COMPLETE)


CONVERT = Command(
    run,
    add_options,
    "Write a checkpoint in another layout, a motion file in another format, or the motion of "
    "another skeleton.",
)
