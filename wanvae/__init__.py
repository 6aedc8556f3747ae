"""The causal 3D video VAEs of Wan: load, encode, decode, stream, train, convert."""

from wanvae.engine.waiting import wait_briefly

wait_briefly()  # before the imports that load PyTorch

from wanvae.config import WanVAEConfig  # noqa: E402
from wanvae.dataset.batches import BucketBatches  # noqa: E402
from wanvae.dataset.reader import LatentDataset  # noqa: E402
from wanvae.execution.graphs import CUDAGraphs  # noqa: E402
from wanvae.model import Reconstruction, WanVAE  # noqa: E402
from wanvae.posterior import Posterior  # noqa: E402
from wanvae.tiny import TinyVAE  # noqa: E402
from wanvae.tiny_config import TinyVAEConfig  # noqa: E402

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
