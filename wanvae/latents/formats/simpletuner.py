"""Latents as SimpleTuner caches them: ``SHA256.pt``, a tensor that ``torch.save`` wrote.

The tensor is ``(C, T, H, W)`` and normalized. The name of the file is the SHA-256 of the name of
the video without its suffix.
"""

from __future__ import annotations

import re

from torch import Tensor

from wanvae.latents.formats.base import Format, Found
from wanvae.latents.formats.plain import Pickle, tensor_in

HASHED_NAME = re.compile(r"[0-9a-f]{64}\.pt")


def find(content: Pickle) -> list[Found]:
    """Returns the latents of a clip."""
    latents = tensor_in(content.value, "")
    if not HASHED_NAME.fullmatch(content.path.name) or not isinstance(latents, Tensor):
        return []
    return [Found("", tuple(latents.shape))]


SIMPLETUNER = Format("simpletuner", "SimpleTuner", "normalized", find, ordered=False)
