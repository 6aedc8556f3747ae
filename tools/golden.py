"""Small models with random weights, and what their official code computes with these weights.

The files were computed in float32 on a CPU. Each case is named by the shape of its video.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints.diffusers_layout import diffusers_names

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden"
# The cases of each file.
CASES = {
    "wan21_tiny": ("1x3x1x32x48", "1x3x5x40x24", "1x3x17x16x16", "2x3x9x32x48"),
    "wan21_attn_tiny": ("1x3x9x32x32",),
    "wan22_tiny": ("1x3x1x32x48", "1x3x9x32x64"),
    "qwen21_tiny": ("1x4x1x32x48", "2x4x1x16x16"),
}


def load_golden(name: str) -> tuple[WanVAE, dict[str, Tensor]]:
    """Returns a model, and all tensors of its file: "case.SHAPE.video", "moments" and so on."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        reference = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    changes = {
        "dim_mult": tuple(reference["dim_mult"]),
        "num_res_blocks": reference["num_res_blocks"],
        "z_dim": reference["z_dim"],
        "temporal_downsample": tuple(reference["temperal_downsample"]),
        "stage_shortcuts": not name.startswith("wan21"),
        "latents_mean": tuple(tensors["latents_mean"].tolist()),
        "latents_std": tuple(tensors["latents_std"].tolist()),
    }
    if name.startswith("qwen21"):
        config = WanVAEConfig(
            dim=reference["base_dim"],
            decoder_dim=reference["decoder_base_dim"],
            in_channels=reference["in_channels"],
            out_channels=reference["out_channels"],
            ndim=2,
            **changes,
        )
        names = diffusers_names(len(config.dim_mult), config.num_res_blocks, nested=True)
    else:
        config = WanVAEConfig(
            dim=reference["dim"],
            decoder_dim=reference.get("dec_dim"),
            attn_scales=tuple(reference["attn_scales"]),
            patch_size=2 if name.startswith("wan22") else 1,
            **changes,
        )
        names = {}
    vae = WanVAE(config).eval()
    # The code of Qwen-Image 2.1 is 2D: its kernels have no axis of time.
    vae.load_state_dict(
        {
            key: tensors[f"weights.{names.get(key, key)}"].reshape(own.shape)
            for key, own in vae.state_dict().items()
        }
    )
    return vae, tensors
