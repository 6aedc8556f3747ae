"""What the nodes do, and what they take and give, for both interfaces of ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import folder_paths
import torch
from comfy import model_management
from torch import Tensor

from wanvae import TinyVAE, WanVAE
from wanvae.errors import UserError

from .vae import ExactVAE, Options

Kind = Literal["VAE", "IMAGE", "LATENT", "COMBO", "INT", "STRING"]

AS_COMFYUI = "as ComfyUI chooses"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How a tiny autoencoder itself can have latents.
KINDS: tuple[Literal["normalized", "raw"], ...] = ("normalized", "raw")
AS_FILE = "as the file tells"
NO_ALPHA = "none"
ONE_VIDEO, SEPARATE = "frames of one video", "separate images"
RAW, NORMALIZED = "raw, as ComfyUI has them", "normalized"


@dataclass(frozen=True)
class Input:
    """An input of a node.

    Attributes:
        kind: its type in ComfyUI.
        choices: returns the texts to choose from, for a COMBO.
        options: what the interface shows and checks: default, min, max, step, tooltip.
    """

    name: str
    kind: Kind
    choices: Callable[[], list[str]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        name: what workflows call the node.
        title: what people call it.
        description: what it does, in a sentence or two.
        inputs: what ``run`` takes, by name.
        output: the type in ComfyUI of what ``run`` returns.
    """

    name: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    output: Kind
    run: Callable[..., Any]

    category: str = "wanvae"


def load_vae(
    name: str, encode_dtype: str, decode_dtype: str, max_memory: str, alpha: str
) -> ExactVAE:
    """Loads a checkpoint of any layout that wanvae reads."""
    vae = WanVAE.from_pretrained(
        folder_paths.get_full_path_or_raise("vae", name),
        device=model_management.vae_offload_device(),
        encode_dtype=choose_dtype(encode_dtype),
        decode_dtype=choose_dtype(decode_dtype),
        alpha=None if alpha == NO_ALPHA else folder_paths.get_full_path_or_raise("vae", alpha),
    )
    return ExactVAE(vae, max_memory or None)


def load_tiny_vae(name: str, dtype: str, network_latents: str) -> ExactVAE:
    """Loads a tiny autoencoder."""
    path = folder_paths.get_full_path_or_raise("vae_approx", name)
    vae = WanVAE.from_pretrained(path, choose_dtype(dtype), model_management.vae_offload_device())
    if not isinstance(vae, TinyVAE):
        raise UserError(f"{name} is no tiny autoencoder: load it with Load Wan VAE (wanvae)")
    for kind in KINDS:
        if kind == network_latents:
            vae.set_network_latents(kind)
    return ExactVAE(vae)


def encode(
    vae: ExactVAE, images: Tensor, batch: str, latents: str, tile_size: int, max_memory: str
) -> dict[str, Tensor]:
    """Encodes images ``(N, H, W, C)`` in [0, 1]."""
    require_exact(vae)
    options = make_options(tile_size, max_memory)
    samples = vae.encode_with(options, images, not_video=True if batch == SEPARATE else None)
    return {"samples": vae.vae.normalize(samples) if latents == NORMALIZED else samples}


def decode(
    vae: ExactVAE, samples: Mapping[str, Tensor], latents: str, tile_size: int, max_memory: str
) -> Tensor:
    """Decodes latents to images ``(N, H, W, C)`` in [0, 1]."""
    require_exact(vae)
    given = samples["samples"]
    if given.is_nested:  # latents of a video, and of its sound
        given = given.unbind()[0]
    if latents == NORMALIZED:
        given = vae.vae.denormalize(given)
    images = vae.decode_with(make_options(tile_size, max_memory), given)
    return images.flatten(0, -4)


def choose_dtype(text: str) -> torch.dtype:
    """Returns the dtype that a choice of a loader means."""
    if text == AS_COMFYUI:
        return model_management.vae_dtype(model_management.vae_device(), [*DTYPES.values()])
    return DTYPES[text]


def make_options(tile_size: int, max_memory: str) -> Options:
    """Returns options of numbers and texts in which 0 and "" mean none."""
    return Options((tile_size, tile_size) if tile_size else None, max_memory or None)


