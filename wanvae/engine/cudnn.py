"""Known faults of versions of cuDNN."""

from __future__ import annotations

import warnings

import torch

# cuDNN 9.8 to 9.14 as it comes with PyTorch 2.9 and 2.10; versions as PyTorch gives them.
FIRST_BAD_CUDNN, FIRST_GOOD_CUDNN = 90800, 91500
BAD_TORCH = ("2.9", "2.10")


def warn_of_convolutions(device: torch.device, dtypes: set[torch.dtype]) -> None:
    """Warns if 3D convolutions in one of ``dtypes`` are slow, or wrong, on ``device``."""
    if device.type != "cuda" or torch.bfloat16 not in dtypes:
        return
    version = torch.backends.cudnn.version() or 0
    release = ".".join(torch.__version__.split(".")[:2])
    if release in BAD_TORCH and FIRST_BAD_CUDNN <= version < FIRST_GOOD_CUDNN:
        warnings.warn(
            f"cuDNN {version // 10000}.{version // 100 % 100} with PyTorch {release} is slow, or "
            "wrong, in bfloat16 convolutions of video: install nvidia-cudnn-cu12 9.15 or newer, "
            "another PyTorch, or use float16",
            stacklevel=2,
        )
