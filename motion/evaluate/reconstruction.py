"""A recording through the model, and as a stick figure."""

from __future__ import annotations

from torch import Tensor

from motion.features.actors import warn_of_proportions
from motion.features.humanml3d import recover_positions
from motion.features.recording import Recording
from motion.features.units import warn_of_units
from motion.model import RVQVAE
from motion.render import Figure


def reconstruct(
    model: RVQVAE, recording: Recording, layers: int | None = None
) -> tuple[Tensor, Tensor]:
    """Encodes and decodes a recording.

    Args:
        layers: decode from the first so many layers of the quantizer; None is all.

    Returns:
        The indices ``(1, T', Q)``, and the features ``(T, D)`` that they decode to, on the CPU.
    """
    warn_of_units(recording, model.normalizer, shown=True)
    warn_of_proportions(recording.matching, model.skeleton)
    indices = model.encode(recording.features[None])
    return indices, model.decode(indices, len(recording), layers=layers)[0].cpu()


def make_figure(recording: Recording, features: Tensor) -> Figure:
    """Returns the stick figure of ``recording`` that moves as ``features`` ``(T, D)`` say."""
    if recording.clip is None:
        return Figure.of_joints(recover_positions(features), recording.skeleton)
    return Figure.of_clip(recording.restore(features))
