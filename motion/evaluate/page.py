"""An evaluation as a page: tables, curves, and figures that move."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import motion
from motion.config import RVQVAEConfig
from motion.evaluate.evaluation import MotionEvaluation
from motion.evaluate.folder import FileEvaluation, FolderEvaluation
from motion.evaluate.side_by_side import PAIR, file_section
from motion.model import RVQVAE
from motion.skeleton.joint_names import find_feet
from motion.tokens import describe_token_rate
from wanvae.engine.text import writable
from wanvae.report import Column, Curves, Row, Section, Table, write_page

# Files that the table of them has; all are in evaluation.csv.
LISTED = 1000
ABOUT_FEET = (
    "In {:,} cases a foot is on the ground: less than 5 cm above it in the original, in a frame "
    "and the next. It slides if it moves faster than 0.5 m/s then. This is the foot skating ratio "
    "of Guided Motion Diffusion (Karunratanakul et al., 2023), but of feet instead of frames, and "
    "with the contacts of the original for both. The ground is as high as the lower foot is at "
    "least, but for 5% of the frames."
)
NO_FEET = "The names of the joints do not tell which are the feet, so nothing is said of them."


@dataclass(frozen=True, kw_only=True)
class FigureLimits:
    """How much of the motion moves on a page.

    Attributes:
        files: how many of them, evenly from that of the largest error to that of the smallest.
        frames: of each, where its error is the largest.
    """

    files: int = 20
    frames: int = 600


def write_evaluation_page(
    path: str | os.PathLike[str],
    model: RVQVAE,
    evaluation: FolderEvaluation,
    checkpoint: str,
    limits: FigureLimits,
    *,
    progress: bool = False,
) -> None:
    """Write what was found out as one HTML file.

    Files whose figures are shown are reconstructed anew, one at a time.

    Args:
        checkpoint: where the model is from.
        progress: show a progress bar.

    Raises:
        CheckpointError: it cannot be written.
    """
    ordered = sorted(evaluation.files, key=lambda file: -file.summary.mpjpe_mm[-1])
    spread = np.linspace(0, len(ordered) - 1, min(limits.files, len(ordered))).round().astype(int)
    anchors = {ordered[place]: f"file-{number}" for number, place in enumerate(spread, start=1)}

    def sections() -> Iterator[Section]:
        yield summary_section(evaluation.whole)
        yield layers_section(evaluation.whole)
        yield joints_section(evaluation.whole)
        yield files_section(ordered, anchors)
        if evaluation.failures:
            yield failures_section(evaluation.failures)
        with tqdm(anchors.items(), "figures", unit="file", disable=not progress) as bar:
            for file, anchor in bar:
                folded = anchor != "file-1"
                yield file_section(model, file, anchor, limits.frames, folded=folded)

    write_page(
        path,
        title=f"Evaluation of {Path(evaluation.source).resolve().name}",
        facts={"model": writable(checkpoint), **facts_of(model.config, evaluation)},
        sections=sections(),
    )


def facts_of(config: RVQVAEConfig, evaluation: FolderEvaluation) -> dict[str, str]:
    """What the model is of, and what it was evaluated on."""
    whole, window = evaluation.whole, evaluation.window
    return {
        "features": features_of(config, len(whole.joint_names)),
        "frame rate": f"{config.fps:g} per second",
        "tokens": describe_token_rate(config),
        "motion": evaluation.source,
        "files": count_files(evaluation),
        "frames": f"{whole.frames:,}, {whole.frames / config.fps:.1f} s",
        "codes counted over": "whole files" if window is None else f"windows of {window} frames",
        "versions": f"motion {motion.__version__}, PyTorch {torch.__version__}",
    }


def features_of(config: RVQVAEConfig, joints: int) -> str:
    spec = config.features
    if spec is None:
        return f"{config.channels}, of {joints} joints as HumanML3D and KIT have them"
    optional = ("root", "positions", "velocities", "contacts")
    parts = [f"rotations ({spec.rot6d})", *(name for name in optional if getattr(spec, name))]
    return f"{config.channels}, of {joints} joints: {', '.join(parts)}"


def count_files(evaluation: FolderEvaluation) -> str:
    left_out = len(evaluation.failures)
    return f"{len(evaluation.files):,}" + (f", and {left_out:,} left out" if left_out else "")


def summary_section(whole: MotionEvaluation) -> Section:
    """Errors, and how joints and feet move in the original and in the reconstruction."""
    found = whole.summary
    columns = [Column("with all layers"), *(Column(name, 3) for name in PAIR), Column("ratio")]
    rows = [
        Row(["MPJPE (mm)", None, found.mpjpe_mm[-1], None]),
        Row(["rotation error (degrees)", None, found.rotation_error_degrees[-1], None]),
        compared("jerk of the joints (m/s³)", found.original_jerk_m_s3, found.jerk_m_s3),
        compared(
            "speed of feet on the ground (m/s)", found.original_foot_speed_m_s, found.foot_speed_m_s
        ),
        compared("of these, sliding (%)", percent(found.original_sliding), percent(found.sliding)),
    ]
    text = ABOUT_FEET.format(whole.contacts) if find_feet(whole.joint_names) else NO_FEET
    return Section("Summary", "summary", [Table(columns, rows)], text)


def compared(name: str, original: float | None, made: float | None) -> Row:
    return Row([name, original, made, ratio(made, original)])


def ratio(value: float | None, original: float | None) -> float | None:
    """How many times the original; None if that is 0 or one of them is not known."""
    return value / original if original and value is not None else None


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def layers_section(whole: MotionEvaluation) -> Section:
    """What each number of layers comes to, and how each layer uses its codes."""
    found, codes = whole.summary, whole.counts.shape[1]
    numbers = range(1, len(found.mpjpe_mm) + 1)
    columns = [
        Column("layers", 0),
        Column("MPJPE (mm)"),
        Column("rotation error (degrees)", 3),
        Column("codes used by the last", 0, explanation=f"of {codes}"),
        Column("used (%)", 1),
        Column("perplexity of the last", 1, explanation="e to the entropy of its codes"),
    ]
    cells = zip(
        numbers,
        found.mpjpe_mm,
        found.rotation_error_degrees,
        found.codes_used,
        (100 * whole.code_use).tolist(),
        found.perplexity,
        strict=True,
    )
    errors = {
        "MPJPE": ("mm", found.mpjpe_mm),
        "Rotation error": ("degrees", found.rotation_error_degrees),
    }
    curves = [
        Curves(
            f"{name} against the number of layers",
            "layers",
            unit,
            {name: values},
            x=numbers,
            from_zero=True,
            markers=True,
        )
        for name, (unit, values) in errors.items()
    ]
    counts = whole.counts.sort(dim=1, descending=True).values.tolist()
    use = Curves(
        "How often each code is chosen",
        "codes of a layer, the most used first",
        "times",
        {f"layer {layer}": line for layer, line in zip(numbers, counts, strict=True)},
        x=range(1, codes + 1),
        from_zero=True,
    )
    parts = [Table(columns, [Row(row) for row in cells]), *curves, use]
    return Section("Layers and codes", "layers", parts)


def joints_section(whole: MotionEvaluation) -> Section:
    """The error of each joint, the largest first."""
    errors = zip(whole.joint_names, whole.joint_errors.tolist(), strict=True)
    rows = [Row(joint) for joint in sorted(errors, key=lambda joint: -joint[1])]
    columns = [Column("joint"), Column("mean error with all layers (mm)", bars=True)]
    return Section("Joints", "joints", [Table(columns, rows)])


def files_section(ordered: Sequence[FileEvaluation], anchors: dict[FileEvaluation, str]) -> Section:
    """The files of the largest errors, with links to their figures."""
    columns = [
        Column("file"),
        Column("frames", 0),
        Column("MPJPE (mm)", better="lower"),
        Column("rotation error (degrees)", 3, better="lower"),
        Column("jerk, times the original's"),
        Column("foot speed (m/s)", 3, "lower", "of feet on the ground"),
        Column("the original's", 3),
        Column("sliding (%)", 1, "lower", "of feet on the ground"),
        Column("the original's", 1),
    ]
    rows = [Row(file_cells(file), anchors.get(file)) for file in ordered[:LISTED]]
    more = len(ordered) - len(rows)
    text = f"The {LISTED} of the largest errors; all are in evaluation.csv." if more else ""
    return Section("Files", "files", [Table(columns, rows)], text)


def file_cells(file: FileEvaluation) -> list[str | float | None]:
    found = file.summary
    return [
        file.name,
        found.frames,
        found.mpjpe_mm[-1],
        found.rotation_error_degrees[-1],
        ratio(found.jerk_m_s3, found.original_jerk_m_s3),
        found.foot_speed_m_s,
        found.original_foot_speed_m_s,
        percent(found.sliding),
        percent(found.original_sliding),
    ]


def failures_section(failures: Sequence[str]) -> Section:
    rows = [Row([line]) for line in failures[:LISTED]]
    more = len(failures) - len(rows)
    text = f"The first {LISTED} of {len(failures):,}." if more else ""
    return Section("Left out", "left-out", [Table([Column("what and why")], rows)], text)
