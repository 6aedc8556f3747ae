"""What checkpoints of Wan VAEs are called in repositories of the Hugging Face Hub."""

from __future__ import annotations

from wanvae.checkpoints.diffusers_layout import DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS
from wanvae.engine.hub import HubFiles

NATIVE_FILE = "wanvae.safetensors"
# Pipelines keep their VAE in the folder vae.
WAN_VAE = HubFiles(
    model="Wan VAE",
    checkpoints=(
        (NATIVE_FILE,),
        ("Wan2.1_VAE.pth",),
        ("Wan2.2_VAE.pth",),
        (DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS),
    ),
    folders=("", "vae"),
)
