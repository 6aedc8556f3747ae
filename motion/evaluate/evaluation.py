"""How well a model reconstructs motion, and how it uses its codes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
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
from motion.models import MotionModel
from motion.skeleton.joint_names import find_feet
from wanvae.engine.evaluating import evaluating
from wanvae.engine.processes import gather_objects

# Windows that are encoded at once when codes are counted.
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class MotionSummary:
    """The figures of some frames. A summary is small because each of many files has one.

    Tuples have a value for each layer of the quantizer. Errors are of reconstructions from the
    first 1, 2, ... layers. All other figures are of the reconstruction from all layers. A
    figure is None if there is nothing to compute it from.

    Attributes:
        frames: the number of frames.
        mpjpe_mm: mean distance of joints from their original positions.
        rotation_error_degrees: mean angle between rotations of joints.
        jerk_m_s3: mean jerk of the joints, see :func:`~motion.metrics.joint_jerk`.
        original_jerk_m_s3: mean jerk of the original, at the frame rate of the model.
        foot_contacts: the number of contacts: a foot that is on the ground of the original in a
            frame and the next, see :func:`~motion.metrics.find_steps`; 0 if the names of the joints
            do not tell the feet.
        foot_speed_m_s: mean horizontal speed of feet in contact.
        original_foot_speed_m_s: the same for the original.
        sliding: the share of contacts in which the foot is faster than 0.5 m/s.
        original_sliding: the same for the original.
        codes_used: the number of codes of each layer that were chosen.
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
class MotionEvaluation:
    """Sums over the frames of recordings, in float64. The sums of several recordings can be added.

    Pairs ``(2,)`` are of the original and of the reconstruction with all layers.

    Attributes:
        joint_names: the names of the J joints.
        frames: the number of frames.
        errors: ``(N, J)``, distances in millimetres, for N numbers of layers; the last is all.
        angles: ``(N,)``, mean angles between rotations of joints in degrees, for the same numbers.
        counts: ``(Q, K)``, how often each code of each layer was chosen.
        jerks: ``(2,)``, mean jerks of the joints, in m/s^3.
        jerk_frames: the number of frames with a jerk; three frames of each recording have none.
        contacts: how often a foot is on the ground in the original.
        speeds: ``(2,)``, horizontal speeds of the feet in contact, in m/s.
        slides: ``(2,)``, how often a foot in contact slides.
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
    def used(self) -> Tensor:
        """``(Q,)``, the number of codes of each layer that were chosen."""
        return (self.counts > 0).sum(1)

    @property
    def code_use(self) -> Tensor:
        """``(Q,)``, the share of the codes of each layer that were chosen."""
        return self.used.double() / self.counts.shape[1]

    @property
    def perplexity(self) -> Tensor:
        """``(Q,)``, the exponential of the entropy of the codes of each layer, at most K."""
        shares = self.counts.double() / self.counts.sum(1, keepdim=True)
        return torch.special.entr(shares).sum(1).exp()

    @property
    def summary(self) -> MotionSummary:
        """All figures, except the figures of single joints and codes."""
        original_jerk, jerk = divide(self.jerks, self.jerk_frames)
        original_speed, speed = divide(self.speeds, self.contacts)
        original_sliding, sliding = divide(self.slides, self.contacts)
        return MotionSummary(
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


def divide(sums: Tensor, count: int) -> list[float | None]:
    """Returns ``sums / count``; None if ``count`` is 0."""
    return (sums / count).tolist() if count else [None] * len(sums)


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
    names = recording.skeleton.names
    length, original = len(recording), recording.joints
    joints = original
    errors, angles = [], []
    with evaluating(model):
        counts, results = decode_by_layers(model, recording, numbers_of_layers, window)
        for decoded in results:
            joints = recording.joints_of(decoded)
            errors.append(joint_errors(joints.positions, original.positions).double() * length)
            angles.append(rotation_error(joints.rotations, original.rotations) * length)
    fps = model.config.fps
    pair = torch.stack([original.positions.double(), joints.positions.double()])
    jerks = torch.stack([joint_jerk(positions, fps).sum() for positions in pair])
    speeds = speeds_on_ground(pair, find_feet(names), fps)
    speeds = speeds[:, ~speeds[0].isnan()]
    return MotionEvaluation(
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


def speeds_on_ground(pair: Tensor, feet: Sequence[int], fps: float) -> Tensor:
    """Returns the horizontal speed in m/s of feet that are on the ground in the original.

    Args:
        pair: ``(2, T, J, 3)`` in metres, the original and the reconstruction.
        feet: indices of joints.

    Returns:
        ``(2, T - 1, feet)``; NaN where the foot is off the ground.
    """
    placed = pair[:, :, list(feet)]
    speeds = torch.stack([ground_speed(positions, fps) for positions in placed])
    return speeds.where(find_steps(placed[0]), math.nan) if feet else speeds


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
