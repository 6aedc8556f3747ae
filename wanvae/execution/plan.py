"""Plans: how many frames a network processes at once, and in which tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TypeAlias

from torch import nn

from wanvae.errors import UserError
from wanvae.execution.flow import STEP_PIXELS, choose_frames, count_latents_at_once
from wanvae.execution.network import Network, Part
from wanvae.nn import unstreamable_layers
from wanvae.nn.region import Region, Span

# A plan as numbers: frames, lean, split_core, offload, tile height and width.
PlanNumbers: TypeAlias = "tuple[int | None, bool, bool, bool, int | None, int | None]"


@dataclass(frozen=True)
class Plan:
    """How to run a network.

    Attributes:
        tile_size: height and width in pixels of the largest tile; None is the whole frame.
        frames: frames to process at once at full resolution; None is the whole clip.
        lean: whether free memory is returned to the system at once: slower, but limits hold.
        split_core: whether convolutions of the core run on tiles too, which then overlap more.
        offload: whether states of tiles wait in the memory of the host while other tiles run.
    """

    tile_size: tuple[int, int] | None
    frames: int | None
    lean: bool = False
    split_core: bool = False
    offload: bool = False

    @property
    def latents_at_once(self) -> int:
        """The number of latents that are processed at once."""
        return 1 if self.frames is None else count_latents_at_once(self.frames)

    @property
    def numbers(self) -> PlanNumbers:
        """This plan as numbers, for files."""
        height, width = self.tile_size or (None, None)
        return self.frames, self.lean, self.split_core, self.offload, height, width

    @classmethod
    def from_numbers(cls, numbers: PlanNumbers) -> Plan:
        """Returns the plan that has these ``numbers``."""
        frames, lean, split_core, offload, height, width = numbers
        tile_size = None if height is None or width is None else (height, width)
        return cls(tile_size, frames, lean, split_core, offload)


def make_default_plan(
    network: Network,
    height: int,
    width: int,
    tile_size: tuple[int, int] | None,
    step_pixels: int = STEP_PIXELS,
) -> Plan:
    """Returns the fastest plan for frames of this size in pixels.

    Args:
        step_pixels: pixels at full resolution that keep the device busy.

    Raises:
        UserError: ``tile_size`` is not a multiple of the spatial factor, or the network needs whole
            clips and cannot run on tiles.
    """
    if unstreamable_layers(nn.ModuleList(network.layers)):
        if tile_size is not None:
            raise UserError("a model with layers that look across all of time cannot be tiled")
        return Plan(None, None)
    if tile_size is None:
        return Plan(None, choose_frames(height, width, step_pixels))
    factor = network.spatial_factor
    if min(tile_size) < 1 or any(side % factor for side in tile_size):
        raise UserError(f"tile_size must be a positive multiple of {factor}, not {tile_size}")
    height, width = min(height, tile_size[0]), min(width, tile_size[1])
    return Plan(tile_size, choose_frames(height, width, step_pixels))


def make_tiles(network: Network, height: int, width: int, plan: Plan) -> list[Region | None]:
    """Returns the tiles of each frame, in pixels; [None] is the whole frame.

    Tiles have about equal size, and no tile is larger than ``plan.tile_size``.

    Args:
        height, width: size of the frames in pixels.
    """
    if plan.tile_size is None:
        return [None]
    rows, columns = (
        cut_into_spans(side, tile, network.spatial_factor)
        for side, tile in zip((height, width), plan.tile_size, strict=True)
    )
    return list(product(rows, columns))


def find_regions(part: Part, tiles: Sequence[Region | None]) -> list[Region | None]:
    """Returns the regions of the output of ``part`` for some tiles; [None] is the whole frame."""
    shrunken = [None if tile is None else shrink(tile, part.scale) for tile in tiles]
    return [None] if part.whole or None in shrunken else shrunken


def cut_into_spans(size: int, largest: int, factor: int) -> list[Span]:
    """Returns the fewest spans that cover ``size``: about equal, multiples of ``factor``."""
    count = math.ceil(size / largest)
    ends = [size // factor * index // count * factor for index in range(count + 1)]
    return [Span(start, stop, size) for start, stop in pairwise(ends)]


def shrink(region: Region, factor: int) -> Region:
    """Returns ``region`` of an image as a region of the image ``factor`` times smaller."""
    rows, columns = (Span(s.start // factor, s.stop // factor, s.size // factor) for s in region)
    return rows, columns
