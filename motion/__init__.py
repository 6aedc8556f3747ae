"""A tokenizer for human motion: the 1D RVQ-VAE, which loads, trains, encodes, decodes, streams."""

from motion.config import FeatureSpec, RVQVAEConfig
from motion.model import RVQVAE, Reconstruction
from motion.networks.resnet import Resnet1D
from motion.quantizer.residual_vq import ResidualVQ
from motion.quantizer.results import Quantized
from motion.vae import MotionVAE, VAEReconstruction

__version__ = "0.1.0"

__all__ = [
    "RVQVAE",
    "FeatureSpec",
    "MotionVAE",
    "Quantized",
    "RVQVAEConfig",
    "Reconstruction",
    "ResidualVQ",
    "Resnet1D",
    "VAEReconstruction",
    "__version__",
]
