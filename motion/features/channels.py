"""How many channels the features of a skeleton have, and whether a model has as many."""

from __future__ import annotations

from motion.config import RVQVAEConfig
from motion.skeleton.tree import Skeleton
from wanvae.errors import UserError


def check_skeleton(config: RVQVAEConfig, skeleton: Skeleton) -> None:
    """Raises UserError if a skeleton has another number of joints than the features of a model."""
    if (found := count_channels(config, skeleton)) != config.channels:
        raise UserError(
            f"a skeleton of {skeleton.joints} joints has {found} channels, but the model has "
            f"{config.channels}"
        )


def count_channels(config: RVQVAEConfig, skeleton: Skeleton) -> int:
    """Returns the number of channels of a skeleton; as the model has, if it has no rotations."""
    spec = config.features
    return config.channels if spec is None else spec.channels(skeleton.joints)
