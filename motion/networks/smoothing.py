"""The last layer of a model that gives smooth motion: a filter along time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from motion.config import SmoothingConfig
from wanvae.nn import State
from wanvae.nn.streaming import get_tensors


class Smoother(nn.Module):
    """A weighted mean of a few neighboring frames, the same for all channels.

    Each end of a clip is continued with its first or its last frame. In a stream a frame is known
    when ``after`` more frames have come. The sums are the same in any pieces, bit for bit.

    Args:
        config: the number of frames before and after.
    """

    def __init__(self, config: SmoothingConfig) -> None:
        super().__init__()
        self.before, self.after = config.before, config.after
        count = self.before + self.after
        weights = torch.tensor([float(math.comb(count, k)) for k in range(count + 1)])
        self.weights = nn.Parameter(weights / 2**count, requires_grad=config.learned)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Smooths whole clips ``(B, T, D)``; frames after ``lengths`` ``(B,)`` may be anything."""
        frames, channels = x.shape[1:]
        places = torch.arange(-self.before, frames + self.after, device=x.device).clamp(min=0)
        if lengths is None:
            return self._filter(x[:, places.clamp(max=frames - 1)])
        places = torch.minimum(places, lengths[:, None] - 1)[:, :, None]
        return self._filter(x.gather(1, places.expand(-1, -1, channels)))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Smooths the next frames ``(B, T, D)`` of a stream.

        Returns:
            The frames that are known now, ``(B, n, D)``, and the state: the last frames.
        """
        past = x[:, :1].expand(-1, self.before, -1) if state is None else get_tensors(state)[0].mT
        joined = torch.cat([past, x], dim=1)
        seen = self.before + self.after
        last = joined[:, max(0, joined.shape[1] - seen) :]
        # As the states of other layers, (B, D, T).
        return self._filter(joined), (last.mT.clone(),)

    def finish(self, state: State) -> Tensor:
        """Returns the frames at the end of a stream that were not known, ``(B, n, D)``."""
        (last,) = get_tensors(state)
        return self.step(last[:, :, -1:].expand(-1, -1, self.after).mT, state)[0]

    def _filter(self, x: Tensor) -> Tensor:
        """Returns the mean of each of the frames that have all neighbors."""
        frames = max(0, x.shape[1] - self.before - self.after)
        weights = self.weights / self.weights.sum()
        total = x[:, :frames] * weights[0]
        for place, weight in enumerate(weights[1:], start=1):
            total = total + x[:, place : place + frames] * weight
        return total

    def extra_repr(self) -> str:
        return f"before={self.before}, after={self.after}, learned={self.weights.requires_grad}"
