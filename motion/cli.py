"""The command line, ``wanvae-motion``: tokenize, detokenize, reconstruct, evaluate and others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

import motion
from motion.checkpoints.formats import Layout
from motion.commands import options
from motion.commands.convert import convert_checkpoint, convert_motion
from motion.commands.describe import describe_file
from motion.commands.folders import FolderEvaluation, FolderReport, evaluate_folder, tokenize_folder
from motion.commands.options import untold
from motion.commands.pipeline import detokenize_file, reconstruct_file, render_file, tokenize_file
from motion.evaluate.page import FigureLimits, write_evaluation_page
from motion.evaluate.report import table_of, write_figures
from motion.features.statistics import FeatureStatistics
from motion.files.arrays import read_array
from motion.files.clips import READERS, write_clip
from motion.model import RVQVAE
from motion.skeleton.sample import walk
from wanvae.engine.command_line.program import Command, Program
from wanvae.engine.config import check
from wanvae.engine.devices import check_device, default_device, device_of, launched_processes
from wanvae.engine.files import make_directory
from wanvae.errors import UserError


def sample(arguments: Namespace) -> None:
    clip = walk(arguments.frames, arguments.fps)
    write_clip(arguments.output, clip)
    print(f"{arguments.output}: {len(clip)} frames of {clip.skeleton.joints} joints")


def info(arguments: Namespace) -> None:
    for line in describe_file(arguments.file, untold(arguments)):
        print(line)


def tokenize(arguments: Namespace) -> None:
    source, target = arguments.input, arguments.output
    if not Path(source).is_dir():
        tokens = tokenize_file(load_model(arguments), source, target)
        length, layers = tokens.indices.shape
        print(f"{source} -> {target}: {length} tokens of {layers} codes")
        return
    with launched_processes(arguments.device) as processes:
        model = load_model(arguments, device_of(processes))
        suffix = f".{arguments.format}"
        try:
            report = tokenize_folder(
                model, source, target, suffix, processes, progress=arguments.progress
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "files that were written are complete; run it again to go on from there"
            ) from None
        # One process speaks, and fails, for all.
        if processes.is_main_process:
            report_folder(f"{source} -> {target}", report)


def report_folder(name: str, report: FolderReport) -> None:
    print(f"{name}: {report.written} files of tokens written, {report.kept} were there")
    name_failures(report.failures, report.written + report.kept)


def name_failures(failures: Sequence[str], others: int) -> None:
    """Say which files were left out; ValueError if there are any."""
    for line in failures:
        print(f"left out: {line}")
    if failures:
        count = len(failures)
        raise UserError(f"{count} of {count + others} files cannot be read")


def detokenize(arguments: Namespace) -> None:
    recording = detokenize_file(
        load_model(arguments),
        arguments.input,
        arguments.output,
        layers=arguments.layers,
        skeleton=arguments.skeleton,
        progress=arguments.progress,
    )
    fps = recording.config.fps
    print(f"{arguments.input} -> {arguments.output}: {len(recording)} frames at {fps:g} per second")


def reconstruct(arguments: Namespace) -> None:
    model = load_model(arguments)
    report = reconstruct_file(model, arguments.input, arguments.output, layers=arguments.layers)
    rate = f"{report.fps:g} per second"
    if report.file_fps not in (None, report.fps):
        rate += f" (converted from {report.file_fps:g})"
    print(f"{arguments.input} -> {arguments.output}: {report.frames} frames at {rate}")
    print(f"MPJPE {report.mpjpe:.2f} mm, rotation error {report.rotation_error:.3f} degrees")
    used = ", ".join(map(str, report.used))
    codes = model.config.quantizer.codes
    print(f"{report.tokens} tokens; codes that they use of the {codes} of each layer: {used}")


def evaluate(arguments: Namespace) -> None:
    window, progress = arguments.window, arguments.progress
    if window is not None:
        check(window >= 1, "--window", window, "at least 1 frame")
    limits = FigureLimits(files=arguments.figures, frames=arguments.figure_frames)
    check(limits.files >= 0, "--figures", limits.files, "at least 0")
    check(limits.frames >= 1, "--figure-frames", limits.frames, "at least 1")
    if arguments.output is not None:
        make_directory(arguments.output)
    with launched_processes(arguments.device) as processes:
        model = load_model(arguments, device_of(processes))
        evaluation = evaluate_folder(
            model, arguments.input, processes, window=window, progress=progress
        )
        if not processes.is_main_process:
            return
    if arguments.output is not None:
        write_report(arguments, model, evaluation, limits)
    for line in table_of(evaluation.whole):
        print(line)
    name_failures(evaluation.failures, len(evaluation.files))


def write_report(
    arguments: Namespace, model: RVQVAE, evaluation: FolderEvaluation, limits: FigureLimits
) -> None:
    """The files of ``--output``; the page comes last, for it can take long."""
    checkpoint, folder = arguments.checkpoint, Path(arguments.output)
    write_figures(folder, evaluation, checkpoint)
    page, progress = folder / "report.html", arguments.progress
    try:
        write_evaluation_page(page, model, evaluation, checkpoint, limits, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "evaluation.json and evaluation.csv are complete, report.html was not written"
        ) from None


def render(arguments: Namespace) -> None:
    model = None if arguments.checkpoint is None else load_model(arguments)
    render_file(arguments.input, arguments.output, model, progress=arguments.progress)
    print(f"{arguments.input} -> {arguments.output}")


def convert(arguments: Namespace) -> None:
    motion_file = Path(arguments.input).suffix.lower() in READERS
    given = [arguments.to, arguments.mean, arguments.std, *untold(arguments).given]
    if any(given) if motion_file else arguments.to is None or arguments.roundtrip:
        raise UserError(
            f"{arguments.input}: a checkpoint needs --to and takes no --roundtrip, a motion file "
            f"({' or '.join(READERS)}) takes that alone"
        )
    if motion_file:
        show_motion_conversion(arguments)
    else:
        show_checkpoint_conversion(arguments)


def show_checkpoint_conversion(arguments: Namespace) -> None:
    report = convert_checkpoint(
        arguments.input,
        arguments.output,
        Layout(arguments.to),
        untold(arguments),
        read_statistics(arguments),
    )
    print(f"{report.source.value} to {arguments.to}: {report.tensors} tensors")
    for note in report.notes:
        print(f"note: {note}")


def show_motion_conversion(arguments: Namespace) -> None:
    report = convert_motion(arguments.input, arguments.output, roundtrip=arguments.roundtrip)
    print(
        f"{arguments.input} -> {arguments.output}: {report.frames} frames, largest joint error "
        f"{report.largest_error * 1000:.3g} mm, {report.relative_error:.2g} of the "
        "skeleton's size"
    )


def read_statistics(arguments: Namespace) -> FeatureStatistics | None:
    paths = arguments.mean, arguments.std
    if None not in paths:
        return FeatureStatistics(*(read_array(Path(path), ndim=1) for path in paths))
    if any(paths):
        raise UserError("--mean and --std belong together; give both")
    return None


def load_model(arguments: Namespace, default: str | None = None) -> RVQVAE:
    """The model of a checkpoint, on the device asked for, or else on the default one."""
    device = arguments.device or default or default_device()
    check_device(device)
    given = untold(arguments).given
    return RVQVAE.from_pretrained(arguments.checkpoint, **given, device=device)


COMMANDS = {
    "sample": Command(
        sample,
        options.add_sample_options,
        "a walk, for when there is no recording at hand",
        "Write a procedural walk of the packaged skeleton, on SMPL-X's joints.",
    ),
    "info": Command(
        info,
        options.add_info_options,
        "what a file is",
        "Say what a checkpoint, a motion file or a file of tokens is, and what had to be assumed.",
    ),
    "tokenize": Command(
        tokenize,
        options.add_tokenize_options,
        "motion to tokens",
        "Write the tokens of a motion file, or of all motion files of a folder to the same tree of "
        "another. Files of a folder that cannot be read are named and left out. Run it again to go "
        "on after an interruption: tokens that are there and of this checkpoint are kept. Several "
        "processes (accelerate launch -m motion tokenize ...) share a folder.",
    ),
    "detokenize": Command(
        detokenize,
        options.add_detokenize_options,
        "tokens to motion",
        "Write the motion of a file of tokens, or of the indices of another program. Features "
        "without a root, like the 330 channels of BEAT2, stay where the motion began.",
    ),
    "reconstruct": Command(
        reconstruct,
        options.add_reconstruct_options,
        "motion to tokens and back, and compare",
        "Tokenize and detokenize a motion file, and say how close the result is. Features without "
        "a root take its path from the file.",
    ),
    "evaluate": Command(
        evaluate,
        options.add_evaluate_options,
        "errors and code use over many files, as a page",
        "Reconstruct a motion file, or all of a folder, with each number of layers, and say how "
        "close the results are, whether they jerk and feet slide, and how the layers use their "
        "codes. Files that cannot be read are named and left out. Several processes (accelerate "
        "launch -m motion evaluate ...) share a folder.",
    ),
    "render": Command(
        render,
        options.add_render_options,
        "motion to a video of a stick figure",
        "Draw a motion file as a stick figure, with a checkpoint beside its reconstruction: as a "
        "video, or as a picture of some frames.",
    ),
    "convert": Command(
        convert,
        options.add_convert_options,
        "checkpoint to another layout, motion to another kind",
        "Write a checkpoint in another layout, or a motion file as one of another kind.",
    ),
}


def train(arguments: Sequence[str], program: str) -> int:
    # Imported here, for no other command needs what it does.
    from motion.train import run

    return run.main(arguments, program)


PROGRAM = Program(
    name="wanvae-motion",
    version=motion.__version__,
    description=motion.__doc__,
    commands=COMMANDS,
    train=train,
    training="train or fine-tune a tokenizer",
    out_of_memory="try shorter motion or another --device",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
