"""Evaluations as a table for people, and as files of all figures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from motion.evaluate.evaluation import MotionEvaluation, MotionSummary
from motion.evaluate.evaluators.figures import DIVERSITY_PAIRS, GROUP
from motion.evaluate.evaluators.judging import Estimate, Figures, Judgement
from motion.evaluate.folder import FolderEvaluation
from motion.evaluate.movement import MovementSummary
from wanvae.engine.files import atomic_path
from wanvae.engine.text import writable
from wanvae.report import write_rows

# The number of joints that a table shows.
WORST = 5


def make_table(evaluation: MotionEvaluation, joints: int = WORST) -> Iterator[str]:
    """Yields the lines of a table: errors for each number of layers, and the use of codes.

    Args:
        joints: the number of joints to name, the largest errors first.
    """
    summary, codes = evaluation.summary, evaluation.counts.shape[1]
    yield f"{summary.frames} frames"
    if not codes:
        mpjpe, angle = summary.mpjpe_mm[-1], summary.rotation_error_degrees[-1]
        yield f"MPJPE {mpjpe:.2f} mm, rotation error {angle:.3f} degrees"
    else:
        yield from describe_layers(summary, codes)
    errors = sort_joints(evaluation)[:joints]
    yield f"largest errors of joints (mm): {', '.join(f'{n} {e:.1f}' for n, e in errors)}"
    yield from describe_movement(summary)


def describe_layers(summary: MotionSummary, codes: int) -> Iterator[str]:
    """Yields a table of the numbers of layers, of codebooks of ``codes`` codes."""
    yield "layers  MPJPE (mm)  rotation error (degrees)  perplexity of the last  codes it uses"
    rows = zip(
        summary.mpjpe_mm,
        summary.rotation_error_degrees,
        summary.perplexity,
        summary.codes_used,
        strict=True,
    )
    for layer, (mpjpe, angle, perplexity, count) in enumerate(rows, start=1):
        share = f"{count} of {codes} ({count / codes:.0%})"
        yield f"{layer:6}  {mpjpe:10.2f}  {angle:24.3f}  {perplexity:22.1f}  {share}"


def describe_movement(summary: MovementSummary) -> Iterator[str]:
    """Yields lines on aligned errors; and on acceleration, jerk and feet, if they are known."""
    yield (
        f"MPJPE with roots aligned: {summary.root_aligned_mpjpe_mm:.2f} mm; with poses aligned "
        f"(Procrustes): {summary.procrustes_aligned_mpjpe_mm:.2f} mm"
    )
    if summary.acceleration_error_m_s2 is not None:
        yield f"error of acceleration: {summary.acceleration_error_m_s2:.2f} m/s^2"
    if summary.jerk_m_s3 is not None:
        ratio = "" if summary.jerk_ratio is None else f", {summary.jerk_ratio:.2f} times as much"
        original = f"the original's {summary.original_jerk_m_s3:.2f}"
        yield f"jerk: {summary.jerk_m_s3:.2f} m/s^3{ratio}; {original}"
    if summary.foot_contacts:
        yield (
            f"feet on the ground: {summary.foot_speed_m_s:.3f} m/s, sliding {summary.sliding:.1%}; "
            f"the original's {summary.original_foot_speed_m_s:.3f} m/s, "
            f"{summary.original_sliding:.1%}"
        )


def describe_judgement(judgement: Judgement) -> Iterator[str]:
    """Yields the lines of a table of what the evaluators say, and notes on it."""
    yield f"judged by {judgement.evaluators}: {judgement.motions} motions"
    yield f"{'':18}{'original':>17}{'reconstruction':>17}"
    yield f"{'FID':18}{'':>17}{judgement.fid:17.4f}"
    for name, original, reconstruction in list_estimates(judgement):
        cells = (f"{mean:.3f} +- {interval:.3f}" for mean, interval in (original, reconstruction))
        yield f"{name:18}" + "".join(f"{cell:>17}" for cell in cells)
    for note in list_notes(judgement):
        yield f"note: {note}"


def list_estimates(judgement: Judgement) -> Iterator[tuple[str, Estimate, Estimate]]:
    """Yields names of figures with the estimates of originals and of reconstructions."""
    first, second = judgement.originals, judgement.reconstructions
    yield "diversity", first.diversity, second.diversity
    for rank, pair in enumerate(zip(first.r_precision, second.r_precision, strict=True), start=1):
        yield f"R-precision, top {rank}", *pair
    if first.mm_distance is not None and second.mm_distance is not None:
        yield "MM-distance", first.mm_distance, second.mm_distance


def list_notes(judgement: Judgement) -> Iterator[str]:
    """Yields what readers of a judgement must know, one sentence each."""
    if judgement.originals.mm_distance is None:
        yield "R-precision and MM-distance need the texts of the motions, --texts FOLDER"
    elif not judgement.originals.r_precision:
        yield f"R-precision needs at least {GROUP} motions"
    if judgement.motions <= judgement.size:
        yield (
            f"FID is not comparable with papers, because {judgement.motions} motions are too few "
            f"for vectors of {judgement.size} numbers"
        )
    if judgement.motions < DIVERSITY_PAIRS:
        yield f"diversity is of {judgement.motions} pairs, not of {DIVERSITY_PAIRS} as in papers"
    if judgement.left_out:
        yield f"{judgement.left_out} motions are too short or too long for the evaluators"
    if judgement.without_text:
        yield f"{judgement.without_text} files have no text and were not judged by the evaluators"
    if judgement.failures:
        yield (
            f"{len(judgement.failures)} files have texts that cannot be read, and were not judged "
            "by the evaluators"
        )


def sort_joints(evaluation: MotionEvaluation) -> list[tuple[str, float]]:
    """Returns the joints and their errors in millimetres, the largest error first."""
    errors = zip(evaluation.joint_names, evaluation.joint_errors.tolist(), strict=True)
    return sorted(errors, key=lambda joint: -joint[1])


def as_json(evaluation: FolderEvaluation) -> dict[str, Any]:
    """Returns all figures, over all frames and for each file. Lists have a value a layer."""
    whole = evaluation.whole
    return {
        "motion": evaluation.source,
        "window": evaluation.window,
        **asdict(whole.summary),
        "code_use": whole.code_use.tolist(),
        "joint_errors_mm": whole.joint_errors.tolist(),
        "joints": list(whole.joint_names),
        "code_counts": whole.counts.tolist(),
        "files": [{"file": file.name, **asdict(file.summary)} for file in evaluation.files],
        "failures": list(evaluation.failures),
        "evaluators": None if evaluation.judgement is None else as_dict(evaluation.judgement),
    }


def as_dict(judgement: Judgement) -> dict[str, Any]:
    """Returns a judgement with estimates as ``{"mean": ..., "interval": ...}``."""

    def named(value: Any) -> Any:
        if isinstance(value, Estimate):
            return value._asdict()
        return [*map(named, value)] if isinstance(value, tuple) else value

    def fields_of(value: Any) -> dict[str, Any]:
        return {
            name: fields_of(each) if isinstance(each, Figures) else named(each)
            for name, each in vars(value).items()
        }

    return fields_of(judgement)


def as_row(figures: Mapping[str, Any]) -> dict[str, str | float | None]:
    """Returns the figures of a file, where figures of layers get the number of the layer."""
    row: dict[str, str | float | None] = {}
    for name, value in figures.items():
        if isinstance(value, tuple):
            row |= {f"{name}_{layer}": each for layer, each in enumerate(value, start=1)}
        else:
            row[name] = value
    return row


def write_figures(
    folder: str | os.PathLike[str], evaluation: FolderEvaluation, checkpoint: str
) -> None:
    """Writes evaluation.json, and evaluation.csv with a row for each file, to a folder.

    Args:
        checkpoint: the file of the model.

    Raises:
        FileError: the files cannot be written.
    """
    write_content(folder, as_json(evaluation), checkpoint)


def write_content(
    folder: str | os.PathLike[str], content: Mapping[str, Any], checkpoint: str
) -> None:
    """Writes evaluation.json, and evaluation.csv with a row for each of its "files".

    Args:
        checkpoint: the file of the model, which becomes "model".

    Raises:
        FileError: the files cannot be written.
    """
    with atomic_path(Path(folder) / "evaluation.json") as temporary:
        text = json.dumps({"model": writable(checkpoint), **content}, indent=1)
        temporary.write_text(text + "\n")
    write_rows(Path(folder) / "evaluation.csv", [as_row(file) for file in content["files"]])
