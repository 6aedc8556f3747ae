"""The causal 3D video VAEs of Wan: load, encode, decode, stream, train, convert.

The names are imported when they are first used, so that the command line can say how the threads of
PyTorch wait before PyTorch is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wanvae.engine.later import import_later

if TYPE_CHECKING:
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

_PLACES = {
    "BucketBatches": "wanvae.dataset.batches",
    "CUDAGraphs": "wanvae.execution.graphs",
    "LatentDataset": "wanvae.dataset.reader",
    "Posterior": "wanvae.posterior",
    "Reconstruction": "wanvae.model",
    "TinyVAE": "wanvae.tiny",
    "TinyVAEConfig": "wanvae.tiny_config",
    "WanVAE": "wanvae.model",
    "WanVAEConfig": "wanvae.config",
}

__getattr__, __dir__ = import_later(__name__, _PLACES)
