"""Encodes and decodes with the code of another program: ``PROGRAM CHECKPOINT INPUTS OUTPUTS``.

Each function loads a checkpoint with the classes of one program, and returns the latents of a video
and the video of latents, on its own scale of latents. The process runs nothing else, because these
programs change global state.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# The file of each program that has its VAE.
FILES = {
    "wan": "wan/modules/vae2_1.py",
    "musubi-tuner": "musubi_tuner/wan/modules/vae.py",
    "diffsynth": "diffsynth/models/wan_video_vae.py",
    "fastvideo": "fastvideo/models/vaes/wanvae.py",
    "comfyui": "comfy/sd.py",
}
Encoded = tuple[Tensor, Tensor]


def find(file: str, folders: Iterable[str]) -> Path | None:
    """The path of a file in one of these folders."""
    return next((path for folder in folders if (path := Path(folder, file)).is_file()), None)


def load(file: str) -> ModuleType:
    """A module of a program, without the rest of the package, which may need a GPU."""
    path = find(file, sys.path)
    assert path is not None, f"{file} is not on the path"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wan(path: str, video: Tensor, latents: Tensor) -> Encoded:
    """The official code. Its latents are normalized."""
    vae = load(FILES["wan"]).Wan2_1_VAE(vae_pth=path, device="cpu")
    return vae.encode([video[0]])[0][None], vae.decode([latents[0]])[0][None]


def musubi_tuner(path: str, video: Tensor, latents: Tensor) -> Encoded:
    """Its latents are normalized."""
    vae = load(FILES["musubi-tuner"]).WanVAE(vae_path=path, device="cpu")
    return vae.encode([video[0]])[0][None], vae.decode([latents[0]])[0][None]


def diffsynth(path: str, video: Tensor, latents: Tensor) -> Encoded:
    """DiffSynth-Studio. Its latents are normalized."""
    vae = load(FILES["diffsynth"]).WanVideoVAE()
    converters = load("diffsynth/utils/state_dict_converters/wan_video_vae.py")
    vae.load_state_dict(converters.WanVideoVAEStateDictConverter(read(path)))
    return vae.encode(video, "cpu"), vae.decode(latents, "cpu")


def fastvideo(path: str, video: Tensor, latents: Tensor) -> Encoded:
    """Its latents are raw."""
    from fastvideo.configs.models.vaes import WanVAEConfig
    from fastvideo.models.vaes.wanvae import AutoencoderKLWan

    config, content = WanVAEConfig(), json.loads(Path(path, "config.json").read_text())
    config.update_model_arch({k: v for k, v in content.items() if not k.startswith("_")})
    vae = AutoencoderKLWan(config).eval()
    vae.load_state_dict(load_file(Path(path, "diffusion_pytorch_model.safetensors")))
    return vae.encode(video).mode(), vae.decode(latents)


def comfyui(path: str, video: Tensor, latents: Tensor) -> Encoded:
    """Its latents are raw. Its pictures ``(T, H, W, C)`` are in [0, 1]."""
    from comfy.cli_args import args

    args.cpu = True
    from comfy.sd import VAE
    from comfy.utils import load_torch_file

    vae = VAE(sd=load_torch_file(path), dtype=torch.float32)
    pictures = vae.decode(latents).movedim(-1, 1) * 2 - 1
    return vae.encode(video[0].movedim(0, -1) / 2 + 0.5), pictures


def read(path: str) -> dict[str, Tensor]:
    return load_file(path) if path.endswith(".safetensors") else torch.load(path)


PROGRAMS: dict[str, Callable[[str, Tensor, Tensor], Any]] = {
    "wan": wan,
    "musubi-tuner": musubi_tuner,
    "diffsynth": diffsynth,
    "fastvideo": fastvideo,
    "comfyui": comfyui,
}

if __name__ == "__main__":
    name, checkpoint, inputs, outputs = sys.argv[1:]
    del sys.argv[1:]
    tensors = load_file(inputs)
    with torch.no_grad():
        encoded, decoded = PROGRAMS[name](checkpoint, tensors["video"], tensors["latents"])
    save_file({"latents": encoded.contiguous(), "video": decoded.contiguous()}, outputs)
