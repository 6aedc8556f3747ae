"""The evaluation of models on a folder of videos, from the files to the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import wanvae
from wanvae.config import encodes_alpha
from wanvae.engine.digest import digest_of_file
from wanvae.engine.output_folder import refuse_nested, take_folder
from wanvae.engine.processes import run_on_first_process
from wanvae.engine.storage.remote_path import Location, location
from wanvae.errors import UserError
from wanvae.evaluate.models import Judged
from wanvae.evaluate.page import write_report
from wanvae.evaluate.run import TRIALS, Judging, Outcome, run_trials
from wanvae.evaluate.settings import EVALUATION, SETTINGS, EvaluationOptions, EvaluationSettings
from wanvae.evaluate.summary import (
    FEWEST_WINDOWS,
    Evaluation,
    length_group,
    summarize,
    write_evaluation,
)
from wanvae.evaluate.trials import TrialList, find_trials
from wanvae.metrics.frechet import I3D, WINDOW
from wanvae.metrics.lpips import Lpips
from wanvae.video.reading.hardware import check_hardware
from wanvae.video.reading.options import parse_options, refuse_background

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class Networks:
    """The networks that figures need, besides the judged models.

    Attributes:
        lpips: network of LPIPS, or why there is none.
        i3d: network of rFVD; None leaves rFVD out.
    """

    lpips: Lpips | str
    i3d: I3D | None


def evaluate(
    models: Sequence[Judged],
    networks: Networks,
    source: str | PathLike[str],
    output: str | PathLike[str],
    options: EvaluationOptions,
    processes: PartialState,
    *,
    hwaccel: str | None = None,
    progress: bool = False,
) -> Evaluation | None:
    """Judges models on a folder of videos. Trials that are done already are kept.

    Args:
        source: a folder, its manifest, or a file; on a disk or at an address.
        output: a new folder, or the folder of an earlier run with the same settings.
        processes: the processes of the run. All of them call this function and share the work.
        hwaccel: the device that decodes videos, as in ``ReadOptions``.
        progress: show a progress bar with the frames of the first process.

    Returns:
        The results in the first process, which writes the reports; None in the others.

    Raises:
        VideoError: the background is no colour, or there is no device ``hwaccel``.
        UserError: there is nothing to judge, no clip can be read, or ``output`` holds something
            else, lies in ``source``, or another job works in it.
        FileError: a file cannot be written.
    """
    source, output = location(source), Path(output)
    reading = parse_options(
        deinterlace=options.deinterlace, background=options.background, hwaccel=hwaccel
    )
    check_hardware(hwaccel)
    alpha = common_alpha(models)
    refuse_background(options.background, alpha=alpha)
    settings = EvaluationSettings(
        options=options,
        source=str(source.resolve()),
        models=tuple(model.facts for model in models),
        lpips=isinstance(networks.lpips, Lpips),
        i3d=None if networks.i3d is None else digest_of_file(networks.i3d.path),
    )
    with ExitStack() as held:
        found = run_on_first_process(lambda: prepare(source, output, options, settings, held))
        judging = Judging(
            models=models,
            lpips=networks.lpips if isinstance(networks.lpips, Lpips) else None,
            i3d=networks.i3d,
            media_seconds=options.media_seconds,
            reading=reading,
            alpha=alpha,
            device=models[0].vae.device,
        )
        outcome = run_trials(judging, found, output, processes, progress=progress)
        if outcome is None:
            return None
        if not outcome.records:
            raise UserError(
                f"not one of {len(found.trials)} clips could be read to its end (the first: "
                f"{outcome.failures[0].name}: {outcome.failures[0].reason})"
            )
        evaluation = put_together(settings, found, outcome, output, networks)
        write_evaluation(output, evaluation)
        write_report(output, output / TRIALS, evaluation, facts_of(evaluation, judging.device))
        return evaluation


def common_alpha(models: Sequence[Judged]) -> bool:
    """Returns whether all models encode RGBA; False is RGB.

    Raises:
        UserError: some do and others do not.
    """
    kinds = {encodes_alpha(model.vae.config): model.facts.name for model in models}
    if len(kinds) > 1:
        raise UserError(
            f"{kinds[True]} encodes RGBA and {kinds[False]} RGB, which have no common figures; "
            "judge them apart"
        )
    return True in kinds


def prepare(
    source: Location,
    output: Path,
    options: EvaluationOptions,
    settings: EvaluationSettings,
    held: ExitStack,
) -> TrialList:
    """Finds the trials, and takes the folder for them until ``held`` is closed."""
    if isinstance(source, Path) and source.is_dir():
        refuse_nested(source, output)
    found = find_trials(source, options)
    take_folder(output / SETTINGS, settings, EVALUATION, EvaluationSettings.differences, held)
    return found


def put_together(
    settings: EvaluationSettings,
    found: TrialList,
    outcome: Outcome,
    output: Path,
    networks: Networks,
) -> Evaluation:
    """Returns the figures of all trials, and what is missing."""
    records, trials = outcome.records, output / TRIALS
    overall = summarize(records, trials, settings, lambda record: "all")
    return Evaluation(
        settings=settings,
        overall=overall,
        by_size=summarize(records, trials, settings, lambda record: record.size),
        by_length=summarize(records, trials, settings, length_group),
        records=records,
        failures=(*found.broken, *outcome.failures),
        left_out=found.left_out,
        notes=(
            *lpips_notes(networks.lpips),
            *rfvd_notes(networks.i3d, overall[0].windows),
            *([("ignored, no videos or images", found.ignored)] if found.ignored else []),
        ),
    )


def lpips_notes(lpips: Lpips | str) -> list[tuple[str, str]]:
    """Returns why there is no LPIPS, if there is none."""
    return [("LPIPS", lpips)] if isinstance(lpips, str) else []


def rfvd_notes(i3d: I3D | None, windows: int) -> list[tuple[str, str]]:
    """Returns why there is no rFVD, or why it is not exact."""
    if i3d is None:
        why = (
            "left out: it needs the usual I3D network, a TorchScript file called "
            "i3d_torchscript.pt; name this file as --i3d"
        )
    elif windows < FEWEST_WINDOWS:
        why = f"left out: it needs {FEWEST_WINDOWS} windows of {WINDOW} frames, not {windows}"
    elif windows <= i3d.count:
        why = (
            f"a rough estimate: {windows} windows of {WINDOW} frames are fewer than the "
            f"{i3d.count} features, too few for their covariance"
        )
    else:
        return []
    return [("rFVD", why)]


def facts_of(evaluation: Evaluation, device: torch.device) -> dict[str, str]:
    """Returns what was judged and how, for the head of the page."""
    settings, records = evaluation.settings, evaluation.records
    models = "; ".join(
        f"{model.name}: {model.library}, {dtypes}, SHA-256 {model.checkpoint[:12]}"
        for model in settings.models
        for dtypes in [" and ".join(sorted({model.encode_dtype, model.decode_dtype}))]
    )
    frames = sum(record.frames for record in records)
    return {
        "models": models,
        "videos": settings.source,
        "clips": f"{len(records)} with {frames} frames in all",
        "computed on": str(device),
        "versions": f"wanvae {wanvae.__version__}, PyTorch {torch.__version__}",
    }
