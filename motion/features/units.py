"""Whether features are in the units that a model wants, told from their values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import Tensor

from motion.features.normalizer import Normalizer
from motion.features.published import PUBLISHED
from motion.features.recording import Recording

# The vectors of rotations have length 1 in features in their own units. Of normalized features a
# few percent have this length by chance.
LENGTH_TOLERANCE = 0.05
LEAST_SHARE = 0.9


def are_in_own_units(features: Tensor) -> bool:
    """Whether published features (T, D) of joints are in their own units, and not normalized.

    Features that a model generated may be in their own units though this function does not say so.
    """
    vectors = features[:, PUBLISHED[features.shape[1]].rotations].unflatten(1, (-1, 3))
    lengths = vectors.norm(dim=-1)
    lengths = lengths[lengths > 0]  # padding
    near = (lengths - 1).abs() < LENGTH_TOLERANCE
    return bool(near.float().mean() > LEAST_SHARE)


def warn_of_units(recording: Recording, normalizer: Normalizer, *, shown: bool) -> None:
    """Warns if the features of a recording are certainly not in the units that a model wants.

    The text is the same for all recordings, so that Python shows it once.

    Nothing is known about features that are not published.

    Args:
        shown: whether errors in millimetres or pictures follow, which normalized features do not
            give.
    """
    features = recording.features
    if recording.skeleton is None:
        return
    own = recording.clip is not None or are_in_own_units(features)
    if own and not normalizer.is_set:
        warnings.warn(
            "the features of the motion are not normalized, and the model has no mean and "
            "standard deviation to normalize them with. The result is wrong, unless the model was "
            "trained on such features: put both into the checkpoint, with python -m motion "
            "convert --to native --mean Mean.npy --std Std.npy",
            stacklevel=1,
        )
    if not own and not normalizer.is_set and shown:
        warnings.warn(
            "the features of the motion seem to be normalized, so errors in millimetres and "
            "pictures are wrong: put the mean and standard deviation into the checkpoint (python "
            "-m motion convert --to native --mean Mean.npy --std Std.npy), and use features that "
            "are not normalized",
            stacklevel=1,
        )
    if recording.clip is None and are_normalized_already(features, normalizer):
        warn_of_normalizing_twice()


def warn_of_training_units(recordings: Iterable[Tensor], normalizer: Normalizer) -> None:
    """Warns once if features (T, D) to train on are certainly normalized already.

    Args:
        recordings: published features of joints.
        normalizer: the normalizer of the model that is trained.
    """
    if any(are_normalized_already(features, normalizer) for features in recordings):
        warn_of_normalizing_twice()


def warn_of_drawn_units(features: Tensor) -> None:
    """Warns if features (T, D) that are drawn without a model seem to be normalized."""
    if features.shape[1] in PUBLISHED and not are_in_own_units(features):
        warnings.warn(
            "the features of the motion seem to be normalized, because their rotations do not have "
            "length 1. If they are, the picture is wrong: use the features as they are before they "
            "are normalized. Features that a model generated may look normalized, too",
            stacklevel=1,
        )


def warn_of_normalizing_twice() -> None:
    warnings.warn(
        "the features of the motion are normalized already, and the model normalizes them again, "
        "so the result is wrong: use the features as they are before they are normalized",
        stacklevel=1,
    )


def are_normalized_already(features: Tensor, normalizer: Normalizer) -> bool:
    """Whether features (T, D) are in their own units only once they are denormalized."""
    known = features.shape[1] in PUBLISHED
    if not known or not normalizer.is_set or are_in_own_units(features):
        return False
    return are_in_own_units(denormalize(features, normalizer))


def denormalize(features: Tensor, normalizer: Normalizer) -> Tensor:
    """Returns features on the CPU in their own units, if they are normalized."""
    return features * normalizer.std.cpu() + normalizer.mean.cpu()
