"""Frames through a lossy encoder and back, in memory: what JPEG and H.264 do to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from av import CodecContext, Packet, VideoFrame
from av.video.codeccontext import VideoCodecContext
from torch import Tensor

from wanvae.video.common import INTERPOLATION


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg and its decoder.

    Attributes:
        encoder, decoder: their names.
        pixels: the pixel format.
        quality: the options that take the quality.
        options: others.
    """

    encoder: str
    decoder: str
    pixels: str
    quality: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


# The quality is FFmpeg's "-q:v" from 1, the best, to 31.
JPEG = Codec("mjpeg", "mjpeg", "yuvj420p", ("qmin", "qmax"))
# The quality is the CRF from 0, the best, to 51. With its default mbtree=1, x264 gives small
# pictures other bytes from time to time, even on one thread.
H264 = Codec("libx264", "h264", "yuv420p", ("crf",), (("x264-params", "mbtree=0"),))


def recompress(video: Tensor, codec: Codec, quality: float) -> Tensor:
    """Returns what is left of a video ``(3, T, H, W)`` in [-1, 1], always the same bits.

    Args:
        quality: in the units of the codec. JPEG rounds it.
    """
    height, width = video.shape[2:]
    levels = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = levels.permute(1, 2, 3, 0).numpy()
    # These formats have half as many samples of colour, so sides must be even.
    even = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    decoded = decode(encode(even, codec, quality), codec)
    if len(decoded) != len(pixels):
        raise RuntimeError(f"{codec.encoder} gives {len(decoded)} frames for {len(pixels)}")
    restored = torch.from_numpy(np.stack(decoded)[:, :height, :width])
    return restored.permute(3, 0, 1, 2).to(video) / 127.5 - 1


def encode(pixels: np.ndarray, codec: Codec, quality: float) -> list[Packet]:
    """Encodes RGB frames ``(T, H, W, 3)`` of 8 bit."""
    context = CodecContext.create(codec.encoder, "w")
    assert isinstance(context, VideoCodecContext)
    context.height, context.width = pixels.shape[1:3]
    context.pix_fmt = codec.pixels
    context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
    context.thread_count = 1
    value = f"{quality:.2f}" if codec is H264 else str(round(quality))
    context.options = {**dict.fromkeys(codec.quality, value), **dict(codec.options)}
    packets = []
    for number, picture in enumerate(pixels):
        frame = VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format=codec.pixels, interpolation=INTERPOLATION)
        frame.pts = number
        packets += context.encode(frame)
    return packets + context.encode(None)


def decode(packets: Sequence[Packet], codec: Codec) -> list[np.ndarray]:
    """Decodes to RGB frames ``(H, W, 3)`` of 8 bit."""
    context = CodecContext.create(codec.decoder, "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    frames = [frame for packet in (*packets, None) for frame in context.decode(packet)]
    return [
        frame.reformat(format="rgb24", interpolation=INTERPOLATION).to_ndarray() for frame in frames
    ]
