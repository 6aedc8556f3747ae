"""Stages with a shortcut across all of their layers, also across resampling, as in Wan2.2.

The shortcuts have no parameters: positions move into channels and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.interval import Interval
from wanvae.nn.region import Region, before_repeating, crop, repeated
from wanvae.nn.residual import SequentialResidual
from wanvae.nn.sequential import cropped_layers, pass_through_again
from wanvae.nn.streaming import State, Streaming


class ResidualStage(SequentialResidual):
    """A row of layers, whose last layer may resample, and a shortcut across the row.

    Args:
        name: the name of the row in checkpoints.
    """

    has_blocks = True

    def __init__(self, layers: Sequence[nn.Module], shortcut: nn.Module, name: str) -> None:
        super().__init__(layers, shortcut, name=name)

    def recomputed_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, State]:
        # Block by block, because a whole stage at once would need most of the memory again.
        return self.step_by(partial(pass_through_again, self.body), x, state, region)

    def cropped_layers(self) -> tuple[Streaming, ...]:
        # The shortcut is left out, because it only moves values.
        return cropped_layers(self.body)


class StageShortcut(Streaming):
    """The base of both shortcuts, for ``(B, C, T, H, W)``. They keep no state.

    Args:
        time, space: factors by which the stage resamples time, and each side of space.
        frames_alone: whether each frame is the first frame of a stream of its own, so that the
            number of frames stays the same: an image model with the shortcuts of a video model.

    Raises:
        UserError: the channels do not divide into ``in_dim`` or ``out_dim`` equal groups.
    """

    def __init__(
        self, in_dim: int, out_dim: int, time: int, space: int, *, frames_alone: bool = False
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.time = time
        self.space = space
        self.frames_alone = frames_alone

    def resample(self, x: Tensor, region: Region | None, *, starts: bool) -> Tensor:
        """Returns the output for the next frames of a stream, or for its first frames."""
        raise self._unanswered("resample")

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        if not self.frames_alone:
            return self.resample(x, region, starts=state is None), ()
        frames = rearrange(x, "b c t h w -> (b t) c 1 h w")
        y = self.resample(frames, region, starts=True)
        return rearrange(y, "(b t) c 1 h w -> b c t h w", b=x.shape[0]), ()

    @property
    def frames_ratio(self) -> int:
        """The factor by which the number of frames changes."""
        return 1 if self.frames_alone else self.time

    @property
    def factors(self) -> dict[str, int]:
        """The factor of each axis, by its name in the patterns of einops."""
        return {"f": self.time, "p": self.space, "q": self.space}

    def multiply_adds(self, positions: int, frames: int) -> int:
        return 0


class AverageDown(StageShortcut):
    """A shortcut that turns ``time`` frames of ``space`` x ``space`` positions into one position.

    The values are put in the order channel, frame, row, column, and averaged in ``out_dim`` groups.
    Zeros come before the first frame of a stream.
    """

    def __init__(
        self, in_dim: int, out_dim: int, time: int, space: int, *, frames_alone: bool = False
    ) -> None:
        super().__init__(in_dim, out_dim, time, space, frames_alone=frames_alone)
        require_groups(in_dim * time * space**2, out_dim)

    def resample(self, x: Tensor, region: Region | None, *, starts: bool) -> Tensor:
        if starts and self.time > 1:
            zeros = x.new_zeros(*x.shape[:2], self.time - 1, *x.shape[3:])
            x = torch.cat([zeros, x], dim=2)
        pattern = "b c (t f) (h p) (w q) -> b t h w (c f p q)"
        values = rearrange(x, pattern, **self.factors).unflatten(-1, (self.out_dim, -1))
        return values.mean(-1).movedim(-1, 1)

    def input_region(self, region: Region) -> Region:
        return repeated(region, self.space)

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), 1 + (lengths - 1) // self.frames_ratio

    def input_interval(self, interval: Interval) -> Interval:
        ratio = self.frames_ratio
        return interval.before_convolution(ratio, ratio, ratio - 1)

    def time_factor(self) -> Fraction:
        return Fraction(1, self.frames_ratio)

    def space_factor(self) -> Fraction:
        return Fraction(1, self.space)


class DuplicateUp(StageShortcut):
    """A shortcut that turns one position into ``time`` frames of ``space`` x ``space`` positions.

    Each channel is repeated equally often. The repeated channels are the new values in the order
    channel, frame, row, column. The first frame of a stream becomes only the last of these frames.
    """

    def __init__(
        self, in_dim: int, out_dim: int, time: int, space: int, *, frames_alone: bool = False
    ) -> None:
        super().__init__(in_dim, out_dim, time, space, frames_alone=frames_alone)
        self.repeats = require_groups(out_dim * time * space**2, in_dim)

    def resample(self, x: Tensor, region: Region | None, *, starts: bool) -> Tensor:
        values = x.movedim(1, -1).repeat_interleave(self.repeats, dim=-1)
        pattern = "b t h w (c f p q) -> b (t f) (h p) (w q) c"
        y = rearrange(values, pattern, **self.factors).movedim(-1, 1)
        if starts:
            y = y[:, :, self.time - 1 :]
        if region is not None:
            y = crop(y, repeated(self.input_region(region), self.space), region)
        return y

    def input_region(self, region: Region) -> Region:
        return before_repeating(region, self.space)

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), 1 + (lengths - 1) * self.frames_ratio

    def input_interval(self, interval: Interval) -> Interval:
        return interval.divided(self.frames_ratio, offset=self.frames_ratio - 1)

    def time_factor(self) -> Fraction:
        return Fraction(self.frames_ratio)

    def space_factor(self) -> Fraction:
        return Fraction(self.space)


def require_groups(values: int, groups: int) -> int:
    """Returns the size of ``groups`` equal groups of ``values``; raises UserError for a rest."""
    if values % groups:
        raise UserError(
            f"the shortcut of a stage cannot make {groups} equal groups of {values} channels: "
            "choose other dim_mult, or stage_shortcuts=False"
        )
    return values // groups
