"""LPIPS: how different two videos look to a network that was trained on images."""

from __future__ import annotations

import re
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wanvae.engine.checkpoint import check_tensors, read_tensors
from wanvae.engine.text import first_sentence
from wanvae.errors import UserError

LpipsNetwork = Literal["vgg", "alex", "squeeze"]

# The network of torchvision behind each choice, and the smallest side of a frame that it takes.
BACKBONES = {"vgg": ("vgg16", 16), "alex": ("alexnet", 31), "squeeze": ("squeezenet1_1", 17)}
# Pixels whose features are in memory at once: about 1 GB with "vgg".
PIXELS_AT_ONCE = 2**19


class Lpips(nn.Module):
    """LPIPS (Zhang et al., arXiv 1801.03924) of each frame, by a fixed network in float32.

    Args:
        network: the network. "vgg" is usual in training, "alex" is usual in comparisons.
        weights: file with the weights of the network, named as in torchvision
            ("features.0.weight"), for machines that cannot download them.

    Attributes:
        smallest_side: the smallest side of a frame in pixels.

    Raises:
        UserError: the weights are not there and cannot be downloaded.
    """

    def __init__(self, network: LpipsNetwork, weights: str | PathLike[str] | None = None) -> None:
        super().__init__()
        backbone, self.smallest_side = BACKBONES[network]
        try:
            # The public class of torchmetrics can only download its backbone.
            from torchmetrics.functional.image.lpips import _NoTrainLpips

            self.network = _NoTrainLpips(net=network, pnet_rand=weights is not None)
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(
                f"LPIPS cannot get the weights of {backbone} ({first_sentence(error)}): install "
                "torchvision and either connect to the internet or name a file of them as "
                "loss.lpips_weights; or train without it by loss.lpips 0"
            ) from error
        if weights is not None:
            load_backbone(self.network.net, weights)

    def forward(self, output: Tensor, video: Tensor) -> Tensor:
        """Returns the distance of each frame of two videos, ``(B, T)``, at least 0.

        Args:
            output, video: ``(B, 3, T, H, W)`` in about [-1, 1], with or without gradients; or
                ``(B, 4, T, H, W)`` with alpha, which are compared over gray.
        """
        output, video = show_over_gray(output), show_over_gray(video)
        batch, channels, frames, height, width = video.shape
        if channels != 3 or min(height, width) < self.smallest_side:
            raise UserError(
                f"LPIPS needs 3 or 4 channels and at least {self.smallest_side} pixels a side, not "
                f"{channels} and {height}x{width}: set loss.lpips to 0 or take larger crops"
            )
        images = [x.float().transpose(1, 2).flatten(0, 1) for x in (output, video)]
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        pieces = zip(*(x.split(at_once) for x in images), strict=True)
        if batch * frames <= at_once:
            distances = [self.compare(*piece) for piece in pieces]
        else:
            distances = [
                checkpoint(self.compare, *piece, use_reentrant=False, preserve_rng_state=False)
                for piece in pieces
            ]
        return torch.cat(distances).view(batch, frames)

    def compare(self, output: Tensor, image: Tensor) -> Tensor:
        """Returns the distances ``(N,)`` of images ``(N, 3, H, W)``, always in float32."""
        with torch.autocast(output.device.type, enabled=False):
            return self.network(output, image).flatten()


def show_over_gray(video: Tensor) -> Tensor:
    """Returns the colours ``(B, 3, T, H, W)`` of a video, over gray if it has alpha."""
    if video.shape[1] != 4:
        return video
    colour, alpha = video.split([3, 1], dim=1)
    return colour * (alpha + 1) / 2  # gray is 0


def find_cached_backbone(network: LpipsNetwork) -> Path | None:
    """Returns the file of weights that torchvision has downloaded before, else None."""
    name, _ = BACKBONES[network]
    found = Path(torch.hub.get_dir(), "checkpoints").glob(f"{name}-*.pth")
    # torchvision calls the weights of AlexNet "alexnet-owt-7be5be79.pth".
    return next(iter(sorted(found)), None)


def load_lpips(
    network: LpipsNetwork, weights: str | PathLike[str] | None, option: str
) -> Lpips | str:
    """Returns LPIPS, or why it cannot be measured. Nothing is downloaded.

    Args:
        weights: file with the weights of the network; None takes what torchvision has downloaded
            before.
        option: the option that names this file, for messages.

    Raises:
        UserError: ``weights`` are named and cannot be used.
    """
    found = weights or find_cached_backbone(network)
    missing = []
    if find_spec("torchvision") is None:
        missing.append("torchvision is not installed")
        if weights is not None:
            raise UserError(f"{option}: {missing[0]}; install it, or leave the option out")
    if found is None:
        missing.append(
            f"the weights of torchvision's {BACKBONES[network][0]} were not downloaded before; "
            f"name a file of them as {option}"
        )
    return ", and ".join(missing) if missing else Lpips(network, found).eval()


def load_backbone(backbone: nn.Module, path: str | PathLike[str]) -> None:
    """Loads weights of torchvision into the slices of features, and ignores the classifier."""
    tensors = read_tensors(path).tensors
    # "slice2.5.weight" or "slices.1.5.weight" here is "features.5.weight" in torchvision.
    names = {name: re.sub(r"^slices?\.?\d+", "features", name) for name in backbone.state_dict()}
    found = {name: tensors[theirs] for name, theirs in names.items() if theirs in tensors}
    check_tensors(backbone, found, path)
    backbone.load_state_dict(found)
