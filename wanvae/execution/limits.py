"""The limits of a run: tiles, memory, processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wanvae.errors import UserError
from wanvae.execution.plan import Plan

# Height and width in pixels, or one number for both.
TileSize: TypeAlias = "int | tuple[int, int]"
# Bytes, or text like "4GB".
Memory: TypeAlias = "int | str"


class Processes(Protocol):
    """Processes that work together, like ``Accelerator`` and ``PartialState`` of accelerate."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...


@dataclass(frozen=True)
class Limits:
    """The limits of a run.

    Attributes:
        tile_size: the largest tile of each frame in pixels; None lets the plan choose.
        max_memory: memory besides the model and its input; None is no limit.
        shard: processes that share the work; None is this process alone.
        plan: a plan to use as it is, instead of a plan for ``tile_size`` or ``max_memory``.

    Raises:
        UserError: both ``tile_size`` and ``max_memory`` are given, or ``tile_size`` does not have
            two sides.
    """

    tile_size: TileSize | None = None
    max_memory: Memory | None = None
    shard: Processes | None = None
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if self.max_memory is not None and self.tile_size is not None:
            raise UserError("max_memory chooses tiles by itself: give it or tile_size, not both")
        sides = self.tile_size
        if not (
            isinstance(sides, int | None) or (isinstance(sides, tuple | list) and len(sides) == 2)
        ):
            raise UserError(
                f"tile_size must be one number or a height and a width, not {self.tile_size}"
            )

    @property
    def tile_sides(self) -> tuple[int, int] | None:
        """Height and width of the largest tile in pixels."""
        if isinstance(self.tile_size, int):
            return self.tile_size, self.tile_size
        return self.tile_size

    @property
    def processes(self) -> int:
        """The number of processes that share the work."""
        return 1 if self.shard is None else self.shard.num_processes

    @property
    def rank(self) -> int:
        """The number of this process among the processes, from 0."""
        return 0 if self.shard is None else self.shard.process_index
