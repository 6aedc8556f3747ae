"""Latents as ai-toolkit caches them: ``_latent_cache/NAME_HASH.safetensors``.

The tensor is called ``latent``, is ``(C, T, H, W)`` or, of an image, ``(C, H, W)``, and is
normalized. ``first_frame_latent`` and ``num_frames`` may follow.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from typing import IO

from wanvae.latents.formats.base import Format, Found, Header, refuse_others
from wanvae.latents.formats.layout import RECORD, ClipFacts, Condition, Layout, write_safetensors
from wanvae.latents.spool import LatentsSpool

TENSOR = "latent"
FIRST_FRAME = "first_frame_latent"
# Of an image, which ai-toolkit does not train as a video that begins with it.
UNREAD_FIRST_FRAME = "wanvae_first_frame"
# How models of ai-toolkit are called that have latents of Wan or Qwen-Image.
MODELS = ("wan", "qwen_image", "krea2")
# Models of images without an axis of time.
WITHOUT_TIME = "qwen_image"
# The rate of clips where the settings of ai-toolkit name none.
DEFAULT_FPS = 24


def find(header: Header) -> list[Found]:
    """Returns the latents of a clip."""
    if TENSOR not in header.shapes:
        return []
    refuse_others(header.metadata.get("latent_space_version", ""), MODELS, str(header.path))
    shape = header.shapes[TENSOR]
    return [Found(TENSOR, shape, axes="CHW" if len(shape) == 3 else "CTHW")]


AI_TOOLKIT = Format("ai-toolkit", "ai-toolkit", "normalized", find)


def file_name(facts: ClipFacts) -> str:
    """Returns the path of the file of a clip, beside its video.

    It ends in a digest of the settings with which ai-toolkit would encode the clip.
    """
    text = json.dumps(settings_of(facts), sort_keys=True).encode()
    digest = base64.urlsafe_b64encode(hashlib.md5(text, usedforsecurity=False).digest())
    name = f"{facts.path.stem}_{digest.decode().rstrip('=')}.safetensors"
    return str(facts.path.parent / "_latent_cache" / name)


def settings_of(facts: ClipFacts) -> dict[str, object]:
    """Returns the settings with which ai-toolkit would encode a clip to this size."""
    (height, width), (crop_height, crop_width) = facts.original, facts.size
    factor = max(crop_width / width, crop_height / height)
    scaled_width, scaled_height = math.ceil(width * factor), math.ceil(height * factor)
    settings: dict[str, object] = {
        "filename": facts.path.name,
        "scale_to_width": scaled_width,
        "scale_to_height": scaled_height,
        "crop_x": int((scaled_width - crop_width) / 2),
        "crop_y": int((scaled_height - crop_height) / 2),
        "crop_width": crop_width,
        "crop_height": crop_height,
        "latent_space_version": facts.architecture,
        "latent_version": 1,
    }
    if facts.is_image:
        return settings
    if facts.asked_frames is None:
        settings["auto_frame_count"] = True
    else:
        settings["num_frames"] = facts.asked_frames
    if facts.asked_fps not in (None, DEFAULT_FPS):
        whole = facts.asked_fps.denominator == 1
        settings["fps"] = int(facts.asked_fps) if whole else float(facts.asked_fps)
    if facts.first_frame:
        settings["do_i2v"] = True
    return settings


def write(
    file: IO[bytes],
    facts: ClipFacts,
    spool: LatentsSpool,
    record: str,
    conditions: Mapping[Condition, LatentsSpool],
) -> None:
    """Writes the file of a clip."""
    settings = settings_of(facts)
    metadata = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }
    metadata |= {"software": json.dumps({"name": "wanvae"}), "format": "pt", RECORD: record}
    shape = spool.shape
    if facts.is_image and facts.architecture.startswith(WITHOUT_TIME):
        shape = (shape[0], *shape[2:])
    frames = facts.frames.to_bytes(4, "little")
    others = {} if facts.is_image else {"num_frames": ("I32", (), frames)}
    first_frames = {
        UNREAD_FIRST_FRAME if facts.is_image else FIRST_FRAME: latents
        for latents in conditions.values()
    }
    write_safetensors(file, spool, TENSOR, shape, metadata, others, first_frames)


AI_TOOLKIT_LAYOUT = Layout(
    name="ai-toolkit",
    program="ai-toolkit",
    scale="normalized",
    store="sample",
    dtype="bfloat16",
    file_name=file_name,
    write=write,
    architectures={16: "wan21", 48: "wan22_5b"},
    one_clip=True,
    conditions={"first_frame": ()},
    note="copy the files into the folder of the videos, and train with the same sizes, --frames "
    "and --fps, and with do_i2v if they have --conditioning first_frame",
)
