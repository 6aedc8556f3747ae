"""Whether the skeleton of a motion is the skeleton that a model knows."""

from __future__ import annotations

import os
import warnings

from motion.config import RVQVAEConfig
from motion.errors import MotionError, SkeletonError
from motion.features.channels import count_channels
from motion.files.formats import match_packaged
from motion.skeleton.matching import Matching, match_skeletons
from motion.skeleton.tree import Skeleton

RETARGET = (
    "--retarget, or python -m motion convert FILE OUT.bvh --skeleton CHECKPOINT, moves the "
    "skeleton of the model as the file moves"
)


def match_file(
    path: str | os.PathLike[str],
    own: Skeleton,
    config: RVQVAEConfig,
    wanted: Skeleton | None,
    advice: str = RETARGET,
) -> Matching | None:
    """Matches the skeleton of a file with the skeleton of a model.

    A warning tells that the order or the names of joints differ. It is the same for all files, so
    that Python shows it once.

    Args:
        path: the file.
        own, config, wanted: as for ``match_model``.
        advice: what to do where the model knows another skeleton.

    Raises:
        MotionError, SkeletonError: as ``match_model``.
    """
    try:
        matching = match_model(own, config, wanted)
    except MotionError as error:
        raise type(error)(f"{path} {error}{f'; {advice}' if wanted else ''}") from None
    if matching is None or wanted is None:
        return matching
    packaged = match_packaged(own)
    if (own if packaged is None else packaged.wanted).names != wanted.names:
        warnings.warn(
            "the joints of the motion have another order or other names than the joints of the "
            "model; they are matched by their names",
            stacklevel=3,
        )
    return matching


def warn_of_proportions(matching: Matching | None, wanted: Skeleton | None) -> None:
    """Warns if a person has other proportions than the skeleton of a model.

    The warning is the same for all files of one person, so that Python shows it once.

    Args:
        matching: as ``match_file`` returns it.
        wanted: the skeleton of the model; None if it is not known.
    """
    proportions = matching.describe_proportions() if matching and wanted else ""
    if proportions:
        warnings.warn(
            f"the bones of the motion are {proportions} as the bones that the model knows; its "
            "errors may be larger",
            stacklevel=2,
        )


def match_model(own: Skeleton, config: RVQVAEConfig, wanted: Skeleton | None) -> Matching | None:
    """Finds the joints of a model in a skeleton.

    Args:
        own: the skeleton of some motion, with the joints in the order of its file.
        config: the config of the model.
        wanted: the skeleton of the model; None if it is not known.

    Returns:
        Which joint of ``own`` each joint of the model is. If the skeleton of the model is not
        known, a skeleton with the tree of a packaged one gets the order of that one, and None
        stands for the order that any other skeleton has.

    Raises:
        MotionError: the skeleton has another number of joints than the model.
        SkeletonError: it has other joints, or another rest pose. Both messages begin with a verb.
    """
    found, reason = count_channels(config, own), "the file has another skeleton or other features"
    try:
        matching = match_packaged(own) if wanted is None else match_skeletons(own, wanted)
    except SkeletonError as error:
        if found == config.channels:
            raise
        matching, reason = None, f"it {error}"
    if found != config.channels:
        raise MotionError(
            f"has {found} channels of {own.joints} joints, but the model has {config.channels}: "
            f"{reason}"
        )
    return matching
