"""Self-attention with one head: over the positions of each frame, or over time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.conv import CausalConv
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.norm import RMSNorm
from wanvae.nn.region import Region, crop_whole, whole_of
from wanvae.nn.residual import Residual
from wanvae.nn.streaming import State


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


class AttentionBlock(Attention):
    """Attention over the positions of each frame, of ``(B, C, T, H, W)`` or ``(B, C, H, W)``."""

    def __init__(self, dim: int) -> None:
        super().__init__(2, dim)

    def body_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, State]:
        attend = kernels_for(x).attend
        if x.dim() == 4:
            return crop_whole(attend(self, x), region), ()
        y = attend(self, rearrange(x, "b c t h w -> (b t) c h w"))
        return crop_whole(rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0]), region), ()

    def body_input_region(self, region: Region) -> Region:
        return whole_of(region)

    def looks_across_space(self) -> bool:
        return True

    def project(self, x: Tensor, channels: slice) -> Tensor:
        """Some channels of what ``to_qkv`` gives for images ``(B, C, H, W)``."""
        weight, bias = self.to_qkv.weight[channels], self.to_qkv.bias[channels]
        return kernels_for(x).convolve(x, weight, bias, (1, 1), (0, 0), (1, 1))


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

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Attend within whole clips; frames from ``lengths`` (B,) on are padding, unseen."""
        if lengths is None:
            return super().forward(x)
        valid = torch.arange(x.shape[2], device=x.device) < lengths[:, None]
        q, k, v = self._queries_keys_values(x)
        allowed = valid[:, None, None, :]
        if self.causal:
            allowed = allowed & self._visible(x.shape[2], 0, x.device)
        return self.add(self._mix(q, k, v, allowed), x)

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
