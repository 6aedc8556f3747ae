"""Animated WebP, of which FFmpeg reads no frame: its parts, and how they are laid together.

Each part of such a file is a still picture of a rectangle. See the specification of the container:
https://developers.google.com/speed/webp/docs/riff_container
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from io import BufferedReader, BytesIO
from itertools import accumulate
from typing import BinaryIO

import numpy as np
from av import Packet, VideoFrame
from av.error import EOFError
from av.video.reformatter import Colorspace, VideoReformatter

from wanvae.engine.storage.remote_path import RemotePath, location
from wanvae.video.common import (
    INTERPOLATION,
    STANDARD_INPUT,
    FilePart,
    Source,
    VideoError,
    is_pipe,
    open_remote,
)

_TICKS = 1000  # per second
# Browsers show a part of at most so many milliseconds for 100 instead.
_TOO_SHORT, _INSTEAD = 10, 100
_LARGEST = 16384  # pixels of a side
_ANIMATED, _HAS_ALPHA = 0x02, 0x10
_PICTURES = (b"ALPH", b"VP8 ", b"VP8L")


@dataclass(frozen=True)
class Part:
    """A picture that is laid on those before it.

    Attributes:
        offset, size: where the chunks of the picture lie in the file.
        left, top: where it begins on the canvas.
        width, height: its size.
        duration: milliseconds.
        blends: whether it is mixed with what is below by its alpha, or replaces it.
        vanishes: whether its rectangle is transparent for the next part.
    """

    offset: int
    size: int
    left: int
    top: int
    width: int
    height: int
    duration: int
    blends: bool
    vanishes: bool


@dataclass(frozen=True)
class AnimatedWebp:
    """An animated WebP file.

    Attributes:
        source: the file, or its content.
        width, height: of the canvas.
        parts: one for each frame.
    """

    source: Source | bytes
    width: int
    height: int
    parts: tuple[Part, ...]

    @cached_property
    def times(self) -> list[int]:
        """When each part is shown, and when the last ends, in milliseconds."""
        return list(accumulate((part.duration for part in self.parts), initial=0))

    @property
    def length(self) -> int:
        """How many frames there are."""
        return len(self.parts)

    @property
    def tick(self) -> Fraction:
        """Seconds of one unit of time."""
        return Fraction(1, _TICKS)

    @property
    def rate(self) -> Fraction:
        """Frames per second on average."""
        return Fraction(self.length * _TICKS, self.times[-1])

    @property
    def ticks(self) -> int:
        """How long it is, in units of time."""
        return self.times[-1]

    def packets(self, start: int = 0) -> Iterator[Packet]:
        """Yields each part as a still picture of its own. The last packet is empty.

        Args:
            start: is not heeded, because each frame needs all parts before it.

        Raises:
            EOFError: the file ends within a part.
            OSError: it cannot be read.
            RemoteError: a server cannot be reached.
        """
        with _opened(self.source) as file:
            for time, part in zip(self.times, self.parts, strict=False):
                file.seek(part.offset)
                content = file.read(part.size)
                if len(content) < part.size:
                    raise EOFError(0, "", _name(self.source))
                picture = _still_picture(content, part)
                packet = Packet(len(picture))
                packet.update(picture)
                packet.pts = packet.dts = time
                packet.duration = part.duration
                packet.is_keyframe = time == 0
                yield packet
        yield Packet()

    def frames(self, pictures: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        """Yields the canvas after each part, RGBA, given the pictures of all parts in order.

        Raises:
            VideoError: a picture is not of the size that the file says, or not on the canvas.
        """
        reformatter = VideoReformatter()
        canvas = np.zeros((self.height, self.width, 4), np.uint8)
        for part, picture in zip(self.parts, pictures, strict=False):
            if not picture.format.is_rgb:
                picture.colorspace = Colorspace.ITU601
            rgba = reformatter.reformat(picture, format="rgba", interpolation=INTERPOLATION)
            area = canvas[part.top : part.top + part.height, part.left : part.left + part.width]
            pixels = rgba.to_ndarray()
            if pixels.shape != area.shape:
                raise VideoError(
                    f"cannot read {_name(self.source)}: a picture in it has a wrong size"
                )
            area[:] = _over(pixels, area) if part.blends else pixels
            frame = VideoFrame.from_ndarray(canvas, format="rgba")
            frame.pts, frame.duration = picture.pts, part.duration
            yield frame
            if part.vanishes:
                area[:] = 0


def find_animation(source: Source | bytes) -> AnimatedWebp | None:
    """Returns the parts of an animated WebP file, or of its content; None for others and for pipes.

    At an address only files named .webp are looked at, because that costs a request.

    Raises:
        RemoteError: a server cannot be reached.
    """
    if not isinstance(source, bytes) and not _may_be_animation(source):
        return None
    try:
        with _opened(source) as file:
            first = file.tell()
            head = file.read(30)
            if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or len(head) < 30:
                return None
            if not head[20] & _ANIMATED:
                return None
            end = first + 8 + struct.unpack("<I", head[4:8])[0]
            parts = tuple(_parts(file, first + 12, end))
    except OSError:
        return None
    width, height = _number(head[24:27]) + 1, _number(head[27:30]) + 1
    if not parts or max(width, height) > _LARGEST:
        return None
    return AnimatedWebp(source, width, height, parts)


def _may_be_animation(source: Source) -> bool:
    part = isinstance(source, FilePart)
    if not part and is_pipe(source):
        return False  # it would be used up
    place = location(source.container if part else source)
    name = source.name if part else place.name
    return not isinstance(place, RemotePath) or name.lower().endswith(".webp")


def _opened(source: Source | bytes) -> BinaryIO:
    """Returns an open file at the first byte of an animation."""
    if isinstance(source, bytes):
        return BytesIO(source)
    remote = open_remote(source)
    if remote is not None:
        return BufferedReader(remote)
    path, first = (source.container, source.offset) if isinstance(source, FilePart) else (source, 0)
    file = open(path, "rb")  # noqa: SIM115 (closed by the caller)
    file.seek(first)
    return file


def _name(source: Source | bytes) -> str:
    return STANDARD_INPUT if isinstance(source, bytes) else str(source)


def _parts(file: BinaryIO, start: int, end: int) -> Iterator[Part]:
    for name, offset, size in _chunks(file, start, end):
        if name == b"ANMF" and size > 16:
            file.seek(offset)
            left, top, width, height, duration = (_number(file.read(3)) for _ in range(5))
            flags = file.read(1)
            if not flags:
                return
            yield Part(
                offset=offset + 16,
                size=size - 16,
                left=2 * left,
                top=2 * top,
                width=width + 1,
                height=height + 1,
                duration=_INSTEAD if duration <= _TOO_SHORT else duration,
                blends=not flags[0] & 2,
                vanishes=bool(flags[0] & 1),
            )


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name, first byte and number of bytes of each chunk."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(8)
        if len(header) < 8:
            return
        name, size = struct.unpack("<4sI", header)
        yield name, start + 8, size
        start += 8 + size + size % 2


def _still_picture(content: bytes, part: Part) -> bytes:
    """Returns a file of one picture, given the chunks of a part."""
    pictures = [
        content[offset - 8 : offset + size + size % 2]
        for name, offset, size in _chunks(BytesIO(content), 0, len(content))
        if name in _PICTURES
    ]
    sides = (part.width - 1).to_bytes(3, "little") + (part.height - 1).to_bytes(3, "little")
    flags = _HAS_ALPHA if len(pictures) > 1 else 0
    body = b"".join([b"WEBPVP8X", struct.pack("<II", 10, flags), sides, *pictures])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns one picture ``(H, W, 4)`` of 8 bit RGBA over another."""
    upper, lower = above.astype(np.float32), below.astype(np.float32)
    weight = upper[..., 3:] / 255
    rest = lower[..., 3:] / 255 * (1 - weight)
    alpha = weight + rest
    colour = (upper[..., :3] * weight + lower[..., :3] * rest) / np.maximum(alpha, 1e-6)
    return np.concatenate([colour, 255 * alpha], axis=2).round().astype(np.uint8)


def _number(octets: bytes) -> int:
    return int.from_bytes(octets, "little")
