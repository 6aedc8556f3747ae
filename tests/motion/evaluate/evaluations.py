"""An evaluation whose figures are easy to find by hand."""

from pathlib import Path
from typing import Any

import torch

from motion.evaluate.evaluation import MotionEvaluation
from motion.evaluate.folder import FileEvaluation, FolderEvaluation
from motion.evaluate.movement import MovementSums


def evaluation(**changes: Any) -> MotionEvaluation:
    """Of two joints, two layers of four codes, and ten frames."""
    given = dict(
        joint_names=("hip", "left_toe", "right_toe"),
        frames=10,
        errors=torch.tensor([[40.0, 80.0, 60.0], [10.0, 40.0, 10.0]]).double(),
        angles=torch.tensor([20.0, 10.0]).double(),
        counts=torch.tensor([[8, 0, 0, 0], [5, 5, 5, 5]]),
        movement=movement(),
    )
    return MotionEvaluation(**given | changes)


def movement(**changes: Any) -> MovementSums:
    """The movement in these frames."""
    given = dict(
        frames=10,
        aligned=torch.tensor([150.0, 50.0]).double(),
        accelerations=torch.tensor([24.0]).double(),
        acceleration_frames=8,
        jerks=torch.tensor([14.0, 28.0]).double(),
        jerk_frames=7,
        contacts=4,
        speeds=torch.tensor([0.4, 2.0]).double(),
        slides=torch.tensor([0.0, 1.0]).double(),
    )
    return MovementSums(**given | changes)


def folder_evaluation(*paths: Path, failures: tuple[str, ...] = ()) -> FolderEvaluation:
    """Of files with the same figures, except errors, which grow from file to file."""
    found = [evaluation(errors=evaluation().errors * factor) for factor in range(1, len(paths) + 1)]
    files = [
        FileEvaluation(path, path.name, part.joint_names, part.summary)
        for path, part in zip(paths, found, strict=True)
    ]
    whole = found[0]
    for part in found[1:]:
        whole = whole + part
    return FolderEvaluation("walks", None, whole, tuple(files), failures)
