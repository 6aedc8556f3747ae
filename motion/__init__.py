"""A tokenizer for human motion: the 1D RVQ-VAE, which loads, trains, encodes, decodes, streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from motion.config import FeatureSpec, QuantizerConfig, ResnetConfig, RVQVAEConfig
from motion.model import RVQVAE, Reconstruction
from motion.networks.resnet import Resnet1D
from motion.quantizer.residual_vq import ResidualVQ
from motion.quantizer.results import Quantized
from motion.skeleton.tree import Skeleton, forward_kinematics
from motion.vae import MotionVAE, VAEReconstruction
from motion.vocabulary import TokenVocabulary
from wanvae.engine.later import import_later

if TYPE_CHECKING:
    from motion.dataset.collate import TokenBatch, collate
    from motion.dataset.reader import TokenClip, TokenDataset
    from motion.features.rotations import extract_features, restore_motion
    from motion.files.formats import read_motion, write_motion
    from motion.skeleton.clip import MotionClip
    from motion.train.run import load_config

__version__ = "0.1.0"

__all__ = [
    "RVQVAE",
    "FeatureSpec",
    "MotionClip",
    "MotionVAE",
    "Quantized",
    "QuantizerConfig",
    "RVQVAEConfig",
    "Reconstruction",
    "ResidualVQ",
    "Resnet1D",
    "ResnetConfig",
    "Skeleton",
    "TokenBatch",
    "TokenClip",
    "TokenDataset",
    "TokenVocabulary",
    "VAEReconstruction",
    "__version__",
    "collate",
    "extract_features",
    "forward_kinematics",
    "load_config",
    "read_motion",
    "restore_motion",
    "write_motion",
]

# Names that need more libraries are imported when they are first used.
_LATER = {
    "MotionClip": "motion.skeleton.clip",
    "TokenBatch": "motion.dataset.collate",
    "TokenClip": "motion.dataset.reader",
    "TokenDataset": "motion.dataset.reader",
    "collate": "motion.dataset.collate",
    "extract_features": "motion.features.rotations",
    "load_config": "motion.train.run",
    "read_motion": "motion.files.formats",
    "restore_motion": "motion.features.rotations",
    "write_motion": "motion.files.formats",
}


__getattr__, __dir__ = import_later(__name__, _LATER)
