"""The Wan2.1 causal 3D video VAE: load, encode, decode, stream, train, convert."""

from wanvae.config import WanVAEConfig
from wanvae.dataset.reader import LatentDataset
from wanvae.model import Reconstruction, WanVAE
from wanvae.posterior import Posterior

__version__ = "0.1.0"

__all__ = ["LatentDataset", "Posterior", "Reconstruction", "WanVAE", "WanVAEConfig", "__version__"]
