"""FID, R-precision, MM-distance, diversity and multimodality of vectors of motion and text.

Definitions: "Generating Diverse and Natural 3D Human Motions from Text" (Guo et al., CVPR 2022),
and TM2T for what is drawn by chance. All are computed in float64. Vectors are rows ``(N, E)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wanvae.errors import UserError
from wanvae.metrics.frechet import Moments, frechet_distance

# Texts among which R-precision looks for the text of a motion.
GROUP = 32
# The ranks that count as found.
RANKS = 3
# Pairs for diversity, and pairs for each text for multimodality.
DIVERSITY_PAIRS, MULTIMODALITY_PAIRS = 300, 10


def fid(vectors: Tensor, originals: Tensor) -> float:
    """Returns the Frechet distance between the normal distributions of ``(N, E)`` and ``(M, E)``.

    The root of the product of two covariances comes from the eigenvalues of symmetric matrices,
    which is stable where there are fewer vectors than dimensions.

    Raises:
        UserError: there are fewer than 2 vectors, or they differ in size.
    """
    check_vectors(vectors, originals)
    moments = Moments(), Moments()
    for each, rows in zip(moments, (vectors, originals), strict=True):
        if len(rows) < 2:
            raise UserError(f"FID needs at least 2 motions, not {len(rows)}")
        # Around a common origin squares lose no digits; the distance does not change.
        each.add(rows.double() - originals[0].double())
    return frechet_distance(*moments)


def r_precision(texts: Tensor, motions: Tensor, group: int = GROUP) -> tuple[float, ...]:
    """Returns how often a text finds its motion among the first 1, 2, 3 of its group.

    Each group of ``group`` rows in order is searched by itself; the rest is left out.

    Args:
        texts, motions: ``(N, E)``; row n of both belong together.

    Returns:
        The shares for the ranks up to 1, 2 and 3.

    Raises:
        UserError: they differ in shape, or there is no whole group.
    """
    check_pairs(texts, motions)
    whole = len(texts) // group * group
    if not whole:
        raise UserError(f"R-precision needs at least {group} motions with texts, not {len(texts)}")
    first, second = (rows[:whole].double().unflatten(0, (-1, group)) for rows in (texts, motions))
    distances = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    own = distances.diagonal(dim1=1, dim2=2)[:, :, None]
    # The rank of the right one. Equal distances count against it, so a model whose motions are all
    # alike finds nothing.
    ranks = (distances <= own).sum(2)
    return tuple((ranks <= rank).double().mean().item() for rank in range(1, RANKS + 1))


def mm_distance(texts: Tensor, motions: Tensor) -> float:
    """Returns the mean distance of texts and their motions, ``(N, E)`` each.

    Raises:
        UserError: they differ in shape, or there are none.
    """
    check_pairs(texts, motions)
    return (texts.double() - motions.double()).norm(dim=1).mean().item()


def diversity(
    vectors: Tensor, pairs: int = DIVERSITY_PAIRS, generator: torch.Generator | None = None
) -> float:
    """Returns the mean distance of random pairs of ``(N, E)``.

    Both halves of the pairs are drawn without repetition, so there are at most N pairs.

    Raises:
        UserError: there are no vectors.
    """
    check_vectors(vectors, vectors)
    return mean_of_pairs(vectors, pairs, generator)


def multimodality(
    vectors: Tensor, pairs: int = MULTIMODALITY_PAIRS, generator: torch.Generator | None = None
) -> float:
    """Returns the mean distance of random pairs of motions that were generated for the same text.

    Args:
        vectors: ``(texts, N, E)``, of N motions for each text.
        pairs: pairs for each text, at most N. The pairs are the same for all texts, as published.

    Raises:
        UserError: vectors have another shape, or there are none.
    """
    if vectors.dim() != 3 or not vectors.numel():
        raise UserError(f"vectors must be (texts, motions, size), not {tuple(vectors.shape)}")
    return mean_of_pairs(vectors.movedim(1, 0), pairs, generator)


def mean_of_pairs(vectors: Tensor, pairs: int, generator: torch.Generator | None) -> float:
    """Returns the mean distance of random pairs of the rows ``(N, ..., E)``."""
    halves = (torch.randperm(len(vectors), generator=generator)[:pairs] for _ in range(2))
    first, second = (vectors[half.to(vectors.device)].double() for half in halves)
    return (first - second).norm(dim=-1).mean().item()


def check_pairs(texts: Tensor, motions: Tensor) -> None:
    """Raises UserError unless there are as many texts as motions."""
    check_vectors(texts, motions)
    if len(texts) != len(motions):
        raise UserError(f"there are {len(texts)} texts for {len(motions)} motions; give one each")


def check_vectors(vectors: Tensor, others: Tensor) -> None:
    """Raises UserError unless both are rows of vectors of one size, and there are some."""
    for each in (vectors, others):
        if each.dim() != 2 or not each.numel() or each.shape[1] != vectors.shape[1]:
            raise UserError(
                f"vectors must be (N, size), all of one size, not {tuple(vectors.shape)} and "
                f"{tuple(others.shape)}"
            )
