"""Figures agree with other implementations of them, and say what they are meant to."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from tests.metrics.test_lpips import features
from wanvae.evaluate.scores import APART, WORST, Scores
from wanvae.metrics.lpips import Lpips
from wanvae.metrics.means import Mean

# Of the scales of MS-SSIM, from fine to coarse (Wang et al. 2003).
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
GROUP = 4


def images(side: int = 48, noise: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth picture ``(3, side, side + 8)`` and one that is like it."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side + 8), indexing="ij")
    picture = torch.stack([torch.sin(0.11 * x + 0.07 * y * c) for c in (1, 2, 3)])
    other = picture * 0.9 + noise * torch.randn(picture.shape, generator=generator)
    return picture, other.clamp(-1, 1)


def scores_of(*pairs: tuple[Tensor, Tensor], lpips: Lpips | None = None) -> Scores:
    scores = Scores(GROUP, lpips)
    for original, image in pairs:
        scores.add(original, image)
    return scores


def test_the_error_of_alpha_is_in_levels() -> None:
    picture, other = (torch.cat([x, x[:1] / 2]) for x in images())
    scores = scores_of((picture, other), (picture, picture))
    expected = 127.5 * float((picture - other)[3].abs().mean()) / 2
    assert scores.alpha.value == pytest.approx(expected, rel=1e-5)
    assert scores_of(images()).alpha.value is None


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    pairs = [images(seed=seed, noise=noise) for seed, noise in enumerate((0.05, 0.2, 0.6))]
    scores = scores_of(*pairs)
    arrays = [(a.double().numpy(), b.double().numpy()) for a, b in pairs]
    expected = [peak_signal_noise_ratio(*pair, data_range=2.0) for pair in arrays]
    assert scores.psnr == pytest.approx(expected, abs=1e-4)
    assert scores.mean_psnr == pytest.approx(np.mean(expected), abs=1e-4)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similar = [
        structural_similarity(*pair, data_range=2.0, channel_axis=0, **options) for pair in arrays
    ]
    assert scores.ssim.value == pytest.approx(np.mean(similar), abs=1e-4)
    assert scores.ms_ssim.value is None  # too small for it


def blurred(x: np.ndarray) -> np.ndarray:
    """By a Gaussian window of 11 pixels, where it fits."""
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    for axis in (1, 2):
        x = convolve1d(x, window, axis=axis)
    return x[:, 5:-5, 5:-5]


def similarity(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """SSIM, and its factor without luminance."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_a, mean_b = blurred(a), blurred(b)
    variances = blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2
    structure = (2 * (blurred(a * b) - mean_a * mean_b) + c2) / (variances + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((structure * luminance).mean()), float(structure.mean())


def halved(x: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in x.shape[1:])
    return x[:, :height, :width].reshape(3, height // 2, 2, width // 2, 2).mean((2, 4))


def test_ms_ssim_is_that_of_its_definition() -> None:
    original, image = images(side=178)
    a, b = original.double().numpy(), image.double().numpy()
    expected = 1.0
    for scale, weight in enumerate(WEIGHTS):
        whole, structure = similarity(a, b)
        expected *= (whole if scale == len(WEIGHTS) - 1 else structure) ** weight
        a, b = halved(a), halved(b)
    assert scores_of((original, image)).ms_ssim.value == pytest.approx(expected, abs=1e-4)


def lpips(network: Lpips, image: Tensor, original: Tensor) -> float:
    """By its definition: weighted squares between unit vectors of features, layer by layer."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    layers = [
        network.network.net((x[None] - shift.view(3, 1, 1)) / scale.view(3, 1, 1))
        for x in (image, original)
    ]
    total = 0.0
    for one, other, weights in zip(*layers, network.network.lins, strict=True):
        unit = [x / x.norm(dim=1, keepdim=True) for x in (one, other)]
        total += weights((unit[0] - unit[1]) ** 2).mean().item()
    return total


def test_lpips_is_that_of_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained=False: features(net)
    )
    torch.manual_seed(0)
    network = Lpips("alex").eval()
    pairs = [images(seed=seed) for seed in range(2)]
    expected = np.mean([lpips(network, image, original) for original, image in pairs])
    assert scores_of(*pairs, lpips=network).lpips.value == pytest.approx(expected, abs=1e-4)
    small = scores_of(tuple(x[:, :30, :30] for x in images()), lpips=network)
    assert small.lpips.value is None


def test_the_worst_frames_are_few_and_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.zeros(3, 4, 4)
    errors = torch.rand(60, generator=generator).tolist()
    scores = scores_of(*((original, original + error) for error in errors))
    numbers = [frame.number for frame in scores.worst]
    assert len(numbers) == WORST and abs(numbers[0] - numbers[1]) >= APART
    assert numbers[0] == int(np.argmax(errors))
    for frame in scores.worst:
        assert frame.psnr == scores.psnr[frame.number]
        assert torch.equal(frame.image, original + errors[frame.number])
        assert frame.image.untyped_storage().nbytes() == frame.image.nbytes


def test_exact_frames_have_no_psnr_and_count_for_nothing() -> None:
    original = torch.zeros(3, 16, 16)
    scores = scores_of((original, original), (original, original + 0.2))
    assert scores.psnr[0] == math.inf
    assert scores.mean_psnr == pytest.approx(20)
    assert scores_of((original, original)).mean_psnr is None
    assert Mean().value is None
