"""``wanvae-motion evaluate``: how close the reconstructions of many files are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from motion.commands.options import (
    MOTION_HELP,
    PACKAGED,
    add_model_options,
    add_reading_options,
    add_retarget_option,
    load_model,
    print_ignored,
    read_model_reading,
    report_failures,
)
from motion.errors import MotionError
from motion.evaluate.evaluators.judging import judge
from motion.evaluate.evaluators.loading import Evaluators, load_evaluators
from motion.evaluate.feature_space import (
    evaluate_feature_folder,
    make_feature_table,
    write_feature_figures,
)
from motion.evaluate.folder import FolderEvaluation, evaluate_folder
from motion.evaluate.page import FigureLimits, write_evaluation_page
from motion.evaluate.report import describe_judgement, make_table, write_figures
from motion.features.humanml3d import read_names
from motion.features.recording import find_features_skeleton
from motion.models import MotionModel
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.config import check
from wanvae.engine.devices import device_of, launched_processes
from wanvae.engine.files import make_directory
from wanvae.engine.locking import locked_by_run

if TYPE_CHECKING:
    from accelerate import PartialState


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of such files")
    parser.add_argument(
        "--output", help="folder for report.html, evaluation.json and evaluation.csv"
    )
    parser.reads("input")
    parser.writes("output")
    parser.add_argument(
        "--figures",
        type=int,
        default=20,
        help="number of files to show in the report, from the largest error to the smallest",
    )
    parser.add_argument(
        "--figure-frames",
        type=int,
        default=600,
        help="number of frames to show of each file, where its error is the largest",
    )
    parser.add_argument(
        "--window",
        type=int,
        help="count the codes of all windows of so many frames (default: of whole files)",
    )
    parser.add_argument(
        "--names", help="text file of the names of the files to take, like test.txt of HumanML3D"
    )
    parser.add_argument(
        "--evaluators",
        help="folder of the published evaluators of HumanML3D or KIT (with text_mot_match): FID, "
        "diversity, and with --texts R-precision and MM-distance",
    )
    parser.add_argument("--texts", help="folder of the texts of the motions, as in HumanML3D")
    parser.reads("names", "evaluators", "texts")
    add_reading_options(parser)
    add_retarget_option(parser)
    add_model_options(parser, packaged=True)


def run(arguments: Namespace) -> None:
    window, progress = arguments.window, arguments.progress
    if window is not None:
        check(window >= 1, "--window", window, "at least 1 frame")
    limits = FigureLimits(files=arguments.figures, frames=arguments.figure_frames)
    check(limits.files >= 0, "--figures", limits.files, "at least 0")
    check(limits.frames >= 1, "--figure-frames", limits.frames, "at least 1")
    if arguments.texts is not None:
        check(arguments.evaluators is not None, "--texts", arguments.texts, "with --evaluators")
        check(Path(arguments.texts).is_dir(), "--texts", arguments.texts, "a folder")
    names = None if arguments.names is None else read_names(Path(arguments.names))
    refusal: MotionError | None = None
    with ExitStack() as held:
        if arguments.output is not None:
            make_directory(arguments.output)
        with launched_processes(arguments.device) as processes:
            if arguments.output is not None:
                held.enter_context(locked_by_run(Path(arguments.output)))
            model = load_model(arguments, device_of(processes))
            if find_features_skeleton(model.config) is None and model.config.features is None:
                show_features(arguments, model, processes)
                return
            evaluators = load_given_evaluators(arguments, model)
            evaluation = evaluate_folder(
                model,
                arguments.input,
                processes,
                window=window,
                reading=read_model_reading(arguments),
                names=names,
                progress=progress,
            )
            if evaluators is not None:
                try:
                    judgement = judge(
                        model,
                        evaluators,
                        [file.path for file in evaluation.files],
                        processes,
                        texts=None if arguments.texts is None else Path(arguments.texts),
                        progress=progress,
                    )
                    evaluation = replace(evaluation, judgement=judgement)
                except MotionError as error:
                    # What is measured already took long, and is written and printed before.
                    refusal = error
            if not processes.is_main_process:
                return
        if arguments.output is not None:
            write_report(arguments, model, evaluation, limits)
    if arguments.checkpoint is None:
        print(f"note: without --checkpoint, the errors are of {PACKAGED}")
    for line in make_table(evaluation.whole):
        print(line)
    if evaluation.judgement is not None:
        for line in describe_judgement(evaluation.judgement):
            print(line)
    print_ignored(evaluation.ignored)
    if names and evaluation.missing:
        print(f"note: {evaluation.missing} of the {len(names)} files of --names are not there")
    if refusal is not None:
        raise refusal
    untold = () if evaluation.judgement is None else evaluation.judgement.failures
    report_failures([*evaluation.failures, *untold], len(evaluation.files) - len(untold))


def show_features(arguments: Namespace, model: MotionModel, processes: PartialState) -> None:
    """Evaluates a model of features that are not known: in all processes, and one prints."""
    for name in ("evaluators", "names"):
        given = getattr(arguments, name)
        check(given is None, f"--{name}", given, "left out for features that are not known")
    evaluation = evaluate_feature_folder(
        model,
        arguments.input,
        processes,
        window=arguments.window,
        progress=arguments.progress,
    )
    if not processes.is_main_process:
        return
    if arguments.output is not None:
        write_feature_figures(arguments.output, evaluation, arguments.checkpoint)
        print("no report.html is written, because there are no joints to draw")
    for line in make_feature_table(evaluation.whole):
        print(line)
    print_ignored(evaluation.ignored)
    report_failures(evaluation.failures, len(evaluation.files))


def load_given_evaluators(arguments: Namespace, model: MotionModel) -> Evaluators | None:
    """Loads the evaluators of ``--evaluators``; None without it."""
    if arguments.evaluators is None:
        return None
    return load_evaluators(
        arguments.evaluators,
        model.config.channels,
        texts=arguments.texts is not None,
        device=model.device,
    )


def write_report(
    arguments: Namespace, model: MotionModel, evaluation: FolderEvaluation, limits: FigureLimits
) -> None:
    """Writes the files of ``--output``. The page comes last because it can take long."""
    checkpoint, folder = arguments.checkpoint or PACKAGED, Path(arguments.output)
    write_figures(folder, evaluation, checkpoint)
    page, progress = folder / "report.html", arguments.progress
    try:
        write_evaluation_page(page, model, evaluation, checkpoint, limits, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "evaluation.json and evaluation.csv are complete, report.html was not written"
        ) from None


EVALUATE = Command(
    run,
    add_options,
    "Reconstruct a motion file, or all motion files of a folder, with each number of layers. Say "
    "how close the results are, whether they jerk, whether feet slide, and how the layers use "
    "their codes. Files that cannot be read are named and left out. Several processes (accelerate "
    "launch -m motion evaluate ...) share a folder.",
)
