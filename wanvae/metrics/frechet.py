"""rFVD: the Frechet distance between features of videos and of their reconstructions.

I3D computes the features of windows of 16 frames, as in Unterthiner et al., arXiv 1812.01717. The
network takes frames of any size in 8-bit levels, and scales size and values itself, as in
Skorokhodov et al., arXiv 2112.14683.
"""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from wanvae.engine.memory import is_out_of_memory
from wanvae.engine.text import first_sentence
from wanvae.errors import UserError

# Frames of a window.
WINDOW = 16
# Side of the test frames that show whether a file is I3D.
PROBE_SIDE = 64


class I3D:
    """The usual I3D network, a TorchScript file (``i3d_torchscript.pt``, 400 features).

    Such a file is a program that is run.

    Args:
        path: the file.
        device: where to compute.

    Attributes:
        count: number of features.

    Raises:
        UserError: the file is not I3D.
    """

    def __init__(self, path: str | PathLike[str], device: torch.device) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"{path} is not a file; name the file of I3D, i3d_torchscript.pt, as --i3d"
            )
        try:
            with warnings.catch_warnings():
                # PyTorch discourages new TorchScript files, but this is an old one.
                warnings.simplefilter("ignore", FutureWarning)
                self.network = torch.jit.load(self.path, map_location=device).eval()
        except RuntimeError as error:
            raise UserError(
                f"{path} is not a TorchScript file ({first_sentence(error)}); "
                "name i3d_torchscript.pt as --i3d"
            ) from error
        self.device = device
        self.count = self(torch.zeros(3, WINDOW, PROBE_SIDE, PROBE_SIDE, dtype=torch.uint8)).numel()

    @torch.no_grad()
    def __call__(self, window: Tensor) -> Tensor:
        """Returns features ``(D,)`` on the CPU of a window ``(3, 16, H, W)`` in 8-bit levels.

        Raises:
            UserError: the network is not I3D.
        """
        video = window[None].to(self.device, torch.float32)
        try:
            # It scales 8-bit levels to [-1, 1] and frames to 224x224 pixels.
            features = self.network(video, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.path} does not work as I3D ({first_sentence(error)}); it must take a "
                "video, rescale, resize and return_features, as i3d_torchscript.pt does"
            ) from error
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 1:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise UserError(
                f"{self.path} returns {shape} for a video, not (1, features) as I3D does; "
                "name i3d_torchscript.pt as --i3d"
            )
        return features[0].float().cpu()


class Windows:
    """The features of a video, window after window. Frames that fill no window are ignored."""

    def __init__(self, network: I3D) -> None:
        self._network = network
        self._frames: list[Tensor] = []
        self._features: list[Tensor] = []

    def add(self, image: Tensor) -> None:
        """Adds the next frame ``(3, H, W)`` in [-1, 1]."""
        self._frames.append(((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        if len(self._frames) == WINDOW:
            self._features.append(self._network(torch.stack(self._frames, dim=1)))
            self._frames.clear()

    @property
    def features(self) -> Tensor:
        """The features of each window so far, ``(N, D)``."""
        if not self._features:
            return torch.zeros(0, self._network.count)
        return torch.stack(self._features)


class Moments:
    """Mean and covariance of a stream of features, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Counts features ``(N, D)``."""
        features = features.double()
        total, products = features.sum(0), features.T @ features
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products + products
        self.count += len(features)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Returns the mean ``(D,)`` and the unbiased covariance ``(D, D)`` of 2 or more features.

        Raises:
            ValueError: there are fewer features.
        """
        if self._sum is None or self._products is None or self.count < 2:
            raise ValueError(f"a covariance needs at least 2 windows, not {self.count}")
        mean = self._sum / self.count
        covariance = (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean, covariance


def frechet_distance(one: Moments, other: Moments) -> float:
    """Returns the distance of two normal distributions, ``|m - n|^2 + tr(S + T - 2 sqrt(S T))``.

    The trace of the square root is the sum of the roots of the eigenvalues of ``S T``. The matrix
    ``sqrt(S) T sqrt(S)`` has the same eigenvalues, and they are not negative.
    """
    (mean, first), (other_mean, second) = one.mean_and_covariance(), other.mean_and_covariance()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    roots = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt()
    distance = (mean - other_mean).square().sum() + first.trace() + second.trace() - 2 * roots.sum()
    return max(0.0, distance.item())
