"""Evaluations for people: a table, a JSON file and plots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motion.evaluation import Evaluation
from wanvae.engine.checkpoint import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Joints that a table shows.
WORST = 5


def table_of(evaluation: Evaluation, joints: int = WORST) -> Iterator[str]:
    """The lines of a table: what each number of layers comes to, and how each layer uses codes.

    Args:
        joints: how many to name, those of the largest errors first.
    """
    codes = evaluation.counts.shape[1]
    used = (evaluation.counts > 0).sum(1).tolist()
    yield f"{evaluation.frames} frames"
    yield "layers  MPJPE (mm)  rotation error (degrees)  perplexity of the last  codes it uses"
    rows = zip(
        evaluation.mpjpe,
        evaluation.rotation_errors,
        evaluation.perplexity.tolist(),
        used,
        strict=True,
    )
    for layer, (mpjpe, angle, perplexity, count) in enumerate(rows, start=1):
        share = f"{count} of {codes} ({count / codes:.0%})"
        yield f"{layer:6}  {mpjpe:10.2f}  {angle:24.3f}  {perplexity:22.1f}  {share}"
    errors = worst_joints(evaluation)[:joints]
    yield f"largest errors of joints (mm): {', '.join(f'{n} {e:.1f}' for n, e in errors)}"


def worst_joints(evaluation: Evaluation) -> list[tuple[str, float]]:
    """Joints and their errors in millimetres, the largest first."""
    errors = zip(evaluation.joint_names, evaluation.joint_errors.tolist(), strict=True)
    return sorted(errors, key=lambda joint: -joint[1])


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """All figures of an evaluation; lists go by layers."""
    return {
        "frames": evaluation.frames,
        "mpjpe_mm": list(evaluation.mpjpe),
        "rotation_error_degrees": list(evaluation.rotation_errors),
        "perplexity": evaluation.perplexity.tolist(),
        "code_use": evaluation.code_use.tolist(),
        "joint_errors_mm": evaluation.joint_errors.tolist(),
        "joints": list(evaluation.joint_names),
        "code_counts": evaluation.counts.tolist(),
    }


def require_plots() -> None:
    """Raise ValueError, that says what to install, if plots cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise ValueError(
            'plots need matplotlib: run pip install "wanvae[train]", or leave out --output'
        )


def write_report(folder: str | os.PathLike[str], evaluation: Evaluation) -> None:
    """Write evaluation.json, layers.png, joints.png and codes.png to a folder.

    Raises:
        CheckpointError: they cannot be written.
    """
    folder = Path(folder)
    with atomic_path(folder / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(as_json(evaluation), indent=1) + "\n")
    plots = {"layers": plot_layers, "joints": plot_joints, "codes": plot_codes}
    for name, plot in plots.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            plot(evaluation).savefig(temporary, dpi=120)


def plot_layers(evaluation: Evaluation) -> Figure:
    """Position and rotation error against the number of layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    layers = range(1, len(evaluation.mpjpe) + 1)
    errors = {"MPJPE (mm)": evaluation.mpjpe, "degrees": evaluation.rotation_errors}
    for axes, (label, values) in zip(figure.subplots(1, 2), errors.items(), strict=True):
        axes.plot(layers, values, marker="o")
        axes.set(xlabel="layers", ylabel=label, xticks=layers)
        axes.set_ylim(0, 1.1 * max(values) or 1)
        axes.grid(alpha=0.3)
    return figure


def plot_joints(evaluation: Evaluation) -> Figure:
    """The error of each joint, in the order of the skeleton."""
    from matplotlib.figure import Figure

    names = evaluation.joint_names
    figure = Figure(figsize=(7, 1 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), evaluation.joint_errors.tolist())
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("mean error with all layers (mm)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def plot_codes(evaluation: Evaluation) -> Figure:
    """How often each code is chosen, the most used first, a panel for each layer."""
    from matplotlib.figure import Figure

    layers, codes = evaluation.counts.shape
    figure = Figure(figsize=(7, 1.6 * layers), layout="constrained")
    panels = figure.subplots(layers, sharex=True, squeeze=False)[:, 0]
    for layer, axes in enumerate(panels):
        counts = evaluation.counts[layer].sort(descending=True).values.tolist()
        axes.bar(range(codes), counts, width=1.0)
        axes.set_ylabel(f"layer {layer + 1}")
        axes.set_title(f"{evaluation.code_use[layer]:.0%} of the codes are used", fontsize="small")
    panels[-1].set_xlabel("codes, the most used first")
    return figure
