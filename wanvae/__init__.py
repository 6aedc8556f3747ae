"""The causal 3D video VAEs of Wan: load, encode, decode, stream, train, convert."""

from wanvae.config import WanVAEConfig
from wanvae.dataset.batches import BucketBatches
from wanvae.dataset.reader import LatentDataset
from wanvae.execution.graphs import CUDAGraphs
from wanvae.model import Reconstruction, WanVAE
from wanvae.posterior import Posterior
from wanvae.tiny import TinyVAE
from wanvae.tiny_config import TinyVAEConfig

__version__ = "0.1.0"

__all__ = [
    "BucketBatches",
    "CUDAGraphs",
    "LatentDataset",
    "Posterior",
    "Reconstruction",
    "TinyVAE",
    "TinyVAEConfig",
    "WanVAE",
    "WanVAEConfig",
    "__version__",
]
