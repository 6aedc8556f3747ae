"""What checkpoints of Wan VAEs are called in repositories of the Hugging Face Hub."""

from __future__ import annotations

from wanvae.checkpoints.diffusers_layout import DIFFUSERS_CONFIG, weight_names
from wanvae.engine.hub import HubFiles

NATIVE_FILE = "wanvae.safetensors"
# Checkpoints of one file, by the names under which they are published.
SINGLE_FILES = (NATIVE_FILE, "Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
# Variants of diffusers models that are taken if there is no plain model.
VARIANTS = ("fp16", "bf16")


def stored_files(variant: str | None = None) -> HubFiles:
    """Returns how repositories store Wan VAEs.

    Args:
        variant: the variant of a diffusers model, like "fp16"; None takes any checkpoint.
    """
    singles = SINGLE_FILES if variant is None else ()
    variants = (None, *VARIANTS) if variant is None else (variant,)
    return HubFiles(
        model="Wan VAE" if variant is None else f"variant {variant!r} of a Wan VAE",
        checkpoints=(
            *((name,) for name in singles),
            *((DIFFUSERS_CONFIG, name) for each in variants for name in weight_names(each)),
        ),
        # Pipelines keep their VAE in the folder vae.
        folders=("", "vae"),
    )
