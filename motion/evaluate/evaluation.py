"""How well a model reconstructs motion, and how it uses its codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import reduce
from operator import add

import torch
from torch import Tensor

from motion.evaluate.code_use import CodeUse
from motion.evaluate.movement import MovementSummary, MovementSums, measure_movement
from motion.features.recording import Recording
from motion.metrics import joint_errors, rotation_error
from motion.model import RVQVAE
from motion.models import MotionModel
from wanvae.engine.evaluating import evaluating
from wanvae.engine.processes import gather_objects

# Windows that are encoded at once when codes are counted.
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class MotionSummary(MovementSummary):
    """The figures of some frames. A summary is small because each of many files has one.

    Tuples have a value for each layer of the quantizer. Errors are of reconstructions from the
    first 1, 2, ... layers. All other figures are of the reconstruction from all layers.

    Attributes:
        frames: the number of frames.
        mpjpe_mm: mean distance of joints from their original positions.
        rotation_error_degrees: mean angle between rotations of joints.
        codes_used: the number of codes of each layer that were chosen.
        perplexity: the exponential of the entropy of the codes of each layer.
    """

    frames: int
    mpjpe_mm: tuple[float, ...]
    rotation_error_degrees: tuple[float, ...]
    codes_used: tuple[int, ...]
    perplexity: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionEvaluation(CodeUse):
    """Sums over the frames of recordings, in float64. The sums of several recordings can be added.

    Attributes:
        joint_names: the names of the J joints.
        errors: ``(N, J)``, distances in millimetres, for N numbers of layers; the last is all.
        angles: ``(N,)``, mean angles between rotations of joints in degrees, for the same numbers.
        movement: how the reconstruction with all layers moves.
    """

    joint_names: tuple[str, ...]
    errors: Tensor
    angles: Tensor
    movement: MovementSums

    def __add__(self, other: MotionEvaluation) -> MotionEvaluation:
        """Returns the sums over the frames of both, which must have the same joints."""
        sums = [field.name for field in fields(self) if field.name != "joint_names"]
        added = {name: getattr(self, name) + getattr(other, name) for name in sums}
        return MotionEvaluation(joint_names=self.joint_names, **added)

    @property
    def joint_errors(self) -> Tensor:
        """``(J,)``, mean distances in millimetres, with all layers of the quantizer."""
        return self.errors[-1] / self.frames

    @property
    def mpjpe(self) -> tuple[float, ...]:
        """Mean distances over all joints in millimetres, for each number of layers."""
        return tuple((self.errors.mean(1) / self.frames).tolist())

    @property
    def rotation_errors(self) -> tuple[float, ...]:
        """Mean angles between rotations of joints in degrees, for each number of layers."""
        return tuple((self.angles / self.frames).tolist())

    @property
    def summary(self) -> MotionSummary:
        """All figures, except the figures of single joints and codes."""
        return MotionSummary(
            frames=self.frames,
            mpjpe_mm=self.mpjpe,
            rotation_error_degrees=self.rotation_errors,
            codes_used=tuple(self.used.tolist()),
            perplexity=tuple(self.perplexity.tolist()),
            **asdict(self.movement.summary),
        )


def evaluate(
    model: MotionModel,
    recordings: Sequence[Recording],
    *,
    numbers_of_layers: Iterable[int] | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> MotionEvaluation:
    """Reconstructs recordings, each as a whole, and compares them with the originals.

    Args:
        recordings: at least one, with the features of the model and with the same joints.
        numbers_of_layers: the numbers of layers to decode with; None is 1, 2, ... up to all.
        rank, ranks: the number of this process, and how many processes share the recordings. All
            processes must call this function, and each gets the whole result.
    """
    share = recordings[rank::ranks]
    own = add_up(measure(model, each, numbers_of_layers=numbers_of_layers) for each in share)
    (whole,) = add_up_processes(own).values()
    return whole


def add_up(parts: Iterable[MotionEvaluation]) -> dict[tuple[str, ...], MotionEvaluation]:
    """Adds evaluations with the same joints. Returns one for each tuple of joint names."""
    sums: dict[tuple[str, ...], MotionEvaluation] = {}
    for part in parts:
        before = sums.get(part.joint_names)
        sums[part.joint_names] = part if before is None else before + part
    return sums


def add_up_processes(
    own: dict[tuple[str, ...], MotionEvaluation],
) -> dict[tuple[str, ...], MotionEvaluation]:
    """Adds the evaluations of all processes. All processes must call it, and each gets all."""
    return add_up(part for parts in gather_objects(own) for part in parts.values())


def measure(
    model: MotionModel,
    recording: Recording,
    *,
    numbers_of_layers: Iterable[int] | None = None,
    window: int | None = None,
) -> MotionEvaluation:
    """Reconstructs a recording as a whole, and compares it with the original.

    Args:
        recording: a recording with the features of the model.
        numbers_of_layers: the numbers of layers to decode with, the last one all layers; None is
            1, 2, ... up to all.
        window: count the codes of all windows of so many frames, at all offsets; None counts the
            codes of the whole recording, and so does a window longer than the recording.
    """
    names = recording.bones.names
    length, original = len(recording), recording.joints
    joints = original
    errors, angles = [], []
    with evaluating(model):
        counts, results = decode_by_layers(model, recording, numbers_of_layers, window)
        for decoded in results:
            joints = recording.joints_of(decoded)
            errors.append(joint_errors(joints.positions, original.positions).double() * length)
            angles.append(rotation_error(joints.rotations, original.rotations) * length)
    return MotionEvaluation(
        joint_names=names,
        frames=length,
        errors=torch.stack(errors),
        angles=torch.tensor(angles, dtype=torch.float64),
        counts=counts,
        movement=measure_movement(joints.positions, original.positions, names, model.config.fps),
    )


def decode_by_layers(
    model: MotionModel,
    recording: Recording,
    numbers_of_layers: Iterable[int] | None,
    window: int | None,
) -> tuple[Tensor, Iterator[Tensor]]:
    """Returns how often codes are chosen, ``(Q, K)``, and features ``(T, D)`` for each number.

    A VAE has no codes, ``(0, 0)``, and one result.

    Args:
        numbers_of_layers, window: as in ``measure``.
    """
    motion, length = recording.features[None], len(recording)
    if not isinstance(model, RVQVAE):
        latents = model.encode(motion).mode()
        return torch.zeros(0, 0), iter([model.decode(latents, length)[0].cpu()])
    indices, layers = model.encode(motion), model.config.quantizer.num_quantizers
    numbers = range(1, layers + 1) if numbers_of_layers is None else numbers_of_layers
    counts = count_codes(model, recording, indices, window)
    return counts, (model.decode(indices, length, layers=n)[0].cpu() for n in numbers)


def count_codes(model: RVQVAE, recording: Recording, indices: Tensor, window: int | None) -> Tensor:
    """Returns how often each code of each layer is chosen, ``(Q, K)``.

    Args:
        indices: ``(1, T', Q)``, of the whole recording.
        window: as in ``measure``.
    """
    if window is None or window >= len(recording):
        return count_indices(model, indices)
    windows = recording.features.unfold(0, window, 1).mT
    return reduce(add, (count_indices(model, model.encode(p)) for p in windows.split(BATCH)))


def count_indices(model: RVQVAE, indices: Tensor) -> Tensor:
    """Returns how often each code is in indices ``(B, T, Q)``: ``(Q, K)``, on the CPU."""
    codes = model.config.quantizer.codebook_size
    rows = indices.flatten(0, 1).cpu().unbind(1)
    return torch.stack([torch.bincount(row, minlength=codes) for row in rows])
