"""rFVD: the distance of its definition, and one line for each file that is no I3D."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from wanvae.metrics.frechet import I3D, WINDOW, Moments, Windows, frechet_distance


class Stand(nn.Module):
    """Called like I3D: a few means of a video in 8-bit levels."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        assert rescale and resize and return_features
        assert x.shape[1:3] == [3, 16] and x.min() >= 0 and x.max() <= 255
        x = x / 127.5 - 1
        return torch.cat([x.mean([2, 3, 4]), x.std([2, 3, 4])], dim=1)


class Square(nn.Module):
    """A program, but of other arguments."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Numbers(nn.Module):
    """A program that returns something else."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x


def save(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch wants no new files of this kind
        torch.jit.script(module).save(str(path))
    return path


@pytest.fixture(scope="module")
def i3d(tmp_path_factory: pytest.TempPathFactory) -> I3D:
    path = save(Stand(), tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt")
    return I3D(path, torch.device("cpu"))


def normal(count: int, seed: int, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing + 10 * seed


def moments(*pieces: Tensor) -> Moments:
    moments = Moments()
    for piece in pieces:
        moments.add(piece)
    return moments


@pytest.mark.parametrize("count", [3, 40])  # fewer samples than features, and more
def test_the_distance_is_that_of_its_definition(count: int) -> None:
    one, other = normal(count, 0), normal(count, 1)
    distance = frechet_distance(moments(one), moments(other))
    a, b = one.double().numpy(), other.double().numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(s @ t).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)
    assert distance == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(moments(one), moments(one)) == pytest.approx(0, abs=1e-4)


def test_moments_do_not_depend_on_pieces() -> None:
    features = normal(30, 2)
    whole = moments(features).mean_and_covariance()
    pieces = moments(*features.split([1, 0, 20, 9])).mean_and_covariance()
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other)
    assert whole[1].numpy() == pytest.approx(np.cov(features.double().numpy(), rowvar=False))
    with pytest.raises(ValueError, match="at least 2 windows, not 1"):
        moments(features[:1]).mean_and_covariance()


def test_windows_are_whole_and_in_levels_of_8_bits(i3d: I3D) -> None:
    windows = Windows(i3d)
    assert windows.features.shape == (0, 6)
    for number in range(2 * WINDOW + 3):
        windows.add(torch.full((3, 8, 8), -1 + number // WINDOW * 0.5))
    assert windows.features.shape == (2, 6)
    # The levels of -1 and -0.5, to whole numbers, and back.
    expected = torch.tensor([-1.0, round(0.5 * 127.5) / 127.5 - 1])
    torch.testing.assert_close(windows.features[:, 0], expected)


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    text, tensors = tmp_path / "text.pt", tmp_path / "tensors.pt"
    text.write_text("no program")
    torch.save({"a": torch.zeros(1)}, tensors)
    cases = [
        (tmp_path / "missing.pt", "is not a file; name the file of I3D"),
        (text, "is not a TorchScript file"),
        (tensors, "is not a TorchScript file"),
        (save(Square(), tmp_path / "square.pt"), "does not work as I3D"),
        (save(Numbers(), tmp_path / "numbers.pt"), r"returns \(1, 3, 16, 64, 64\) for a video"),
    ]
    for path, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            I3D(path, torch.device("cpu"))
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_running_out_of_memory_is_not_blamed_on_the_file(i3d: I3D, monkeypatch) -> None:
    def run_out(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(i3d, "network", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        i3d(torch.zeros(3, WINDOW, 64, 64, dtype=torch.uint8))
