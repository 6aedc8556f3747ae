"""Features of a frozen image network that the user gives."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn

from wanvae.engine.json_files import read_json
from wanvae.engine.text import first_sentence
from wanvae.errors import UserError
from wanvae.metrics.lpips import show_over_gray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Kinds of transformers whose output is some tokens of the whole image, then a token for each patch.
KINDS = (
    *("clip", "clip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit"),
    *("siglip", "siglip_vision_model", "vit"),
)
# Of ImageNet, as DINOv2 and most others have it.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FrozenFeatures(nn.Module):
    """The features of frames by a vision transformer that never learns, in float32.

    Args:
        folder: config.json and model.safetensors of the library transformers. Mean and standard
            deviation of pixels are read from preprocessor_config.json, if it is there.

    Attributes:
        channels: of the features.

    Raises:
        UserError: transformers is not installed, or the folder holds no such network.
    """

    patch: int
    channels: int
    mean: Tensor
    std: Tensor

    def __init__(self, folder: str) -> None:
        super().__init__()
        network = load_network(folder)
        self.network = network.float().requires_grad_(False).eval()
        self.patch, self.channels = network.config.patch_size, network.config.hidden_size
        # Without this, some kinds take images of one size only.
        known = inspect.signature(self.network.forward).parameters
        self.options = {name: True for name in ("interpolate_pos_encoding",) if name in known}
        for name, value in pixel_statistics(Path(folder)).items():
            self.register_buffer(name, value.view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, video: Tensor, height: int, width: int) -> Tensor:
        """Returns features ``(B, channels, T, height, width)``, one for each patch of a frame.

        Args:
            video: ``(B, 3, T, H, W)`` in [-1, 1], or ``(B, 4, T, H, W)`` with alpha, which is seen
                over gray. Frames are scaled so that they have height x width patches.
        """
        video = show_over_gray(video)
        frames = rearrange(video.float(), "b c t h w -> (b t) c h w")
        size = height * self.patch, width * self.patch
        frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
        pixels = ((frames + 1) / 2 - self.mean) / self.std
        with torch.autocast(pixels.device.type, enabled=False):
            tokens = self.network(pixel_values=pixels, **self.options).last_hidden_state
        patches = tokens[:, -height * width :].float()
        return rearrange(patches, "(b t) (h w) c -> b c t h w", b=len(video), h=height, w=width)


def load_network(folder: str) -> PreTrainedModel:
    """Loads a vision transformer from a folder; no code in it is run, and no pickle is read.

    Raises:
        UserError: transformers is not installed, or the folder holds no such network.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise UserError(
            "loss.alignment needs the library transformers, which is not installed: pip install "
            "transformers, or set loss.alignment.weight to 0"
        ) from error
    if not Path(folder).is_dir():
        raise UserError(
            f"loss.alignment.network is {folder!r}, which is no folder: download the network and "
            "name its folder"
        )
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(folder, **local).model_type
        if kind not in KINDS:
            raise UserError(
                f"{folder} holds a network of the kind {kind!r}, whose output has another form; "
                f"loss.alignment.network takes {', '.join(KINDS)}"
            )
        network = AutoModel.from_pretrained(folder, use_safetensors=True, **local)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder} holds no network that transformers can load ({first_sentence(error)}): it "
            "needs config.json and model.safetensors; download it again"
        ) from error
    # A model of images and texts is loaded whole.
    return getattr(network, "vision_model", network)


def pixel_statistics(folder: Path) -> dict[str, Tensor]:
    """Mean and standard deviation of pixels in [0, 1], as a folder says or as usual.

    Raises:
        UserError: the file that should say it is damaged.
    """
    path = folder / "preprocessor_config.json"
    content = read_json(path) if path.is_file() else {}
    found = {}
    for name, usual in (("mean", MEAN), ("std", STD)):
        values = content.get(f"image_{name}", list(usual)) if isinstance(content, dict) else []
        numbers = values if isinstance(values, list) else []
        if len(numbers) != 3 or not all(isinstance(value, (int, float)) for value in numbers):
            raise UserError(
                f"{path} has no three numbers as image_{name}; download it again, or delete it to "
                "use the statistics of ImageNet"
            )
        found[name] = torch.tensor(numbers, dtype=torch.float32)
    return found
