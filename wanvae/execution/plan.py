"""How to run a network: how much of time at once, and which parts of each frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TypeAlias

from torch import nn

from wanvae.errors import UserError
from wanvae.execution.flow import default_frames, latents_at_once
from wanvae.execution.network import Network, Part
from wanvae.nn import unstreamable_layers
from wanvae.nn.region import Region, Span

# A plan for files: frames, lean, split_core, offload, tile height and width.
PlanNumbers: TypeAlias = "tuple[int | None, bool, bool, bool, int | None, int | None]"


@dataclass(frozen=True)
class Plan:
    """How to run a network.

    Attributes:
        tile_size: height and width in pixels of the largest tile; None is the whole frame.
        frames: how many to process at once at full resolution; None is the whole clip.
        lean: return memory to the system as soon as it is free; slower, but limits hold.
        split_core: run the convolutions of the core on tiles too; these overlap more.
        offload: keep the states of tiles in the memory of the host while other tiles run.
    """

    tile_size: tuple[int, int] | None
    frames: int | None
    lean: bool = False
    split_core: bool = False
    offload: bool = False

    @property
    def latents_at_once(self) -> int:
        """Latents that are processed at once."""
        return 1 if self.frames is None else latents_at_once(self.frames)

    @property
    def numbers(self) -> PlanNumbers:
        """This plan as numbers, for files."""
        height, width = self.tile_size or (None, None)
        return self.frames, self.lean, self.split_core, self.offload, height, width

    @classmethod
    def from_numbers(cls, numbers: PlanNumbers) -> Plan:
        """The plan that has these ``numbers``."""
        frames, lean, split_core, offload, height, width = numbers
        tile_size = None if height is None or width is None else (height, width)
        return cls(tile_size, frames, lean, split_core, offload)


def default_plan(
    network: Network, height: int, width: int, tile_size: tuple[int, int] | None
) -> Plan:
    """The fastest plan for frames of this size in pixels.

    Raises:
        UserError: ``tile_size`` is not a multiple of the spatial factor, or tiles are asked for and
            the network needs whole clips.
    """
    if unstreamable_layers(nn.ModuleList(network.layers)):
        if tile_size is not None:
            raise UserError("a model with layers that look across all of time cannot be tiled")
        return Plan(None, None)
    if tile_size is None:
        return Plan(None, default_frames(height, width))
    factor = network.spatial_factor
    if min(tile_size) < 1 or any(side % factor for side in tile_size):
        raise UserError(f"tile_size must be a positive multiple of {factor}, not {tile_size}")
    sides = [min(side, tile) for side, tile in zip((height, width), tile_size, strict=True)]
    return Plan(tile_size, default_frames(*sides))


def make_tiles(network: Network, height: int, width: int, plan: Plan) -> list[Region | None]:
    """The parts of each frame, in pixels, that ``plan`` computes one by one; [None] is all of it.

    Tiles are of about equal size, none larger than planned.

    Args:
        height, width: of the frames in pixels.
    """
    if plan.tile_size is None:
        return [None]
    rows, columns = (
        spans(side, tile, network.spatial_factor)
        for side, tile in zip((height, width), plan.tile_size, strict=True)
    )
    return list(product(rows, columns))


def regions_of(part: Part, tiles: Sequence[Region | None]) -> list[Region | None]:
    """The regions of the output of ``part`` for some tiles; [None] is the whole frame."""
    shrunken = [None if tile is None else shrunk(tile, part.scale) for tile in tiles]
    return [None] if part.whole or None in shrunken else shrunken


def spans(size: int, largest: int, factor: int) -> list[Span]:
    """As few spans as cover ``size``, of about equal length, multiples of ``factor``."""
    count = math.ceil(size / largest)
    ends = [size // factor * index // count * factor for index in range(count + 1)]
    return [Span(start, stop, size) for start, stop in pairwise(ends)]


def shrunk(region: Region, factor: int) -> Region:
    """``region`` of an image as a region of the image ``factor`` times smaller."""
    rows, columns = (Span(s.start // factor, s.stop // factor, s.size // factor) for s in region)
    return rows, columns
