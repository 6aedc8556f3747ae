"""What the formats of other programs share: which latents there are, and in which order of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from wanvae.engine.checkpoint import CheckpointError
from wanvae.latents.scale import Scale

# The order of the axes of stored latents: batch, channels, time, height, width.
Axes = Literal["CTHW", "CHW", "BCTHW", "BCHW"]

# Whose latents have so many channels.
FAMILIES = {
    4: "Stable Diffusion or SDXL",
    8: "Stable Cascade or an audio model",
    12: "Mochi",
    16: "Wan2.1 or Qwen-Image (or Flux, Stable Diffusion 3, HunyuanVideo, CogVideoX)",
    32: "HunyuanVideo 1.5, Flux 2 or Sana",
    48: "Wan2.2 5B",
    64: "Qwen-Image 2.1",
    128: "LTX-Video",
}
# Channels of the latents of Wan2.1 and Qwen-Image, and of Wan2.2.
OURS = (16, 48)


class OtherLatentsError(CheckpointError):
    """A file holds latents that no model of this package decodes."""


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor of latents in a file.

    Attributes:
        place: where it is in the file, for the format that found it.
        shape: its shape as stored.
        name: what the program calls it; empty if nothing tells.
        axes: the order of its axes; None if only the channels of the model tell.
        scale: as for ``Format``; None takes the scale of the format.
    """

    place: str
    shape: tuple[int, ...]
    name: str = ""
    axes: Axes | None = None
    scale: Scale | None = None


@dataclass(frozen=True)
class Header:
    """The head of a safetensors file.

    Attributes:
        path: the file.
        metadata: its texts.
        shapes: the shape of each tensor.
    """

    path: Path
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Format:
    """How a program stores latents.

    Attributes:
        name: the name of the format.
        program: the name of the program, for people.
        scale: the scale that it stores; None if it stores both, or if nobody knows.
        find: returns the latents in the content of a file, none if it is of another format.
        ordered: whether the format tells the order of the axes.
    """

    name: str
    program: str
    scale: Scale | None
    find: Callable[[Any], Sequence[Found]]
    ordered: bool = True


def axes_of(shape: tuple[int, ...], channels: int | None) -> Axes:
    """Returns the order of the axes of latents of which only the shape is known, with 3 to 5 axes.

    Four axes are a video, unless only the second one has the size of the channels.

    Args:
        channels: channels of the model; None if the model is not known, which is then one of Wan.
    """
    if len(shape) == 5:
        return "BCTHW"
    if len(shape) == 3:
        return "CHW"
    possible = OURS if channels is None else (channels,)
    return "BCHW" if shape[1] in possible and shape[0] not in possible else "CTHW"


def channels_of(shape: tuple[int, ...], axes: Axes) -> int:
    """Returns the channels of stored latents."""
    return shape[axes.index("C")]


def clips_in(shape: tuple[int, ...], axes: Axes) -> int:
    """Returns the number of clips in stored latents."""
    return shape[0] if axes.startswith("B") else 1


def clip_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, int, int, int]:
    """Returns the shape (C, T, H, W) of each clip in stored latents."""
    sizes = dict(zip(axes, shape, strict=True))
    return sizes["C"], sizes.get("T", 1), sizes["H"], sizes["W"]


def as_clip(latents: Tensor, axes: Axes, number: int) -> Tensor:
    """Returns a clip ``(C, T, H, W)`` of stored latents."""
    if axes.startswith("B"):
        latents = latents[number]
    return latents if "T" in axes else latents.unsqueeze(1)


def whose(channels: int) -> str:
    """Says in words whose latents have so many channels; empty if no known model has so many."""
    family = FAMILIES.get(channels)
    return f" ({channels} channels are latents of {family})" if family else ""


def refuse_others(name: str, ours: Sequence[str], of: str) -> None:
    """Raises OtherLatentsError if a program says that latents are of a model that is not ours.

    Args:
        name: the model, in the words of the program; empty if it does not say.
        ours: how names of models begin that have latents of this package.
        of: what holds them, for the message.
    """
    if name and not name.lower().startswith(tuple(ours)):
        raise OtherLatentsError(f"{of} holds latents of {name}, which no model here decodes")
