"""rFVD: the Frechet distance between features of videos and of their reconstructions.

Features of windows of 16 frames are those of I3D, as in Unterthiner et al., arXiv 1812.01717. The
network gets frames as they are, in 8-bit levels, and scales both itself, as in Skorokhodov et al.,
arXiv 2112.14683.
"""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from wanvae.engine.text import first_sentence
from wanvae.errors import UserError

# Frames that are looked at together.
WINDOW = 16
# What a wrong file is found out with: frames of such a side.
PROBE_SIDE = 64


class I3D:
    """I3D as the TorchScript file in common use has it (``i3d_torchscript.pt``, 400 features).

    Such a file is a program that is run.

    Args:
        path: of the file.
        device: where to compute.

    Raises:
        ValueError: it is no such file.
    """

    def __init__(self, path: str | PathLike[str], device: torch.device) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} is no file; name that of I3D, i3d_torchscript.pt, as --i3d")
        try:
            with warnings.catch_warnings():
                # PyTorch wants no new files of this kind, but this is an old one.
                warnings.simplefilter("ignore", FutureWarning)
                self.network = torch.jit.load(self.path, map_location=device).eval()
        except RuntimeError as error:
            raise UserError(
                f"{path} is no TorchScript file ({first_sentence(error)}); "
                "name i3d_torchscript.pt as --i3d"
            ) from error
        self.device = device
        self.count = self(torch.zeros(3, WINDOW, PROBE_SIDE, PROBE_SIDE, dtype=torch.uint8)).numel()

    @torch.no_grad()
    def __call__(self, window: Tensor) -> Tensor:
        """Features ``(D,)`` on the CPU of a window ``(3, 16, H, W)`` in 8-bit levels."""
        video = window[None].to(self.device, torch.float32)
        try:
            # It takes 8-bit levels to [-1, 1] and frames to 224x224 pixels; before the softmax.
            features = self.network(video, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            raise UserError(
                f"{self.path} does not work as I3D ({first_sentence(error)}); it must take a "
                "video, rescale, resize and return_features, as i3d_torchscript.pt does"
            ) from error
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 1:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise UserError(
                f"{self.path} gives {shape} for a video, not (1, features) as I3D does; "
                "name i3d_torchscript.pt as --i3d"
            )
        return features[0].float().cpu()


class Windows:
    """The features of a video, window after window; frames that fill none are left out."""

    def __init__(self, network: I3D) -> None:
        self._network = network
        self._frames: list[Tensor] = []
        self._features: list[Tensor] = []

    def add(self, image: Tensor) -> None:
        """Add the next frame ``(3, H, W)`` in [-1, 1]."""
        self._frames.append(((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        if len(self._frames) == WINDOW:
            self._features.append(self._network(torch.stack(self._frames, dim=1)))
            self._frames.clear()

    @property
    def features(self) -> Tensor:
        """Of each window so far, ``(N, D)``."""
        if not self._features:
            return torch.zeros(0, self._network.count)
        return torch.stack(self._features)


class Moments:
    """Mean and covariance of features as they come, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Count features ``(N, D)``."""
        features = features.double()
        total, products = features.sum(0), features.T @ features
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products + products
        self.count += len(features)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """``(D,)`` and, unbiased, ``(D, D)``; of at least 2."""
        if self._sum is None or self._products is None or self.count < 2:
            raise UserError(f"a covariance needs at least 2 windows, not {self.count}")
        mean = self._sum / self.count
        covariance = (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean, covariance


def frechet_distance(one: Moments, other: Moments) -> float:
    """``|m - n|^2 + tr(S + T - 2 sqrt(S T))`` of normal distributions of such moments.

    The trace of the square root is the sum of the roots of the eigenvalues of ``sqrt(S) T
    sqrt(S)``, which are those of ``S T``, and not negative.
    """
    (mean, first), (other_mean, second) = one.mean_and_covariance(), other.mean_and_covariance()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    roots = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt()
    distance = (mean - other_mean).square().sum() + first.trace() + second.trace() - 2 * roots.sum()
    return max(0.0, distance.item())
