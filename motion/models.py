"""The models that a config can describe."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TypeAlias

import torch

from motion.checkpoints import formats
from motion.checkpoints.architecture import Untold
from motion.config import RVQVAEConfig
from motion.model import RVQVAE
from motion.skeleton.tree import Skeleton
from motion.vae import MotionVAE

MotionModel: TypeAlias = "RVQVAE | MotionVAE"


def packaged_weights() -> Path:
    """Returns the checkpoint of the tokenizer in the package, of a body of 22 joints."""
    return Path(__file__).parent / "weights" / "body.safetensors"


def class_of(config: RVQVAEConfig) -> type[RVQVAE] | type[MotionVAE]:
    """Returns the class of the models of a config."""
    return RVQVAE if config.bottleneck == "quantizer" else MotionVAE


def make_model(config: RVQVAEConfig, skeleton: Skeleton | None = None) -> MotionModel:
    """Returns a new model of a config: a tokenizer, or a VAE."""
    return class_of(config)(config, skeleton)


def load_model(
    path: str | PathLike[str],
    untold: Untold | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MotionModel:
    """Loads a checkpoint of any known layout, of a tokenizer or of a VAE.

    Args:
        untold: what to assume where published tensors do not tell it.
        device: where to put the model; None is the CPU.
        dtype: as in ``RVQVAE.from_pretrained``.

    Raises:
        CheckpointError: as ``RVQVAE.from_pretrained``.
    """
    loaded = formats.load(path, untold)
    return class_of(loaded.config).from_checkpoint(loaded, path, dtype, device)
