"""An evaluation as a page: tables, curves, and moving figures."""

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
from motion.evaluate.evaluators.judging import Judgement
from motion.evaluate.folder import FileEvaluation, FolderEvaluation
from motion.evaluate.report import list_estimates, list_notes
from motion.evaluate.side_by_side import PAIR, make_file_section
from motion.models import MotionModel
from motion.skeleton.joint_names import find_feet
from motion.tokens import describe_token_rate, name_codes
from wanvae.engine.text import writable
from wanvae.report import Column, Curves, Row, Section, Table, write_page

# The number of files in a table; evaluation.csv has all files.
LISTED = 1000
ABOUT_FEET = (
    "In {:,} cases a foot is on the ground: it is less than 5 cm above the ground of the original "
    "in a frame and in the next. It slides if it then moves faster than 0.5 m/s. This is the foot "
    "skating ratio of Guided Motion Diffusion (Karunratanakul et al., 2023), except that feet are "
    "counted instead of frames, and that both columns use the contacts of the original. The height "
    "of the ground is the height that the lower foot exceeds in 95% of the frames."
)
NO_FEET = "The names of the joints do not tell which joints are the feet, so feet have no figures."


@dataclass(frozen=True, kw_only=True)
class FigureLimits:
    """How many moving figures a page shows.

    Attributes:
        files: the number of files, evenly from the largest error to the smallest.
        frames: the number of frames of each file, where its error is the largest.
    """

    files: int = 20
    frames: int = 600


def write_evaluation_page(
    path: str | os.PathLike[str],
    model: MotionModel,
    evaluation: FolderEvaluation,
    checkpoint: str,
    limits: FigureLimits,
    *,
    progress: bool = False,
) -> None:
    """Writes an evaluation as one HTML file.

    Files with moving figures are reconstructed again, one at a time.

    Args:
        path: the file to write.
        model: the model that was evaluated.
        evaluation: its figures.
        checkpoint: the file of the model.
        limits: how many moving figures to show.
        progress: show a progress bar.

    Raises:
        FileError: the page cannot be written.
    """
    ordered = sorted(evaluation.files, key=lambda file: -file.summary.mpjpe_mm[-1])
    spread = np.linspace(0, len(ordered) - 1, min(limits.files, len(ordered))).round().astype(int)
    anchors = {ordered[place]: f"file-{number}" for number, place in enumerate(spread, start=1)}

    def sections() -> Iterator[Section]:
        yield make_summary_section(evaluation.whole)
        if evaluation.judgement is not None:
            yield make_evaluators_section(evaluation.judgement)
        if model.config.bottleneck == "quantizer":
            yield make_layers_section(evaluation.whole)
        yield make_joints_section(evaluation.whole)
        yield make_files_section(ordered, anchors)
        if evaluation.failures:
            yield make_failures_section(evaluation.failures)
        with tqdm(anchors.items(), "figures", unit="file", disable=not progress) as bar:
            for file, anchor in bar:
                folded = anchor != "file-1"
                yield make_file_section(
                    model, file, anchor, limits.frames, evaluation.reading, folded=folded
                )

    write_page(
        path,
        title=f"Evaluation of {Path(evaluation.source).resolve().name}",
        facts={"model": writable(checkpoint), **list_facts(model.config, evaluation)},
        sections=sections(),
    )


def list_facts(config: RVQVAEConfig, evaluation: FolderEvaluation) -> dict[str, str]:
    """Returns facts about the model, and about the files it was evaluated on."""
    whole, window = evaluation.whole, evaluation.window
    counted = "whole files" if window is None else f"windows of {window} frames"
    of_codes = {"codes counted over": counted} if config.bottleneck == "quantizer" else {}
    return {
        "features": describe_features(config, len(whole.joint_names)),
        "frame rate": f"{config.fps:g} per second",
        name_codes(config): describe_token_rate(config),
        "motion": evaluation.source,
        "files": describe_count(evaluation),
        "frames": f"{whole.frames:,}, {whole.frames / config.fps:.1f} s",
        **of_codes,
        "versions": f"motion {motion.__version__}, PyTorch {torch.__version__}",
    }


def describe_features(config: RVQVAEConfig, joints: int) -> str:
    spec = config.features
    if spec is None:
        return f"{config.channels}, of {joints} joints as HumanML3D and KIT have them"
    optional = ("root", "positions", "velocities", "contacts")
    parts = [f"rotations ({spec.rot6d})", *(name for name in optional if getattr(spec, name))]
    relative = ", relative to the heading" if spec.relative else ""
    return f"{config.channels}, of {joints} joints: {', '.join(parts)}{relative}"


