"""A recording through the model, and as a stick figure."""

from __future__ import annotations

from torch import Tensor

from motion.features.actors import warn_of_proportions
from motion.features.recording import Recording
from motion.features.units import warn_of_units
from motion.model import RVQVAE
from motion.models import MotionModel
from motion.render import Figure
from wanvae.errors import UserError


def reconstruct(
    model: MotionModel, recording: Recording, layers: int | None = None
) -> tuple[Tensor, Tensor]:
    """Encodes and decodes a recording.

    Args:
        layers: decode from the first so many layers of the quantizer; None is all.

    Returns:
        The indices ``(1, T', Q)`` of a tokenizer, or the latents ``(1, T', C)`` of a VAE, which are
        the most likely ones; and the features ``(T, D)`` that they decode to, on the CPU.

    Raises:
        UserError: ``layers`` is given for a VAE.
    """
    warn_of_units(recording, model.normalizer, shown=True)
    warn_of_proportions(recording.matching, model.skeleton)
    motion, length = recording.features[None], len(recording)
    if isinstance(model, RVQVAE):
        code = model.encode(motion)
        return code, model.decode(code, length, layers=layers)[0].cpu()
    if layers is not None:
        raise UserError(f"layers is {layers}, but a VAE has continuous latents, without layers")
    code = model.encode(motion).mode()
    return code, model.decode(code, length)[0].cpu()


def make_figure(recording: Recording, features: Tensor) -> Figure:
    """Returns the stick figure of ``recording`` that moves as ``features`` ``(T, D)`` say."""
    if recording.clip is None:
        return Figure.of_joints(recording.joints_of(features).positions, recording.bones)
    return Figure.of_clip(recording.restore(features))