def require_exact(vae: object) -> None:
    """Raises UserError if a VAE is not from the loaders here."""
    if not isinstance(vae, ExactVAE):
        raise UserError("this node needs a VAE from Load Wan VAE (wanvae), not another VAE")


def list_files(folder: str, *first: str) -> Callable[[], list[str]]:
    """Returns a function that lists the files in a folder of models, after ``first``."""
    return lambda: [*first, *folder_paths.get_filename_list(folder)]


def choose(name: str, *choices: str, tooltip: str) -> Input:
    """Returns an input for a choice of texts; the first is the default."""
    options = {"default": choices[0], "tooltip": tooltip}
    return Input(name, "COMBO", lambda: [*choices], options)


LIMITS = (
    Input(
        "tile_size",
        "INT",
        options={
            "default": 0,
            "min": 0,
            "max": 8192,
            "step": 16,
            "tooltip": "pixels a side of the largest tile; 0: whole frames if they fit. The result "
            "is the same",
        },
    ),
    Input(
        "max_memory",
        "STRING",
        options={
            "default": "",
            "tooltip": "like 4GB: chooses tiles by itself; then tile_size must be 0. Empty: what "
            "the loader says",
        },
    ),
)
LATENTS = choose(
    "latents",
    *(RAW, NORMALIZED),
    tooltip="the nodes of ComfyUI have raw latents; some custom nodes have normalized latents",
)

NODES = (
    Node(
        "LoadWanVAE",
        "Load Wan VAE (wanvae)",
        "Loads a VAE of Wan or Qwen-Image for all nodes. Its tiles change no value, and it decodes "
        "within the free memory.",
        (
            Input("name", "COMBO", list_files("vae")),
            choose(
                "encode_dtype",
                *("float32", AS_COMFYUI, "bfloat16", "float16"),
                tooltip="latents are less exact in the other dtypes",
            ),
            choose(
                "decode_dtype",
                *(AS_COMFYUI, *DTYPES),
                tooltip="errors of decoded images are small in every dtype",
            ),
            Input(
                "max_memory",
                "STRING",
                options={
                    "default": "",
                    "tooltip": "like 4GB: a limit for every node. Empty: what ComfyUI says is free",
                },
            ),
            Input(
                "alpha",
                "COMBO",
                list_files("vae", NO_ALPHA),
                {
                    "default": NO_ALPHA,
                    "tooltip": "the second file of Wan-Alpha, whose decoder decodes alpha",
                },
            ),
        ),
        "VAE",
        load_vae,
    ),
    Node(
        "LoadTinyVAE",
        "Load tiny VAE for previews (wanvae)",
        "Loads a tiny autoencoder, like taew2_1: a fast and less exact VAE of the same latents.",
        (
            Input("name", "COMBO", list_files("vae_approx")),
            choose("dtype", *(AS_COMFYUI, *DTYPES), tooltip="the dtype to compute in"),
            choose(
                "network_latents",
                *(AS_FILE, *KINDS),
                tooltip="how the network itself has latents; wrong colours show a wrong choice",
            ),
        ),
        "VAE",
        load_tiny_vae,
    ),
    Node(
        "EncodeWanVAE",
        "Encode with Wan VAE (exact tiles)",
        "Encodes images or the frames of a video. Sides are cropped to multiples of 8 (Wan2.2: "
        "16), and lengths to 1 + 4n frames.",
        (
            Input("vae", "VAE"),
            Input("images", "IMAGE"),
            choose(
                "batch",
                *(ONE_VIDEO, SEPARATE),
                tooltip="what several images are; separate images have a latent each",
            ),
            LATENTS,
            *LIMITS,
        ),
        "LATENT",
        encode,
    ),
    Node(
        "DecodeWanVAE",
        "Decode with Wan VAE (exact tiles)",
        "Decodes latents to images: all frames of all videos in one row.",
        (Input("vae", "VAE"), Input("samples", "LATENT"), LATENTS, *LIMITS),
        "IMAGE",
        decode,
    ),
)