def describe_count(evaluation: FolderEvaluation) -> str:
    left_out = len(evaluation.failures)
    return f"{len(evaluation.files):,}" + (f", and {left_out:,} left out" if left_out else "")


def make_summary_section(whole: MotionEvaluation) -> Section:
    """Returns the section on errors, and on how joints and feet move."""
    found = whole.summary
    columns = [Column("with all layers"), *(Column(name, 3) for name in PAIR), Column("ratio")]
    rows = [
        Row(["MPJPE (mm)", None, found.mpjpe_mm[-1], None]),
        Row(["MPJPE, roots aligned (mm)", None, found.root_aligned_mpjpe_mm, None]),
        Row(["MPJPE, poses aligned (mm)", None, found.procrustes_aligned_mpjpe_mm, None]),
        Row(["rotation error (degrees)", None, found.rotation_error_degrees[-1], None]),
        Row(["error of acceleration (m/s²)", None, found.acceleration_error_m_s2, None]),
        compare("jerk of the joints (m/s³)", found.original_jerk_m_s3, found.jerk_m_s3),
        compare(
            "speed of feet on the ground (m/s)", found.original_foot_speed_m_s, found.foot_speed_m_s
        ),
        compare(
            "of these, sliding (%)", as_percent(found.original_sliding), as_percent(found.sliding)
        ),
    ]
    text = ABOUT_FEET.format(found.foot_contacts) if find_feet(whole.joint_names) else NO_FEET
    return Section("Summary", "summary", [Table(columns, rows)], text)


def compare(name: str, original: float | None, value: float | None) -> Row:
    return Row([name, original, value, divide(value, original)])


def divide(value: float | None, original: float | None) -> float | None:
    """Returns ``value / original``; None if one is not known, or the original is 0."""
    return value / original if original and value is not None else None


def as_percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def make_evaluators_section(judgement: Judgement) -> Section:
    """Returns the section on what the published evaluators say."""
    columns = [
        Column(f"of {judgement.motions:,} motions"),
        *(Column(name, 3) for pair in PAIR for name in (pair, f"{pair}, 95% interval +-")),
    ]
    rows = [Row(["FID", None, None, judgement.fid, None])]
    rows += [Row([name, *first, *second]) for name, first, second in list_estimates(judgement)]
    text = " ".join(f"{note[0].upper()}{note[1:]}." for note in list_notes(judgement))
    return Section("Evaluators", "evaluators", [Table(columns, rows)], text)


def make_layers_section(whole: MotionEvaluation) -> Section:
    """Returns the section on errors for each number of layers, and the use of codes."""
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


def make_joints_section(whole: MotionEvaluation) -> Section:
    """Returns the section on the error of each joint, the largest error first."""
    errors = zip(whole.joint_names, whole.joint_errors.tolist(), strict=True)
    rows = [Row(joint) for joint in sorted(errors, key=lambda joint: -joint[1])]
    columns = [Column("joint"), Column("mean error with all layers (mm)", bars=True)]
    return Section("Joints", "joints", [Table(columns, rows)])


def make_files_section(
    ordered: Sequence[FileEvaluation], anchors: dict[FileEvaluation, str]
) -> Section:
    """Returns the section on the files with the largest errors, with links to their figures."""
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
    rows = [Row(make_file_cells(file), anchors.get(file)) for file in ordered[:LISTED]]
    more = len(ordered) - len(rows)
    text = (
        f"The {LISTED} files with the largest errors. evaluation.csv has all files." if more else ""
    )
    return Section("Files", "files", [Table(columns, rows)], text)


def make_file_cells(file: FileEvaluation) -> list[str | float | None]:
    found = file.summary
    return [
        file.name,
        found.frames,
        found.mpjpe_mm[-1],
        found.rotation_error_degrees[-1],
        found.jerk_ratio,
        found.foot_speed_m_s,
        found.original_foot_speed_m_s,
        as_percent(found.sliding),
        as_percent(found.original_sliding),
    ]


def make_failures_section(failures: Sequence[str]) -> Section:
    rows = [Row([line]) for line in failures[:LISTED]]
    more = len(failures) - len(rows)
    text = f"The first {LISTED} of {len(failures):,}." if more else ""
    return Section("Left out", "left-out", [Table([Column("what and why")], rows)], text)
