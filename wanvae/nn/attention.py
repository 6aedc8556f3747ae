"""Self-attention with one head: over the positions of each frame, or over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.conv import CausalConv
from wanvae.nn.interval import ALL_TIME, Interval
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.kernels.pointwise import PointwiseFunction
from wanvae.nn.masking import make_mask
from wanvae.nn.norm import RMSNorm
from wanvae.nn.region import Region, crop_whole, expand_to_whole
from wanvae.nn.residual import Residual
from wanvae.nn.streaming import State, get_tensors


class Attention(Residual):
    """Norm, 1-conv to queries, keys and values, attention of a subclass, 1-conv, residual.

    Parameter names (``norm``, ``to_qkv``, ``proj``) and the zero start of ``proj`` are Wan's.
    """

    def __init__(self, ndim: int, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(ndim, dim)
        self.to_qkv = CausalConv(ndim, dim, 3 * dim, 1)
        self.proj = CausalConv(ndim, dim, dim, 1)
        nn.init.zeros_(self.proj.weight)

    def _multiply_adds(self, positions: int, frames: int, seen: int) -> int:
        """Returns the multiply-adds if each query attends to ``seen`` positions."""
        channels = self.proj.weight.shape[0]
        convolutions = (self.to_qkv, self.proj)
        attending = 2 * positions * frames * seen * channels
        return attending + sum(conv.multiply_adds(positions, frames) for conv in convolutions)


class AttentionBlock(Attention):
    """Attention over the positions of each frame, of ``(B, C, T, H, W)`` or ``(B, C, H, W)``."""

    def __init__(self, dim: int) -> None:
        super().__init__(2, dim)

    def body_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, Sequence[PointwiseFunction], State]:
        attend = kernels_for(x).attend
        if x.dim() == 4:
            return crop_whole(attend(self, x), region), (), ()
        y = attend(self, rearrange(x, "b c t h w -> (b t) c h w"))
        y = rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])
        return crop_whole(y, region), (), ()

    def body_input_region(self, region: Region) -> Region:
        return expand_to_whole(region)

    def body_forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.body_step(x, None)[0], lengths

    def body_input_interval(self, interval: Interval) -> Interval:
        return interval

    def body_multiply_adds(self, positions: int, frames: int) -> int:
        return self._multiply_adds(positions, frames, seen=positions)

    def looks_across_space(self) -> bool:
        return True

    def project(self, x: Tensor, channels: slice) -> Tensor:
        """Returns some channels of the output of ``to_qkv`` for images ``(B, C, H, W)``."""
        weight, bias = self.to_qkv.weight[channels], self.to_qkv.bias[channels]
        return kernels_for(x).convolve(x, weight, bias, (1, 1), (0, 0), (1, 1))


class TimeAttentionBlock(Attention):
    """Attention over time, of ``(B, C, T)``.

    Args:
        causal: whether each frame attends only to itself and earlier frames.
        window: with ``causal``, each frame attends only to the last ``window`` frames, its own
            included. Without a window, or without ``causal``, the block cannot stream, because its
            state would grow without limit.

    State: keys and values of the last ``window - 1`` frames.
    """

    def __init__(self, dim: int, *, causal: bool = False, window: int | None = None) -> None:
        super().__init__(1, dim)
        if window is not None and (not causal or window < 1):
            raise UserError(f"window={window} needs causal=True and at least 1 frame")
        self.causal = causal
        self.window = window

    def body_forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self._queries_keys_values(x)
        allowed = make_mask(lengths, x.shape[2])[:, None, None, :]
        if self.causal:
            allowed = allowed & self._visible(x.shape[2], 0, x.device)
        return self._mix(q, k, v, allowed), lengths

    def body_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, Sequence[PointwiseFunction], State]:
        if self.looks_across_time():
            self.refuse_to_continue(state)
        q, k, v = self._queries_keys_values(x)
        if not self.causal:
            return self._mix(q, k, v, None), (), ()
        if state is not None:
            past_k, past_v = get_tensors(state)
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        y = self._mix(q, k, v, self._visible(x.shape[2], k.shape[2] - x.shape[2], x.device))
        if self.window is None:
            return y, (), ()
        start = max(0, k.shape[2] - self.window + 1)
        return y, (), (k[:, :, start:].clone(), v[:, :, start:].clone())

    def body_input_interval(self, interval: Interval) -> Interval:
        if not self.causal:
            return ALL_TIME
        past = math.inf if self.window is None else self.window - 1
        return Interval(interval.first - past, interval.last)

    def body_multiply_adds(self, positions: int, frames: int) -> int:
        seen = frames if self.window is None else min(frames, self.window)
        return self._multiply_adds(positions, frames, seen)

    def looks_across_time(self) -> bool:
        return self.window is None

    def _queries_keys_values(self, x: Tensor) -> Tensor:
        return rearrange(self.to_qkv(self.norm(x)), "b (three c) t -> three b 1 t c", three=3)

    def _visible(self, frames: int, past: int, device: torch.device) -> Tensor:
        """Returns a mask ``(frames, past + frames)`` of the keys that each new frame attends to."""
        query = torch.arange(past, past + frames, device=device)[:, None]
        key = torch.arange(past + frames, device=device)
        visible = key <= query
        return visible if self.window is None else visible & (key > query - self.window)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        y = kernels_for(q).attend_to(q, k, v, allowed)
        return self.proj(rearrange(y, "b 1 t c -> b c t"))
