"""The formats of the files that are written: one table of containers, codecs, bits and alpha."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
from av.codec.codec import UnknownCodecError

from wanvae.engine.files import is_numbered
from wanvae.video.common import unwritable
from wanvae.video.writing.encoders import (
    ANIMATED_WEBP,
    APNG,
    AV1,
    FFV1,
    GIF,
    H264,
    H265,
    JPEG,
    PNG,
    PRORES,
    RAW_RGB,
    RAW_YUV,
    TIFF,
    VP9,
    WEBP,
    Pixels,
    VideoCodec,
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """The kind of a file.

    Attributes:
        name: FFmpeg's name of it.
        codecs: what it holds. The first that can do what is asked for is the default.
        options: options of the container.
        tags: what the container calls a codec, by the name of the codec, where FFmpeg calls it
            something that fewer players know.
        tags_colour: whether it says which matrix, range and primaries colours have.
        is_image: whether each frame is a file of its own.
        is_array: whether it is a NumPy array.
        keeps_times: whether each frame has a time of its own.
        tick: the unit of its times, in seconds; None if a unit may be chosen.
        stored_tick: the unit that it rounds times to, if it is not the unit that may be chosen.
        least_ticks: the shortest time from frame to frame that players show as it is.
        streams: whether it can be written to a pipe.
    """

    name: str
    codecs: tuple[VideoCodec, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    tags_colour: bool = False
    is_image: bool = False
    is_array: bool = False
    keeps_times: bool = True
    tick: Fraction | None = None
    stored_tick: Fraction | None = None
    least_ticks: int = 1
    streams: bool = False


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write frames.

    Attributes:
        suffix: of the name of the file.
        container, codec, pixels: how the file is written.
    """

    suffix: str
    container: Container
    codec: VideoCodec
    pixels: Pixels

    def pixel_format(self, width: int, height: int, *, alpha: bool) -> str:
        """Returns the pixel format for frames of this size. The format must be able to hold it."""
        chosen = self.pixels.alpha if alpha else self.pixels.colour
        assert chosen is not None
        odd = width % 2 or height % 2
        return self.pixels.odd if odd and self.pixels.odd is not None and not alpha else chosen

    def is_available(self) -> bool:
        """Returns whether the FFmpeg of the installed PyAV has the encoder with these pixels."""
        try:
            encoder = av.Codec(self.codec.encoder, "w")
        except UnknownCodecError:
            return False
        known = {format.name for format in encoder.video_formats or ()}
        return not known or self.pixels.colour in known


# What Apple's players know H.265 by.
_HVC1 = {"h265": "hvc1"}
_MP4 = Container(
    name="mp4",
    codecs=(H264, H265, AV1),
    # FFmpeg rounds the length of a video to milliseconds unless it is told.
    options={"movie_timescale": "90000"},
    tags=_HVC1,
    tags_colour=True,
)
_MOV = replace(_MP4, name="mov", codecs=(H264, H265, PRORES))
_MATROSKA = Container(
    name="matroska",
    codecs=(H264, H265, AV1, FFV1, PRORES),
    tags_colour=True,
    stored_tick=Fraction(1, 1000),
    streams=True,
)
_WEBM = Container(name="webm", codecs=(VP9, AV1), tags_colour=True, stored_tick=Fraction(1, 1000))
_FOREVER = "0"
_GIF_FILE = Container(
    name="gif",
    codecs=(GIF,),
    options={"loop": _FOREVER},
    tick=Fraction(1, 100),
    least_ticks=2,  # players show anything shorter for a tenth of a second
)
_APNG_FILE = Container(name="apng", codecs=(APNG,), options={"plays": _FOREVER})
_WEBP_FILE = Container(
    name="webp", codecs=(ANIMATED_WEBP,), options={"loop": _FOREVER}, tick=Fraction(1, 1000)
)
_PNG_IMAGE, _TIFF_IMAGE, _JPEG_IMAGE, _WEBP_IMAGE = (
    Container(name="image2", codecs=(codec,), is_image=True, keeps_times=False)
    for codec in (PNG, TIFF, JPEG, WEBP)
)
_Y4M = Container(
    name="yuv4mpegpipe",
    codecs=(RAW_YUV,),
    options={"strict": "-1"},  # FFmpeg takes more than 8 bits for an extension of its own
    keeps_times=False,
    streams=True,
)
_NPY = Container(name="rawvideo", codecs=(RAW_RGB,), is_array=True, keeps_times=False)

