"""How well a model reconstructs motion, and how it uses its codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motion.metrics import joint_errors, rotation_error
from motion.model import RVQVAE
from motion.recording import Recording
from wanvae.engine.evaluating import evaluating
from wanvae.engine.processes import sum_over_processes

# Windows encoded at once when codes are counted.
BATCH = 64


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found out over all frames of some recordings.

    Attributes:
        joint_names: of the J joints.
        joint_errors: ``(J,)``, mean distance in millimetres, with all layers of the quantiser.
        mpjpe: the mean of that, with the first 1, 2, ... layers, in millimetres; the last is with
            all of them.
        rotation_errors: the mean angle between rotations of joints in degrees, likewise.
        counts: ``(Q, K)``, how often each code of each layer was chosen.
        frames: how many.
    """

    joint_names: tuple[str, ...]
    joint_errors: Tensor
    mpjpe: tuple[float, ...]
    rotation_errors: tuple[float, ...]
    counts: Tensor
    frames: int

    @property
    def code_use(self) -> Tensor:
        """``(Q,)``, the part of the codes of each layer that were chosen."""
        return (self.counts > 0).double().mean(1)

    @property
    def perplexity(self) -> Tensor:
        """``(Q,)``, the exponential of the entropy of the codes of each layer, at most K."""
        shares = self.counts.double() / self.counts.sum(1, keepdim=True)
        return torch.special.entr(shares).sum(1).exp()


def evaluate(
    model: RVQVAE,
    recordings: Sequence[Recording],
    *,
    numbers_of_layers: Iterable[int] | None = None,
    window: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Evaluation:
    """Reconstruct recordings as wholes, and compare.

    Args:
        recordings: of the model's features, at least one.
        numbers_of_layers: of the quantiser, to decode with, the last of them all; None is 1, 2, ...
        window: count the codes of all windows of so many frames, at all offsets, rather than of
            whole recordings; recordings that are shorter count as wholes.
        rank, ranks: of several processes, which share the recordings and must all call this; each
            gets the whole result.
    """
    layers = model.config.quantizer.layers
    chosen = list(range(1, layers + 1) if numbers_of_layers is None else numbers_of_layers)
    names = recordings[0].skeleton.names
    # Sums over frames: of each joint's error and of the mean angle, for each number of layers.
    errors = torch.zeros(len(chosen), len(names), dtype=torch.float64)
    angles = torch.zeros(len(chosen), dtype=torch.float64)
    counts = torch.zeros(layers, model.config.quantizer.codes, dtype=torch.float64)
    frames = torch.zeros((), dtype=torch.float64)
    with evaluating(model):
        for recording in recordings[rank::ranks]:
            length, original = len(recording), recording.joints
            indices = model.encode(recording.features[None])
            counts += count_codes(model, recording, indices, window)
            for row, number in enumerate(chosen):
                decoded = model.decode(indices, length, layers=number)[0].cpu()
                joints = recording.joints_of(decoded)
                errors[row] += joint_errors(joints.positions, original.positions) * length
                angles[row] += rotation_error(joints.rotations, original.rotations) * length
            frames += length
    errors, angles, counts, frames = (
        sum_over_processes(x.to(model.device)).cpu() for x in (errors, angles, counts, frames)
    )
    errors /= frames
    return Evaluation(
        joint_names=names,
        joint_errors=errors[-1],
        mpjpe=tuple(errors.mean(1).tolist()),
        rotation_errors=tuple((angles / frames).tolist()),
        counts=counts.long(),
        frames=int(frames),
    )


def count_codes(model: RVQVAE, recording: Recording, indices: Tensor, window: int | None) -> Tensor:
    """How often each code of each layer is chosen, ``(Q, K)``; ``indices`` are of the whole."""
    if window is None or window >= len(recording):
        return count_indices(model, indices)
    windows = recording.features.unfold(0, window, 1).mT
    parts = windows.split(BATCH)
    return torch.stack([count_indices(model, model.encode(part)) for part in parts]).sum(0)


def count_indices(model: RVQVAE, indices: Tensor) -> Tensor:
    """How often each code of each layer is in ``(B, T, Q)``: ``(Q, K)``, on the CPU."""
    codes = model.config.quantizer.codes
    rows = indices.flatten(0, 1).cpu().unbind(1)
    return torch.stack([torch.bincount(row, minlength=codes) for row in rows]).double()
