"""Image files that are one video: numbered ones, those of a folder, those that a glob names."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePath

from av import Packet, VideoFrame

from wanvae.engine.files import named_by
from wanvae.video.common import FilePart, Source, VideoError, is_pipe, one_line_errors
from wanvae.video.reading.numbered import find_numbered

_IMAGES = """
    .bmp .dpx .exr .hdr .j2k .jfif .jp2 .jpeg .jpg .jxl .pam .pbm .pcx .pfm .pgm .png .ppm .qoi .sgi
    .tga .tif .tiff .webp
"""
# Suffixes of still images. Each file is one packet for its decoder.
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
# Frames per second where nothing tells.
DEFAULT_RATE = Fraction(25)
# Suffixes of one kind of image.
_SAME = {".jpeg": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}


@dataclass(frozen=True)
class ImageSequence:
    """Image files in the order in which they are shown.

    Attributes:
        paths: the files.
        rate: frames per second.
        gap: says which images are not read, because a number is missing; None if all are read.
        choice: says which files are taken, where people do not name each; None where they do.
    """

    paths: tuple[str, ...]
    rate: Fraction
    gap: str | None = None
    choice: str | None = None

    @property
    def length(self) -> int:
        """How many frames there are."""
        return len(self.paths)

    @property
    def tick(self) -> Fraction:
        """Seconds of one unit of time."""
        return 1 / self.rate

    @property
    def ticks(self) -> int:
        """How long it is, in units of time."""
        return self.length

    def packets(self, start: int = 0) -> Iterator[Packet]:
        """Yields the files from the one that is shown at ``start``, in ticks.

        The last packet is empty.

        Raises:
            VideoError: a file cannot be read.
        """
        for index, path in enumerate(self.paths[start:], start):
            with one_line_errors("read", path), open(path, "rb") as file:
                content = file.read()
            if not content:
                raise VideoError(f"cannot read {path}: it is empty")
            # Packet(content) would not copy it. A thread of the decoder would then give it back to
            # Python, and wait for a lock that the end of the decoder, waiting for threads, holds.
            packet = Packet(len(content))
            packet.update(content)
            packet.pts = packet.dts = index
            packet.duration = 1
            packet.is_keyframe = True
            yield packet
        yield Packet()

    def frames(self, pictures: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Returns what is shown, given the pictures of all files in order."""
        return pictures


def find_sequence(source: Source, rate: Fraction) -> ImageSequence | None:
    """Returns the images that a pattern, a folder or a glob names; None for a single file.

    A name that exists is never a glob. ``rate`` is in frames per second.

    Raises:
        VideoError: a folder or a glob names no images, or images of several kinds.
    """
    if isinstance(source, FilePart) or is_pipe(source):
        return None
    path = os.fspath(source)
    if "://" in path:  # "?" in the address of a server is no glob
        return None
    if os.path.isdir(path):
        return _images_of_folder(path, rate)
    if os.path.exists(path):
        return None
    if (numbered := find_numbered(path)) is not None:
        return ImageSequence(numbered.paths, rate, gap=numbered.gap)
    return _images_of_glob(path, rate) if glob.has_magic(path) else None


def natural_order(path: str) -> tuple[list[str | int], str]:
    """Returns a key that sorts "frame9" before "frame10"."""
    # Texts and numbers alternate, and the first is a text, so keys can be compared.
    parts = re.split(r"(\d+)", path, flags=re.ASCII)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path


def _images_of_folder(folder: str, rate: Fraction) -> ImageSequence:
    """Returns the images of a folder, without those of folders in it."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    paths = [os.path.join(folder, name) for name in names if _suffix(name) in IMAGE_SUFFIXES]
    images = [path for path in paths if os.path.isfile(path)]
    if not images:
        raise VideoError(
            f"cannot read {folder}: it is a folder without images that make a video "
            f"({' '.join(sorted(IMAGE_SUFFIXES))}); give a video, an image, or another folder"
        )
    return _sequence(folder, images, rate, others=len(names) - len(images))


def _images_of_glob(pattern: str, rate: Fraction) -> ImageSequence:
    """Returns the images that a glob names."""
    files = list(filter(os.path.isfile, named_by(pattern)))
    if not files:
        raise VideoError(f"cannot read {pattern}: no file has such a name")
    images = [path for path in files if _suffix(path) in IMAGE_SUFFIXES]
    if not images:
        raise VideoError(
            f"cannot read {pattern}: {min(files)} is no image; a pattern names the images of one "
            "video, so give a video by its own name"
        )
    return _sequence(pattern, images, rate, others=len(files) - len(images))


def _sequence(source: str, images: Sequence[str], rate: Fraction, others: int) -> ImageSequence:
    """Returns images in order. ``others`` counts what is beside them and is left out."""
    kinds = Counter(_SAME.get(suffix, suffix) for suffix in map(_suffix, images))
    if len(kinds) > 1:
        found = " and ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
        folder = source if os.path.isdir(source) else os.path.dirname(source)
        example = os.path.join(folder, f"*{kinds.most_common(1)[0][0]}")
        raise VideoError(
            f"cannot read {source}: it holds images of several kinds ({found}); name one kind, "
            f"like {example}"
        )
    paths = tuple(sorted(images, key=natural_order))
    first, last = PurePath(paths[0]).name, PurePath(paths[-1]).name
    choice = f"its {len(paths)} images are one video, from {first} to {last}"
    if len(paths) == 1:
        choice = f"{first} is its only image"
    if others:
        choice += f"; what else it holds is left out ({others})"
    return ImageSequence(paths, rate, choice=choice)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()