_FILES: dict[str, Container] = {
    ".mp4": _MP4,
    ".mov": _MOV,
    ".mkv": _MATROSKA,
    ".webm": _WEBM,
    ".gif": _GIF_FILE,
    ".apng": _APNG_FILE,
    ".webp": _WEBP_FILE,
    ".png": _PNG_IMAGE,
    ".tiff": _TIFF_IMAGE,
    ".tif": _TIFF_IMAGE,
    ".jpg": _JPEG_IMAGE,
    ".jpeg": _JPEG_IMAGE,
    ".y4m": _Y4M,
    ".npy": _NPY,
}
_IMAGES = {suffix: container for suffix, container in _FILES.items() if container.is_image}
_NUMBERED = _IMAGES | {".webp": _WEBP_IMAGE}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is asked for of a written file, beside its name.

    Attributes:
        codec: the name of a codec; None takes the first that can do the rest.
        bits: of each sample; None takes the default of the codec.
        crf: quality, from 0 (best) to 51, for codecs that have one.
        container: the suffix, without its dot, of what is written to a pipe; None for files.
    """

    codec: str | None = None
    bits: int | None = None
    crf: int = 18
    container: str | None = None


def formats(*, numbered: bool = False) -> Iterator[Format]:
    """Yields all formats, for files or for numbered images, the default of each suffix first."""
    for suffix, container in (_NUMBERED if numbered else _FILES).items():
        for codec in container.codecs:
            for pixels in codec.depths:
                yield Format(suffix=suffix, container=container, codec=codec, pixels=pixels)


def suffixes(*, alpha: bool = False) -> list[str]:
    """Returns the suffixes of all files, or of those that hold alpha."""
    able = (one.suffix for one in formats() if not alpha or one.pixels.alpha is not None)
    return list(dict.fromkeys(able))


def codec_names() -> list[str]:
    """Returns the names of the codecs that people can choose between."""
    several = (one.codecs for one in _FILES.values() if len(one.codecs) > 1)
    return list(dict.fromkeys(codec.name for codecs in several for codec in codecs))


def pipe_containers() -> list[str]:
    """Returns the names of what can be written to a pipe. The first is the default."""
    return [suffix[1:] for suffix, container in reversed(_FILES.items()) if container.streams]


def choose_format(
    path: Path | str, suffix: str, encoding: Encoding, *, alpha: bool | None
) -> Format:
    """Returns the format of a file.

    Args:
        path: the file, or the name of a pipe.
        suffix: of the file, or what a pipe gets.
        encoding: what is asked for.
        alpha: whether frames have alpha; None if it is not known yet.

    Raises:
        VideoError: nothing does what is asked for. The message says what is possible.
    """
    numbered = isinstance(path, Path) and is_numbered(path.name)
    known = list(formats(numbered=numbered and suffix.lower() in _NUMBERED))
    if not isinstance(path, Path):
        known = [one for one in known if one.container.streams]
    found = [one for one in known if one.suffix == suffix.lower()]
    if not found:
        possible = [one for one in known if not alpha or one.pixels.alpha is not None]
        raise unwritable(path, f"its suffix is {suffix!r}; use one of {_suffixes(possible)}")
    asked: list[tuple[str, Callable[[Format], bool]]] = []
    if encoding.codec is not None:
        asked.append((encoding.codec, lambda one: one.codec.name == encoding.codec))
    if encoding.bits is not None:
        asked.append((f"{encoding.bits} bits", lambda one: one.pixels.bits == encoding.bits))
    if alpha:
        asked.append(("alpha", lambda one: one.pixels.alpha is not None))
    subject = suffix.lower()
    for name, fits in asked:
        left = list(filter(fits, found))
        if not left:
            able = [one for one in known if all(fits(one) for _, fits in asked)]
            able = able or list(filter(fits, known))
            raise unwritable(path, f"{subject} holds no {name}; {_advice(name, found, able)}")
        found, subject = left, f"{subject} with {name}"
    available = next((one for one in found if one.is_available()), None)
    if available is None:
        missing = found[0]
        raise unwritable(
            path,
            f"the FFmpeg of PyAV {av.__version__} has no encoder {missing.codec.encoder} for "
            f"{missing.pixels.bits} bits, which {missing.codec.name} needs; install another build "
            "of PyAV or name another --codec",
        )
    return available


def check_size(path: Path | str, format: Format, width: int, height: int) -> None:
    """Raises VideoError if the encoder of a format takes no frames of this size."""
    smallest = format.codec.smallest
    if min(width, height) < smallest:
        raise unwritable(
            path,
            f"frames are {width}x{height} pixels, and {format.codec.name} needs sides of "
            f"{smallest} pixels or more; use another codec, such as h264 or vp9",
        )


def _advice(name: str, found: Iterable[Format], able: Sequence[Format]) -> str:
    """Says what to use instead of formats that cannot do what is asked for.

    Args:
        name: what the formats cannot do.
        found: these formats.
        able: the formats that can do all that is asked for, or this at least.
    """
    advice = f"use one of {_suffixes(able)}" if able else "no file holds all of this"
    if name == "alpha":
        return f"{advice}, or write without alpha"
    if name.endswith("bits"):
        return f"it holds {_either(f'{one.pixels.bits}' for one in found)}; {advice}"
    return f"it holds {_either(one.codec.name for one in found)}; {advice}"


def _either(words: Iterable[str]) -> str:
    """Returns each word once, as "a or b"."""
    return " or ".join(dict.fromkeys(words))


def _suffixes(some: Sequence[Format]) -> str:
    """Returns the suffixes of formats, with the codec where it is not the default."""
    named = {}
    for one in some:
        default = one.codec is one.container.codecs[0]
        named.setdefault(one.suffix, one.suffix if default else f"{one.suffix} ({one.codec.name})")
    return " ".join(named.values())
