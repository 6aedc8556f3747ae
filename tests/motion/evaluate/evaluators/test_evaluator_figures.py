"""FID, R-precision and the others against NumPy and SciPy, by their definitions."""

import numpy as np
import pytest
import torch

from motion.evaluate.evaluators.figures import (
    diversity,
    fid,
    mm_distance,
    multimodality,
    r_precision,
)
from wanvae.errors import UserError


def draw(*shape: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return shift + torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [400, 12], ids=["many", "fewer than dimensions"])
def test_fid_is_the_distance_of_two_normal_distributions(count):
    linalg = pytest.importorskip("scipy.linalg")
    first = draw(count, 24, shift=100.0) @ draw(24, 24, seed=5)
    second = 1.5 * draw(count + 7, 24, seed=1, shift=99.5) @ draw(24, 24, seed=5)
    one, other = first.double().numpy(), second.double().numpy()
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert fid(first, second) == pytest.approx(expected, rel=1e-4)
    assert fid(second, first) == pytest.approx(fid(first, second), rel=1e-9)


def test_fid_of_known_distributions():
    """Along one axis it is the squared difference of means and of deviations."""
    values = torch.tensor([[-1.0], [1.0]])
    assert fid(3 * values + 5, values) == pytest.approx(25 + 4 * 2)
    same = draw(30, 64)
    assert fid(same, same) == pytest.approx(0, abs=1e-6)
    assert fid(same + 1e6, same + 1e6) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("count", [32, 64, 100])
def test_r_precision_and_mm_distance_are_those_of_numpy(count):
    motions = draw(count, 6)
    texts = motions + 0.8 * draw(count, 6, seed=1)
    found, distances = np.zeros(3), []
    for group in range(count // 32):
        rows = slice(32 * group, 32 * group + 32)
        one, other = texts[rows].double().numpy(), motions[rows].double().numpy()
        table = np.sqrt(((one[:, None] - other[None]) ** 2).sum(2))
        order = np.argsort(table, axis=1)
        for row in range(32):
            place = int(np.where(order[row] == row)[0][0])
            found += place < np.arange(1, 4)
    expected = found / (32 * (count // 32))
    assert 0.1 < expected[0] < expected[2] < 1
    np.testing.assert_allclose(r_precision(texts, motions), expected)
    distances = [np.linalg.norm(a - b) for a, b in zip(texts.numpy(), motions.numpy(), strict=True)]
    assert mm_distance(texts, motions) == pytest.approx(np.mean(distances), rel=1e-6)


def test_motions_that_are_all_alike_find_nothing():
    assert r_precision(draw(32, 4), torch.ones(32, 4)) == (0, 0, 0)
    assert r_precision(draw(32, 4), draw(32, 4)) == (1, 1, 1)


def test_diversity_is_the_mean_distance_of_random_pairs():
    vectors = draw(50, 5)
    seed = torch.Generator().manual_seed(3)
    first, second = (torch.randperm(50, generator=seed)[:20].numpy() for _ in range(2))
    rows = vectors.double().numpy()
    expected = np.linalg.norm(rows[first] - rows[second], axis=1).mean()
    assert diversity(vectors, 20, torch.Generator().manual_seed(3)) == pytest.approx(expected)
    many, count = draw(2000, 5), 2000
    distances = torch.cdist(many.double(), many.double()).sum() / count**2
    assert diversity(many, 2000) == pytest.approx(distances.item(), rel=0.05)
    assert diversity(vectors[:1]) == 0


def test_multimodality_is_the_mean_over_texts_and_pairs():
    vectors = draw(4, 30, 5) + 100 * draw(4, 1, 5, seed=2)
    seed = torch.Generator().manual_seed(3)
    first, second = (torch.randperm(30, generator=seed)[:10].tolist() for _ in range(2))
    rows = vectors.double().numpy()
    distances = [
        np.linalg.norm(text[i] - text[j])
        for text in rows
        for i, j in zip(first, second, strict=True)
    ]
    found = multimodality(vectors, generator=torch.Generator().manual_seed(3))
    assert found == pytest.approx(np.mean(distances))
    assert found < 10  # the distances of texts do not count


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="at least 2 motions, not 1"):
        fid(draw(1, 4), draw(5, 4))
    with pytest.raises(UserError, match=r"not \(5, 4\) and \(5, 3\)"):
        fid(draw(5, 4), draw(5, 3))
    with pytest.raises(UserError, match="5 texts for 6 motions"):
        mm_distance(draw(5, 4), draw(6, 4))
    with pytest.raises(UserError, match="at least 32 motions with texts, not 31"):
        r_precision(draw(31, 4), draw(31, 4))
    with pytest.raises(UserError, match=r"must be \(texts, motions, size\)"):
        multimodality(draw(5, 4))
    with pytest.raises(UserError, match=r"\(N, size\)"):
        diversity(draw(5))
