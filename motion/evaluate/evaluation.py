"""How well a model reconstructs motion, and how it uses its codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add

import torch
from torch import Tensor

from motion.features.recording import Recording
from motion.metrics import (
    SLIDING_SPEED,
    find_steps,
    ground_speed,
    joint_errors,
    joint_jerk,
    rotation_error,
)
from motion.model import RVQVAE
from motion.skeleton.joint_names import find_feet
from wanvae.engine.processes import gather_objects
from wanvae.engine.training.evaluating import evaluating

# Windows encoded at once when codes are counted.
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of some frames: small, for there is one for each of many files.

    Tuples go by layers. Errors are with the first 1, 2, ... of them, all else of the
    reconstruction with all. None is what there is nothing to find from.

    Attributes:
        frames: how many.
        mpjpe_mm: mean distance of joints from where they were.
        rotation_error_degrees: mean angle between rotations of joints.
        jerk_m_s3: of the joints, by :func:`~motion.metrics.joint_jerk`.
        original_jerk_m_s3: the same of the original, at the frame rate of the model.
        foot_contacts: pairs of a foot and a frame in which it is on the ground in the original,
            by :func:`~motion.metrics.find_steps`; 0 for skeletons whose feet are not known.
        foot_speed_m_s: horizontal, mean over these.
        original_foot_speed_m_s: the same of the original.
        sliding: the share of these in which the foot is faster than 0.5 m/s.
        original_sliding: the same of the original.
        codes_used: how many codes of each layer were chosen.
        perplexity: the exponential of the entropy of the codes of each layer.
    """

    frames: int
    mpjpe_mm: tuple[float, ...]
    rotation_error_degrees: tuple[float, ...]
    jerk_m_s3: float | None
    original_jerk_m_s3: float | None
    foot_contacts: int
    foot_speed_m_s: float | None
    original_foot_speed_m_s: float | None
    sliding: float | None
    original_sliding: float | None
    codes_used: tuple[int, ...]
    perplexity: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Sums over the frames of a recording, in float64; those of several add up.

    Pairs are of the original and of the reconstruction with all layers.

    Attributes:
        joint_names: of the J joints.
        frames: how many.
        errors: ``(N, J)``, distances in millimetres, for each number of layers that was decoded
            with; the last is all of them.
        angles: ``(N,)``, mean angles between rotations of joints in degrees, likewise.
        counts: ``(Q, K)``, how often each code of each layer was chosen.
        jerks: ``(2,)``, mean jerks of the joints, in m/s^3.
        jerk_frames: in how many frames; there is none in three of each recording.
        contacts: how often a foot is on the ground in the original.
        speeds: ``(2,)``, horizontal, of feet then, in m/s.
        slides: ``(2,)``, how often such a foot slides.
    """

    joint_names: tuple[str, ...]
    frames: int
    errors: Tensor
    angles: Tensor
    counts: Tensor
    jerks: Tensor
    jerk_frames: int
    contacts: int
    speeds: Tensor
    slides: Tensor

    def __add__(self, other: Evaluation) -> Evaluation:
        """That of all frames of both, which are of the same joints."""
        sums = [field.name for field in fields(self) if field.name != "joint_names"]
        added = {name: getattr(self, name) + getattr(other, name) for name in sums}
        return Evaluation(joint_names=self.joint_names, **added)

    @property
    def joint_errors(self) -> Tensor:
        """``(J,)``, mean distance in millimetres, with all layers of the quantizer."""
        return self.errors[-1] / self.frames

    @property
    def mpjpe(self) -> tuple[float, ...]:
        """The mean of that over the joints, for each number of layers."""
        return tuple((self.errors.mean(1) / self.frames).tolist())

    @property
    def rotation_errors(self) -> tuple[float, ...]:
        """The mean angle between rotations of joints in degrees, for each number of layers."""
        return tuple((self.angles / self.frames).tolist())

    @property
    def used(self) -> Tensor:
        """``(Q,)``, how many codes of each layer were chosen."""
        return (self.counts > 0).sum(1)

    @property
    def code_use(self) -> Tensor:
        """``(Q,)``, the part of the codes of each layer that were chosen."""
        return self.used.double() / self.counts.shape[1]

    @property
    def perplexity(self) -> Tensor:
        """``(Q,)``, the exponential of the entropy of the codes of each layer, at most K."""
        shares = self.counts.double() / self.counts.sum(1, keepdim=True)
        return torch.special.entr(shares).sum(1).exp()

    @property
    def summary(self) -> Summary:
        """All figures but those of single joints and codes."""
        original_jerk, jerk = means(self.jerks, self.jerk_frames)
        original_speed, speed = means(self.speeds, self.contacts)
        original_sliding, sliding = means(self.slides, self.contacts)
        return Summary(
            frames=self.frames,
            mpjpe_mm=self.mpjpe,
            rotation_error_degrees=self.rotation_errors,
            jerk_m_s3=jerk,
            original_jerk_m_s3=original_jerk,
            foot_contacts=self.contacts,
            foot_speed_m_s=speed,
            original_foot_speed_m_s=original_speed,
            sliding=sliding,
            original_sliding=original_sliding,
            codes_used=tuple(self.used.tolist()),
            perplexity=tuple(self.perplexity.tolist()),
        )


def means(sums: Tensor, count: int) -> list[float | None]:
    """``sums`` of so many; None of none."""
    return (sums / count).tolist() if count else [None] * len(sums)


def evaluate(
    model: RVQVAE,
    recordings: Sequence[Recording],
    *,
    numbers_of_layers: Iterable[int] | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Evaluation:
    """Reconstruct recordings as wholes, and compare.

    Args:
        recordings: of the model's features and of the same joints, at least one.
        numbers_of_layers: as ``measure`` has it.
        rank, ranks: of several processes, which share the recordings and must all call this; each
            gets the whole result.
    """
    share = recordings[rank::ranks]
    own = totals(measure(model, each, numbers_of_layers=numbers_of_layers) for each in share)
    (whole,) = totals_of_processes(own).values()
    return whole


def totals(parts: Iterable[Evaluation]) -> dict[tuple[str, ...], Evaluation]:
    """The sums of those of the same joints, by their names."""
    sums: dict[tuple[str, ...], Evaluation] = {}
    for part in parts:
        before = sums.get(part.joint_names)
        sums[part.joint_names] = part if before is None else before + part
    return sums


def totals_of_processes(
    own: dict[tuple[str, ...], Evaluation],
) -> dict[tuple[str, ...], Evaluation]:
    """Those of all processes of a run, which must all call this, in each."""
    return totals(part for parts in gather_objects(own) for part in parts.values())


def measure(
    model: RVQVAE,
    recording: Recording,
    *,
    numbers_of_layers: Iterable[int] | None = None,
    window: int | None = None,
) -> Evaluation:
    """Reconstruct a recording as a whole, and compare.

    Args:
        recording: of the model's features.
        numbers_of_layers: of the quantizer, to decode with, the last of them all; None is 1, 2, ...
        window: count the codes of all windows of so many frames, at all offsets, rather than of
            the whole recording; one that is shorter counts as a whole.
    """
    layers, names = model.config.quantizer.layers, recording.skeleton.names
    length, original = len(recording), recording.joints
    errors, angles = [], []
    with evaluating(model):
        indices = model.encode(recording.features[None])
        counts = count_codes(model, recording, indices, window)
        for number in range(1, layers + 1) if numbers_of_layers is None else numbers_of_layers:
            decoded = model.decode(indices, length, layers=number)[0].cpu()
            joints = recording.joints_of(decoded)
            errors.append(joint_errors(joints.positions, original.positions).double() * length)
            angles.append(rotation_error(joints.rotations, original.rotations) * length)
    fps = model.config.fps
    pair = torch.stack([original.positions.double(), joints.positions.double()])
    jerks = torch.stack([joint_jerk(positions, fps).sum() for positions in pair])
    speeds = speeds_on_ground(pair, find_feet(names), fps)
    speeds = speeds[:, ~speeds[0].isnan()]
    return Evaluation(
        joint_names=names,
        frames=length,
        errors=torch.stack(errors),
        angles=torch.tensor(angles, dtype=torch.float64),
        counts=counts,
        jerks=jerks,
        jerk_frames=max(length - 3, 0),
        contacts=speeds.shape[1],
        speeds=speeds.sum(1),
        slides=(speeds > SLIDING_SPEED).double().sum(1),
    )


def speeds_on_ground(pair: Tensor, feet: Sequence[int], fps: float) -> Tensor:
    """Horizontal speed in m/s of feet in the frames in which the original has them on the ground.

    Args:
        pair: ``(2, T, J, 3)`` in metres, of the original and the reconstruction.
        feet: indices of joints.

    Returns:
        ``(2, T - 1, feet)``; NaN where the foot is off the ground.
    """
    placed = pair[:, :, list(feet)]
    speeds = torch.stack([ground_speed(positions, fps) for positions in placed])
    return speeds.where(find_steps(placed[0]), math.nan) if feet else speeds


def count_codes(model: RVQVAE, recording: Recording, indices: Tensor, window: int | None) -> Tensor:
    """How often each code of each layer is chosen, ``(Q, K)``; ``indices`` are of the whole."""
    if window is None or window >= len(recording):
        return count_indices(model, indices)
    windows = recording.features.unfold(0, window, 1).mT
    return reduce(add, (count_indices(model, model.encode(p)) for p in windows.split(BATCH)))


def count_indices(model: RVQVAE, indices: Tensor) -> Tensor:
    """How often each code of each layer is in ``(B, T, Q)``: ``(Q, K)``, on the CPU."""
    codes = model.config.quantizer.codes
    rows = indices.flatten(0, 1).cpu().unbind(1)
    return torch.stack([torch.bincount(row, minlength=codes) for row in rows])
