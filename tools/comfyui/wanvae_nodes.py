"""Nodes for ComfyUI: the VAE of Wan and Qwen-Image, with exact tiles within a memory limit.

Install wanvae in the Python environment of ComfyUI, and copy this file to its ``custom_nodes``.
"""

from __future__ import annotations

from typing import Any, Literal

import folder_paths
import torch
from comfy.model_management import get_torch_device
from torch import Tensor

from wanvae import TinyVAE, WanVAE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How a tiny autoencoder itself can have latents.
KINDS: tuple[Literal["normalized", "raw"], ...] = ("normalized", "raw")
# A socket type of our own, because nodes of ComfyUI cannot use this model, and ours not theirs.
MODEL = "WANVAE"
LIMITS = {
    "tile_size": (
        "INT",
        {
            "default": 0,
            "min": 0,
            "max": 8192,
            "step": 16,
            "tooltip": "pixels a side of the largest tile; 0: whole frames. The result is the same",
        },
    ),
    "max_memory": (
        "STRING",
        {"default": "", "tooltip": "like 4GB: chooses tiles by itself; then tile_size must be 0"},
    ),
}


class LoadWanVAE:
    """A node that loads a checkpoint from ``models/vae``, of any layout that wanvae reads."""

    CATEGORY = "wanvae"
    FUNCTION = "load"
    RETURN_TYPES = (MODEL,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        dtypes = list(DTYPES)
        return {
            "required": {
                "name": (folder_paths.get_filename_list("vae"),),
                "encode_dtype": (dtypes, {"tooltip": "latents are less exact in the other dtypes"}),
                "decode_dtype": (dtypes, {"default": "bfloat16"}),
            }
        }

    def load(self, name: str, encode_dtype: str, decode_dtype: str) -> tuple[WanVAE | TinyVAE]:
        vae = WanVAE.from_pretrained(
            folder_paths.get_full_path_or_raise("vae", name),
            device=get_torch_device(),
            encode_dtype=DTYPES[encode_dtype],
            decode_dtype=DTYPES[decode_dtype],
        )
        return (vae,)


class LoadTinyVAE:
    """A node that loads a tiny autoencoder, like taew2_1, from ``models/vae_approx``.

    The nodes that encode and decode take it in place of the VAE: a fast preview of latents.
    """

    CATEGORY = "wanvae"
    FUNCTION = "load"
    RETURN_TYPES = (MODEL,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "how the network itself has latents; wrong colours show a wrong choice"
        return {
            "required": {
                "name": (folder_paths.get_filename_list("vae_approx"),),
                "dtype": (list(DTYPES), {"default": "bfloat16"}),
                "network_latents": (["as the file tells", *KINDS], {"tooltip": tooltip}),
            }
        }

    def load(self, name: str, dtype: str, network_latents: str) -> tuple[TinyVAE]:
        path = folder_paths.get_full_path_or_raise("vae_approx", name)
        vae = WanVAE.from_pretrained(path, DTYPES[dtype], get_torch_device())
        if not isinstance(vae, TinyVAE):
            raise ValueError(f"{name} is no tiny autoencoder: load it with Load Wan VAE (wanvae)")
        for kind in KINDS:
            if kind == network_latents:
                vae.set_network_latents(kind)
        return (vae,)


class EncodeWanVAE:
    """A node from frames ``(1 + 4n, H, W, 3)`` in [0, 1] to latents ``(1, z_dim, 1 + n, ...)``."""

    CATEGORY = "wanvae"
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae": (MODEL,), "images": ("IMAGE",), **LIMITS}}

    def encode(
        self, vae: WanVAE | TinyVAE, images: Tensor, tile_size: int, max_memory: str
    ) -> tuple[dict[str, Tensor]]:
        # Images may have an alpha channel, which is dropped.
        video = images[..., :3].movedim(-1, 0)[None] * 2 - 1
        posterior = vae.encode(video, tile_size=tile_size or None, max_memory=max_memory or None)
        # Raw latents: ComfyUI normalizes latents before a Wan model, and undoes this after it.
        return ({"samples": posterior.mode().float().cpu()},)


class DecodeWanVAE:
    """A node from latents ``(B, z_dim, 1 + n, H, W)`` to frames ``(B * (1 + 4n), 8H, 8W, 3)``."""

    CATEGORY = "wanvae"
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae": (MODEL,), "samples": ("LATENT",), **LIMITS}}

    def decode(
        self, vae: WanVAE | TinyVAE, samples: dict[str, Tensor], tile_size: int, max_memory: str
    ) -> tuple[Tensor]:
        latents = samples["samples"]
        if latents.dim() == 4:  # of images
            latents = latents.unsqueeze(2)
        video = vae.decode(latents, tile_size=tile_size or None, max_memory=max_memory or None)
        images = video.movedim(1, -1).flatten(0, 1)
        return (images.float().cpu().add_(1).div_(2),)


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "LoadWanVAE": LoadWanVAE,
    "LoadTinyVAE": LoadTinyVAE,
    "EncodeWanVAE": EncodeWanVAE,
    "DecodeWanVAE": DecodeWanVAE,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "LoadWanVAE": "Load Wan VAE (wanvae)",
    "LoadTinyVAE": "Load tiny VAE for previews (wanvae)",
    "EncodeWanVAE": "Encode with Wan VAE (exact tiles)",
    "DecodeWanVAE": "Decode with Wan VAE (exact tiles)",
}
