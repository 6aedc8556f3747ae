"""Self-attention with one head: over the positions of each frame, or over time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.conv import CausalConv
from wanvae.nn.interval import ALL_TIME, Interval
from wanvae.nn.kernels.convolve import convolve, sees_plain_operations
from wanvae.nn.kernels.pool import empty
from wanvae.nn.masking import mask_of
from wanvae.nn.norm import RMSNorm
from wanvae.nn.region import Region, crop_whole, whole_of
from wanvae.nn.residual import Residual
from wanvae.nn.streaming import State

# Scores of the queries that are attended for at once; kernels do not keep them.
LARGEST_SCORES = 2**24
# Kernels are at their fastest from so many queries on.
FEWEST_QUERIES = 1024
HALF_TYPES = (torch.bfloat16, torch.float16)
# Stride, padding and dilation of a 1-conv.
ONE_POSITION = (1, 1), (0, 0), (1, 1)


class Attention(Residual):
    """Norm, 1-conv to queries, keys and values, attention by a subclass, 1-conv, residual.

    Parameter names (``norm``, ``to_qkv``, ``proj``) and the zero start of ``proj`` are Wan's.
    """

    def __init__(self, ndim: int, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(ndim, dim)
        self.to_qkv = CausalConv(ndim, dim, 3 * dim, 1)
        self.proj = CausalConv(ndim, dim, dim, 1)
        nn.init.zeros_(self.proj.weight)

    def _multiply_adds(self, positions: int, frames: int, seen: int) -> int:
        """Multiply-adds where each query attends to ``seen`` positions."""
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
    ) -> tuple[Tensor, State]:
        if x.dim() == 4:
            return crop_whole(self._attend(x), region), ()
        y = self._attend(rearrange(x, "b c t h w -> (b t) c h w"))
        return crop_whole(rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0]), region), ()

    def body_input_region(self, region: Region) -> Region:
        return whole_of(region)

    def body_forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.body_step(x, None)[0], lengths

    def body_input_interval(self, interval: Interval) -> Interval:
        return interval

    def body_multiply_adds(self, positions: int, frames: int) -> int:
        return self._multiply_adds(positions, frames, seen=positions)

    def looks_across_space(self) -> bool:
        return True

    def _attend(self, images: Tensor) -> Tensor:
        if sees_plain_operations():
            q, k, v = map(tokens, self.to_qkv(self.norm(images)).chunk(3, dim=1))
            y = F.scaled_dot_product_attention(q, k, v)
            return self.proj(
                rearrange(y, "b 1 (h w) c -> b h w c", h=images.shape[2]).movedim(-1, 1)
            )
        return self._attend_in_blocks(images)

    def _attend_in_blocks(self, images: Tensor) -> Tensor:
        """Some images at a time, and of large ones some queries."""
        count, channels, *size = images.shape
        positions = size[0] * size[1]
        at_once = min(count, max(1, LARGEST_SCORES // positions**2))
        y = empty((count, channels, 1, positions), images.dtype, images.device)
        # Strides that say of a single image, too, that channels are innermost; kernels need that.
        in_a_row = images.movedim(1, -1).flatten(1, 2).unsqueeze(1).movedim(-1, 1)
        for some, out in zip(in_a_row.split(at_once), y.split(at_once), strict=True):
            queries = max(FEWEST_QUERIES, LARGEST_SCORES // (at_once * positions))
            self._attend_into(out, some, queries)
        return y.unflatten(3, size).squeeze(2)

    def _attend_into(self, out: Tensor, images: Tensor, queries: int) -> None:
        """Write what so many queries at a time come to, of images ``(B, C, 1, H * W)``."""
        channels = images.shape[1]
        (of_q, of_kv), (q_bias, kv_bias) = (
            parameter.split([channels, 2 * channels])
            for parameter in (self.to_qkv.weight, self.to_qkv.bias)
        )
        normed = self.norm(images)
        k, v = map(tokens, convolve(normed, of_kv, kv_bias, *ONE_POSITION).chunk(2, dim=1))
        for block, made in zip(normed.split(queries, 3), out.split(queries, 3), strict=True):
            q = tokens(convolve(block, of_q, q_bias, *ONE_POSITION))
            attended = attend(q, k, v)
            made.copy_(self.proj(attended.movedim(-1, 1)))
            if out.is_meta:
                break  # one block shows how much memory it takes


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries to all keys; of meta tensors with the memory that it takes elsewhere."""
    if not q.is_meta:
        return F.scaled_dot_product_attention(q, k, v)
    # PyTorch would make the scores here, which no kernel holds. Those of CPUs reorder keys and
    # values of half types.
    if q.dtype in HALF_TYPES:
        k, v = k.clone(), v.clone()
    return torch.empty_like(q)


def tokens(images: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, 1, H * W, C)``: one head, a token for each position."""
    return rearrange(images, "b c h w -> b 1 (h w) c")


class TimeAttentionBlock(Attention):
    """Attention over time, of ``(B, C, T)``.

    Args:
        causal: each frame attends to itself and earlier ones only.
        window: with ``causal``, to the last ``window`` of them only; this bounds the memory of a
            stream, so that without it (or without ``causal``) the block cannot stream.

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
        allowed = mask_of(lengths, x.shape[2])[:, None, None, :]
        if self.causal:
            allowed = allowed & self._visible(x.shape[2], 0, x.device)
        return self._mix(q, k, v, allowed), lengths

    def body_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, State]:
        if self.looks_across_time():
            self.refuse_to_continue(state)
        q, k, v = self._queries_keys_values(x)
        if not self.causal:
            return self._mix(q, k, v, None), ()
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        y = self._mix(q, k, v, self._visible(x.shape[2], k.shape[2] - x.shape[2], x.device))
        if self.window is None:
            return y, ()
        start = max(0, k.shape[2] - self.window + 1)
        return y, (k[:, :, start:].clone(), v[:, :, start:].clone())

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
        """(frames, past + frames) mask of the keys each of the new frames may attend to."""
        query = torch.arange(past, past + frames, device=device)[:, None]
        key = torch.arange(past + frames, device=device)
        visible = key <= query
        return visible if self.window is None else visible & (key > query - self.window)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.proj(rearrange(y, "b 1 t c -> b c t"))
