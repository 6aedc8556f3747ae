"""The losses of a motion tokenizer.

All terms are means over clips. So if several processes have the same number of clips, the mean of
their gradients is the gradient of all clips. All terms are computed in float32, whatever dtype the
model computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from motion.config import RVQVAEConfig
from motion.features import humanml3d
from motion.model import Reconstruction
from motion.models import MotionModel
from motion.skeleton.tree import Skeleton
from motion.train.positions import Tree, find_positions
from motion.vae import VAEReconstruction
from wanvae.engine.config import check, check_option

ErrorKind = Literal["smooth_l1", "l1", "l2"]
# Turns normalized features ``(B, T, D)`` into positions of joints in each frame.
Locator: TypeAlias = Callable[[Tensor], Tensor]

ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "l1": F.l1_loss,
    "l2": F.mse_loss,
}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms. Each term is a mean. The defaults are from MoMask.

    Attributes:
        features: weight of the error of the normalized features.
        position: weight of the error of the positions of joints relative to the root. These are the
            normalized features that are positions of joints; without such features, positions in
            metres that follow from the rotations.
        velocity: weight of the error of the changes of normalized features from frame to frame.
        commitment: weight of the squared distance of latents from their codes, which moves latents.
        codebook: weight of the same distance where it moves codes: those of the quantizers that
            learn by gradients.
        kl: weight of the KL divergence of the latents of a VAE from N(0, 1), in nats for each
            number of a latent. The default is of MLD (Chen et al., arXiv 2212.04048).
        error: the error of features, position and velocity. "smooth_l1" is half the squared error
            below 1, and the absolute error minus a half above 1; "l1" is the absolute error, "l2"
            the squared error.
    """

    features: float = 1.0
    position: float = 0.5
    velocity: float = 0.0
    commitment: float = 0.02
    codebook: float = 1.0
    kl: float = 1e-4
    error: ErrorKind = "smooth_l1"

    def __post_init__(self) -> None:
        weights = (self.features, self.position, self.velocity)
        for name in ("features", "position", "velocity", "commitment", "codebook", "kl"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        expected = "above 0 if position and velocity are 0"
        check(max(weights) > 0, "features", self.features, expected)
        check_option("error", self.error, ErrorKind)


class MotionLosses:
    """Computes the loss terms of a config. Terms of weight 0 are not computed.

    Args:
        config: the weights.
        model: the model that is trained.
        skeleton: the skeleton of the motion.
    """

    def __init__(self, config: LossConfig, model: MotionModel, skeleton: Skeleton) -> None:
        self.config = config
        self.locate = make_locator(model, skeleton)

    def __call__(self, reconstruction: Reconstruction | VAEReconstruction) -> dict[str, Tensor]:
        """Returns the weighted terms by name, float32 scalars. Their sum is the loss."""
        error = ERRORS[self.config.error]
        pair = reconstruction.output.float(), reconstruction.target.float()
        measures: dict[str, Callable[[], Tensor]] = {
            "features": lambda: error(*pair),
            "position": lambda: error(*map(self.locate, pair)),
            "velocity": lambda: error(*(features.diff(dim=1) for features in pair)),
            **measure_latents(reconstruction),
        }
        weights = {name: getattr(self.config, name, 1.0) for name in measures}
        return {name: weights[name] * measures[name]() for name in measures if weights[name] > 0}


def measure_latents(
    reconstruction: Reconstruction | VAEReconstruction,
) -> dict[str, Callable[[], Tensor]]:
    """Returns the terms of what is between encoder and decoder.

    ``regularization`` has no weight in a LossConfig, because the quantizer weights it itself.
    """
    if isinstance(reconstruction, VAEReconstruction):
        return {"kl": reconstruction.kl.float}
    quantized = reconstruction.quantized
    terms = {
        "commitment": quantized.commitment_loss,
        "codebook": quantized.codebook_loss,
        "regularization": quantized.regularization,
    }
    return {name: term.float for name, term in terms.items() if term is not None}


def make_locator(model: MotionModel, skeleton: Skeleton) -> Locator:
    """Returns a function from normalized features of ``model`` to positions of joints."""
    spec, joints = model.config.features, skeleton.joints
    channels = find_position_channels(model.config, joints)
    if spec is None or channels is not None:
        return lambda features: features[..., channels]

    tree = Tree(skeleton, spec.rot6d)

    def locate(features: Tensor) -> Tensor:
        vectors = model.normalizer.denormalize(features)[..., : 6 * joints]
        return find_positions(tree, vectors.unflatten(-1, (joints, 6)))

    return locate


def find_position_channels(config: RVQVAEConfig, joints: int) -> slice | None:
    """Returns the channels that are positions of joints; None if there are none."""
    spec = config.features
    if spec is None:
        return humanml3d.position_channels(config.channels)
    if not spec.positions:
        return None
    first = 6 * joints + 3 * spec.root
    return slice(first, first + 3 * joints)
