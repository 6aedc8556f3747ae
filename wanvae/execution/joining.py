"""Pieces of a result, put together on the device that wants them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def join(
    pieces: Iterable[Tensor], frames: int, device: torch.device | None = None
) -> Tensor | None:
    """Returns all pieces as one tensor of ``frames`` frames; None if there are no pieces.

    Each piece is copied to its place as it comes.

    Args:
        device: of the result; None is the device of the pieces. On their way from a GPU to the
            host, pieces travel while the GPU computes the next ones.
    """
    joined, start, road = None, 0, None
    for piece in pieces:
        target = piece.device if device is None else device
        if joined is None:
            if piece.shape[2] == frames and piece.device == target:
                joined = piece
                continue
            shape = (*piece.shape[:2], frames, *piece.shape[3:])
            if piece.is_cuda and target.type == "cpu":
                joined = allocate_on_host(shape, piece.dtype)
                road = RoadToHost(piece.device)
            else:
                joined = torch.empty(shape, dtype=piece.dtype, device=target)
        place = joined[:, :, start : start + piece.shape[2]]
        if road is None:
            place.copy_(piece)
        else:
            road.send(piece, place)
        start += piece.shape[2]
    if road is not None:
        road.wait()
    return None if joined is None else joined.contiguous()


def allocate_on_host(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Returns memory of the host that a GPU writes to while it computes, if there is enough of it.

    Systems limit such memory, which cannot be swapped out. Copies to other memory are only slower.
    """
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(shape, dtype=dtype)


class RoadToHost:
    """Copies from a GPU to pinned memory of the host, beside what the GPU computes."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def send(self, piece: Tensor, place: Tensor) -> None:
        """Starts to copy a piece ``(B, C, T, H, W)`` to its place in a larger tensor."""
        # Only copies from block to block of memory run beside the GPU. Each channel is one block.
        piece = piece.contiguous()
        self._stream.wait_stream(torch.cuda.current_stream(piece.device))
        with torch.cuda.stream(self._stream):
            for source, target in zip(piece.flatten(0, 1), place.flatten(0, 1), strict=True):
                target.copy_(source, non_blocking=True)
        piece.record_stream(self._stream)

    def wait(self) -> None:
        """Waits until all pieces have arrived."""
        self._stream.synchronize()
