"""Frames of video files on their way into a model: padding and encoding them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.config import VideoConfig
from wanvae.execution.sessions import StreamEncoder
from wanvae.posterior import Posterior
from wanvae.video import Frame


def encode_frames(
    config: VideoConfig,
    encoder: StreamEncoder,
    frames: Iterable[Frame],
    seen: Callable[[Frame], Any],
) -> Iterator[Posterior]:
    """Yields the posterior of a stream of frames, piece by piece.

    Args:
        config: the architecture of the model that encodes.
        encoder: a new session of the model.
        frames: frames of one size. Their right and bottom edges are repeated to fill whole latents,
            and the last frame is repeated to fill the last group.
        seen: is called with each frame once it is read.

    Raises:
        NotFiniteError: frames or latents are not finite.
    """
    frames = iter(frames)
    count = 1
    while batch := list(islice(frames, count)):
        for frame in batch:
            seen(frame)
        images = stack_images([frame.image for frame in batch])
        posterior = encoder.push(pad_to_multiple(images[None], config.spatial_factor))
        plan = encoder.plan
        # A session has a plan from its first frame on, and a plan of a stream limits its frames.
        assert plan is not None and plan.frames is not None
        count = max(1, plan.frames // config.temporal_factor) * config.temporal_factor
        if posterior is not None:
            yield posterior
    end = encoder.finish()
    if end.posterior is not None:
        yield end.posterior


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Returns images ``(C, H, W)`` on the CPU as a clip ``(C, T, H, W)``.

    NumPy copies them in this thread. PyTorch would share the copy among its threads, which then
    wait for more work actively, and take the cores of those who read, compare and write.
    """
    return torch.from_numpy(np.stack([image.numpy() for image in images], axis=1))


def pad_to_multiple(video: Tensor, factor: int) -> Tensor:
    """Repeats the right and bottom edges of ``(B, C, T, H, W)`` to multiples of ``factor``.

    A video whose sides are multiples is returned itself, because padding by nothing is a copy.
    """
    height, width = video.shape[3:]
    if height % factor == width % factor == 0:
        return video
    return F.pad(video, (0, -width % factor, 0, -height % factor, 0, 0), mode="replicate")
