"""Encoding and decoding video piece by piece: chunk plans and stream sessions.

A session takes pieces of any length, hands the network whole groups, and holds its state: memory
does not grow with the length of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wanvae.nn import State, unstreamable_layers
from wanvae.posterior import Posterior

if TYPE_CHECKING:
    from wanvae.model import WanVAE

# About what a 2-core machine needs to stay busy; larger chunks only cost memory.
CHUNK_PIXELS = 2**18
# More groups than any clip has.
WHOLE_CLIP = 2**40

SessionState = tuple[State, Tensor | None]


@dataclass(frozen=True)
class EncodeEnd:
    """What the end of an encoding stream gives.

    Attributes:
        posterior: of the frames that were still waiting, or None if there were none.
        padded_frames: how often the last frame was repeated to complete their group; the decoded
            video has as many frames too many at its end.
    """

    posterior: Posterior | None
    padded_frames: int


class StreamEncoder:
    """Encodes a stream of frames; made by ``WanVAE.stream_encode``. No gradients are kept."""

    def __init__(self, vae: WanVAE, state: SessionState | None = None) -> None:
        require_streamable(vae.encoder)
        self._vae = vae
        self._state, self._waiting = (None, None) if state is None else state

    @property
    def state(self) -> SessionState:
        """Everything needed to go on later: ``vae.stream_encode(state=session.state)``.

        A nested tuple of tensors, for ``torch.save``.
        """
        return self._state, self._waiting

    @torch.no_grad()
    def push(self, frames: Tensor) -> Posterior | None:
        """Add frames ``(B, C, T, H, W)``, T >= 1, in [-1, 1].

        Returns the posterior of the groups that are complete now, or None if there is none. The
        first frame is a group; after it every ``temporal_factor`` frames are one (4 for Wan2.1).
        """
        frames = self._vae.check_video(frames)
        check_same_stream(frames, self._state)
        if self._waiting is not None:
            frames = torch.cat([self._waiting, frames], dim=2)
        factor = self._vae.config.temporal_factor
        first = 1 if self._state is None else 0
        ready = first + (frames.shape[2] - first) // factor * factor
        self._waiting = frames[:, :, ready:].clone() if ready < frames.shape[2] else None
        return self._encode(frames[:, :, :ready]) if ready else None

    @torch.no_grad()
    def finish(self) -> EncodeEnd:
        """Complete the last group by repeating its last frame and encode it."""
        if self._waiting is None:
            return EncodeEnd(None, 0)
        frames, self._waiting = self._waiting, None
        missing = self._vae.config.temporal_factor - frames.shape[2]
        tail = frames[:, :, -1:].expand(-1, -1, missing, -1, -1)
        return EncodeEnd(self._encode(torch.cat([frames, tail], dim=2)), missing)

    def _encode(self, frames: Tensor) -> Posterior:
        moments, self._state = self._vae.encode_in_chunks(frames, self._state)
        return Posterior.from_moments(moments)


class StreamDecoder:
    """Decodes a stream of latents; made by ``WanVAE.stream_decode``. No gradients are kept.

    Every latent is a group of its own, so nothing ever waits.
    """

    def __init__(self, vae: WanVAE, state: State = None, *, clamp: bool = True) -> None:
        require_streamable(vae.decoder)
        self._vae = vae
        self._clamp = clamp
        self.state = state

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Decode raw latents ``(B, z_dim, T, H, W)``, T >= 1.

        The first gives one frame, every later one ``temporal_factor`` frames (4 for Wan2.1).
        """
        latents = self._vae.check_latents(latents)
        check_same_stream(latents, self.state)
        video, self.state = self._vae.decode_in_chunks(latents, self.state)
        return video.clamp_(-1, 1) if self._clamp else video

    def finish(self) -> None:
        """End the stream. Nothing is left to decode; for symmetry with encoding."""
        self.state = None


def require_streamable(network: nn.Module) -> None:
    """Raise ValueError if ``network`` can only process whole clips."""
    layers = unstreamable_layers(network)
    if layers:
        raise ValueError(
            f"this model cannot stream, for {len(layers)} of its layers look across all of time "
            f"(the first: {layers[0]}); use encode and decode on whole clips"
        )


def check_same_stream(piece: Tensor, state: State) -> None:
    """Raise ValueError if ``piece`` cannot go on from ``state``: only its length may be another."""
    if state is None:
        return
    # The first layer of encoder and decoder is a convolution, whose state is a piece of the input.
    ((before, *_), *_) = state
    shape, expected = list(piece.shape), list(before.shape)
    shape[2] = expected[2] = 0
    if shape != expected:
        raise ValueError(
            f"a stream keeps its shape, but a piece of {tuple(piece.shape)} follows one of "
            f"{tuple(before.shape)} (only T, the third, may change)"
        )


def groups_per_chunk(network: nn.Module, size: Sequence[int], temporal_factor: int) -> int:
    """How many groups of frames of ``size`` (height, width) to process at once."""
    if unstreamable_layers(network):
        return WHOLE_CLIP
    return max(1, CHUNK_PIXELS // (size[0] * size[1] * temporal_factor))


def split_frames(video: Tensor, groups: int, temporal_factor: int, *, starts: bool) -> list[Tensor]:
    """Cut frames, whole groups of them, into chunks of ``groups``; the first group may be 1 frame.

    Args:
        starts: whether these frames start a stream, so that their first is a group of its own.
    """
    length = groups * temporal_factor
    first = length - temporal_factor + 1 if starts else length
    head, tail = video[:, :, :first], video[:, :, first:]
    return [head, *(tail.split(length, dim=2) if tail.shape[2] else ())]


def run_in_chunks(
    step: Callable[[Tensor, State], tuple[Tensor, State]], chunks: Iterable[Tensor], state: State
) -> tuple[Tensor, State]:
    """Feed chunks to ``step`` one after another and join the outputs along time."""
    outputs = []
    for chunk in chunks:
        output, state = step(chunk, state)
        outputs.append(output)
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0], state
