"""The losses of a motion tokenizer.

All terms are means over clips. So if several processes have the same number of clips, the mean of
their gradients is the gradient of all clips. All terms are computed in float32, whatever dtype the
model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from motion.config import RVQVAEConfig
from motion.features.published import PUBLISHED
from motion.model import Reconstruction
from motion.models import MotionModel
from motion.skeleton.tree import Skeleton
from motion.train.movement import MeanError, Movement, find_accelerations, find_foot_error
from motion.vae import VAEReconstruction
from wanvae.engine.config import check, check_option

ErrorKind = Literal["smooth_l1", "l1", "l2"]
# Turns normalized features ``(B, T, D)`` into positions of joints in each frame.
Locator: TypeAlias = Callable[[Tensor], Tensor]

TERMS = ("features", "position", "velocity", "path", "acceleration", "foot_velocity")
# Terms of positions of joints in the world.
WORLD_TERMS = ("path", "acceleration", "foot_velocity")

ERRORS: dict[str, MeanError] = {
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
        path: weight of the error of the positions of joints in the world, in metres. Path and
            heading of a window are added up from its first frame, so a bias of velocities counts.
            It keeps paths from drifting, and needs features with a root.
        acceleration: weight of the error of the accelerations of joints in m/s^2, second
            differences of their positions. It makes motion smooth.
        foot_velocity: weight of the error of the velocities in m/s of feet that are on the ground
            in the original. It keeps feet from sliding.
        commitment: weight of the squared distance of latents from their codes, which moves latents.
        codebook: weight of the same distance where it moves codes. Only the codes of quantizers
            that learn by gradients are moved so.
        kl: weight of the KL divergence of the latents of a VAE from N(0, 1), in nats for each
            number of a latent. The default is of MLD (Chen et al., arXiv 2212.04048).
        error: the error of all terms before commitment. "smooth_l1" is half the squared error
            below 1, and the absolute error minus a half above 1; "l1" is the absolute error, "l2"
            the squared error.
    """

    features: float = 1.0
    position: float = 0.5
    velocity: float = 0.0
    path: float = 0.0
    acceleration: float = 0.0
    foot_velocity: float = 0.0
    commitment: float = 0.02
    codebook: float = 1.0
    kl: float = 1e-4
    error: ErrorKind = "smooth_l1"

    def __post_init__(self) -> None:
        weights = (self.features, self.position, self.velocity)
        for name in (*TERMS, "commitment", "codebook", "kl"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        expected = "above 0 if position and velocity are 0"
        check(max(weights) > 0, "features", self.features, expected)
        check_option("error", self.error, ErrorKind)


class MotionLosses:
    """Computes the loss terms of a config. Terms of weight 0 are not computed.

    Args:
        config: the weights.
        model: the model that is trained.
        skeleton: the skeleton of the motion; None for features that are not known. Then there is no
            position term, whatever its weight.

    Raises:
        MotionError: feet are asked for, and the names of the joints do not tell them.
        UserError: positions in the world are asked for, or positions alone, and the features are
            not known; or a path is asked for, and the features have no root.
    """

    def __init__(self, config: LossConfig, model: MotionModel, skeleton: Skeleton | None) -> None:
        self.config = config if skeleton is not None else drop_position(config)
        check_path(config, model)
        self.movement = Movement(model, skeleton)
        self.feet = self.movement.find_feet() if config.foot_velocity > 0 else []
        channels = None
        if skeleton is not None:
            channels = find_position_channels(model.config, skeleton.joints)
        self.locate = self.movement.find_pose if channels is None else select(channels)

    def __call__(self, reconstruction: Reconstruction | VAEReconstruction) -> dict[str, Tensor]:
        """Returns the weighted terms by name, float32 scalars. Their sum is the loss."""
        error, fps = ERRORS[self.config.error], self.movement.fps
        pair = reconstruction.output.float(), reconstruction.target.float()
        located = cache(lambda: [self.locate(x) for x in pair])
        places = cache(lambda: self._find_places(pair, located))
        measures: dict[str, Callable[[], Tensor]] = {
            "features": lambda: error(*pair),
            "position": lambda: error(*located()),
            "velocity": lambda: error(*(features.diff(dim=1) for features in pair)),
            "path": lambda: error(*places()),
            "acceleration": lambda: error(*(find_accelerations(x, fps) for x in places())),
            "foot_velocity": lambda: self._find_foot_error(places()),
            **measure_latents(reconstruction),
        }
        weights = {name: getattr(self.config, name, 1.0) for name in measures}
        return {name: weights[name] * measures[name]() for name in measures if weights[name] > 0}

    def _find_places(
        self, pair: Sequence[Tensor], located: Callable[[], list[Tensor]]
    ) -> list[Tensor]:
        """Returns positions of joints in the world, from what ``locate`` has found if it can."""
        find_pose, find_places = self.movement.find_pose, self.movement.find_places
        poses = located() if self.locate == find_pose else map(find_pose, pair)
        return [find_places(x, pose) for x, pose in zip(pair, poses, strict=True)]

    def _find_foot_error(self, places: Sequence[Tensor]) -> Tensor:
        output, target = (positions[:, :, self.feet] for positions in places)
        return find_foot_error(ERRORS[self.config.error], output, target, self.movement.fps)


def check_path(config: LossConfig, model: MotionModel) -> None:
    """Raises UserError if a path is asked for, and the features of the model have none."""
    spec = model.config.features
    if spec is not None and not spec.root:
        check(config.path == 0, "loss.path", config.path, "0, because the features have no root")


def drop_position(config: LossConfig) -> LossConfig:
    """Returns the weights for features that are not known, without the position term.

    Raises:
        UserError: no other term is left, or a term needs positions in the world.
    """
    for name in WORLD_TERMS:
        expected = "0, because what the features are is not known"
        check(getattr(config, name) == 0, f"loss.{name}", getattr(config, name), expected)
    return replace(config, position=0.0)


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


def select(channels: slice) -> Locator:
    """Returns the function that returns these channels."""
    return lambda features: features[..., channels]


def find_position_channels(config: RVQVAEConfig, joints: int) -> slice | None:
    """Returns the channels that are positions of joints; None if there are none."""
    spec = config.features
    if spec is None:
        return PUBLISHED[config.channels].positions
    if not spec.positions:
        return None
    first = 6 * joints + spec.root_channels
    return slice(first, first + 3 * joints)
