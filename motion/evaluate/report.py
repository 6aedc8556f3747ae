"""Evaluations for people: a table, and files of all figures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from motion.commands.folders import FolderEvaluation
from motion.evaluate.evaluation import Evaluation, Summary
from wanvae.engine.files import atomic_path
from wanvae.engine.text import writable
from wanvae.report import write_rows

# Joints that a table shows.
WORST = 5


def table_of(evaluation: Evaluation, joints: int = WORST) -> Iterator[str]:
    """The lines of a table: what each number of layers comes to, and how each layer uses codes.

    Args:
        joints: how many to name, those of the largest errors first.
    """
    summary, codes = evaluation.summary, evaluation.counts.shape[1]
    yield f"{summary.frames} frames"
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
    errors = worst_joints(evaluation)[:joints]
    yield f"largest errors of joints (mm): {', '.join(f'{n} {e:.1f}' for n, e in errors)}"
    yield from movement(summary)


def movement(summary: Summary) -> Iterator[str]:
    """The lines on jerk and feet, as far as they are known."""
    if summary.jerk_m_s3 is not None:
        original = f"the original's {summary.original_jerk_m_s3:.2f}"
        yield f"jerk: {summary.jerk_m_s3:.2f} m/s^3; {original}"
    if summary.foot_contacts:
        yield (
            f"feet on the ground: {summary.foot_speed_m_s:.3f} m/s, sliding {summary.sliding:.1%}; "
            f"the original's {summary.original_foot_speed_m_s:.3f} m/s, "
            f"{summary.original_sliding:.1%}"
        )


def worst_joints(evaluation: Evaluation) -> list[tuple[str, float]]:
    """Joints and their errors in millimetres, the largest first."""
    errors = zip(evaluation.joint_names, evaluation.joint_errors.tolist(), strict=True)
    return sorted(errors, key=lambda joint: -joint[1])


def as_json(evaluation: FolderEvaluation) -> dict[str, Any]:
    """All figures of an evaluation, over all frames and of each file; lists go by layers."""
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
    }


def as_row(summary: Summary) -> dict[str, float | None]:
    """The figures of a summary by name; what goes by layers is numbered."""
    row: dict[str, float | None] = {}
    for name, value in asdict(summary).items():
        if isinstance(value, tuple):
            row |= {f"{name}_{layer}": each for layer, each in enumerate(value, start=1)}
        else:
            row[name] = value
    return row


def write_figures(
    folder: str | os.PathLike[str], evaluation: FolderEvaluation, checkpoint: str
) -> None:
    """Write evaluation.json, and evaluation.csv with a row for each file, to a folder.

    Args:
        checkpoint: where the model is from.

    Raises:
        CheckpointError: they cannot be written.
    """
    write_json(Path(folder) / "evaluation.json", evaluation, checkpoint)
    rows = [{"file": file.name, **as_row(file.summary)} for file in evaluation.files]
    write_rows(Path(folder) / "evaluation.csv", rows)


def write_json(path: Path, evaluation: FolderEvaluation, checkpoint: str) -> None:
    with atomic_path(path) as temporary:
        content = {"model": writable(checkpoint), **as_json(evaluation)}
        temporary.write_text(json.dumps(content, indent=1) + "\n")
