"""Reading, comparing and writing frames beside the model, so that the slowest sets the pace."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from os import PathLike

from torch import Tensor

from wanvae.engine.ahead import ahead, behind
from wanvae.metrics.images import psnr, ssim
from wanvae.video import Frame, VideoWriter
from wanvae.video.common import is_pipe

# How many frames wait for the model, and how many wait to be written: as many as a latent has.
FRAMES_AHEAD = FRAMES_BEHIND = 4


def read_ahead(
    frames: Generator[Frame, None, None], source: str | PathLike[str]
) -> AbstractContextManager[Iterator[Frame]]:
    """Gives the frames of a video, which a thread decodes a few in advance.

    Frames of a pipe are not read in advance: nothing could end a thread that waits for the sender.
    """
    return nullcontext(frames) if is_pipe(source) else closing(ahead(frames, FRAMES_AHEAD))


@dataclass(frozen=True)
class Shown:
    """Frames to write: ``images`` (C, T, H, W) in [-1, 1]; ``times`` in seconds, or None."""

    images: Tensor
    times: Sequence[float] | None


def write_behind(
    writer: VideoWriter | None, depth: int
) -> AbstractContextManager[Callable[[Shown], None]]:
    """Gives a function that writes frames in a thread.

    Args:
        writer: the file; None in processes that write none and do not use the function.
        depth: how many calls of the function may wait.
    """

    def write(shown: Shown) -> None:
        assert writer is not None
        writer.write(shown.images, shown.times)

    return behind(write, depth)


@dataclass
class Comparison:
    """Sums over reconstructed frames.

    Attributes:
        frames: number of frames.
        psnr: sum of their peak signal-to-noise ratios in dB.
        ssim: sum of their structural similarities.
    """

    frames: int = 0
    psnr: float = 0.0
    ssim: float = 0.0

    def add(self, pair: tuple[Tensor, Tensor]) -> None:
        """Compares an image ``(C, H, W)`` in [-1, 1] with its original."""
        image, original = pair
        self.frames += 1
        self.psnr += psnr(image[None], original[None])
        self.ssim += ssim(image[None], original[None])

    def behind(self) -> AbstractContextManager[Callable[[tuple[Tensor, Tensor]], None]]:
        """Gives a function that adds a pair in a thread."""
        return behind(self.add, FRAMES_BEHIND)
