"""The formats of the files that are written: containers, encoders and pixel formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class Format:
    """How frames become a file.

    Attributes:
        container: FFmpeg's name of the container.
        encoder: FFmpeg's name of the encoder.
        pixels: the pixel format for colour alone; None if the format always has alpha.
        alpha_pixels: the pixel format for colour and alpha; None if the format has no alpha.
        options: options of the encoder.
        container_options: options of the container.
        is_image: whether each frame is a file of its own.
        has_quality: whether the encoder takes ``crf``.
    """

    container: str
    encoder: str
    pixels: str | None = None
    alpha_pixels: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)
    is_image: bool = False
    has_quality: bool = False

    def pixel_format(self, width: int, height: int, *, alpha: bool) -> str:
        """Returns the pixel format for frames of this size. The format must be able to hold it."""
        chosen = self.alpha_pixels if alpha else self.pixels
        assert chosen is not None
        odd = width % 2 or height % 2
        # H.264 of 4:2:0 cannot hold a side that is odd.
        return "yuv444p" if odd and self.encoder == "libx264" else chosen


# swscale centres chroma samples; encoders take them as left-sited unless they are told.
_CENTERED = {"chroma_sample_location": "center"}
_H264 = Format(
    container="mp4", encoder="libx264", pixels="yuv420p", options=_CENTERED, has_quality=True
)
_VP9 = Format(
    container="webm",
    encoder="libvpx-vp9",
    pixels="yuv420p",
    alpha_pixels="yuva420p",
    # Quality alone decides about the size only where the rate of bits is 0.
    options=_CENTERED | {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    has_quality=True,
)
_PRORES_4444 = Format(
    container="mov",
    encoder="prores_ks",
    alpha_pixels="yuva444p10le",
    options={"profile": "4444", "alpha_bits": "16"},
)
_APNG = Format(
    container="apng",
    encoder="apng",
    pixels="rgb24",
    alpha_pixels="rgba",
    container_options={"plays": "0"},  # for ever
)
_PNG = Format(container="image2", encoder="png", pixels="rgb24", alpha_pixels="rgba", is_image=True)
_JPEG = Format(
    container="image2",
    encoder="mjpeg",
    pixels="yuvj444p",
    options={"qmin": "1", "qmax": "1"},  # the finest quantizer
    is_image=True,
)
_WEBP = Format(
    container="image2",
    encoder="libwebp",
    pixels="bgra",
    alpha_pixels="bgra",
    options={"lossless": "1"},
    is_image=True,
)
_FORMATS: Mapping[str, tuple[Format, ...]] = {
    ".mp4": (_H264,),
    ".mov": (replace(_H264, container="mov"), _PRORES_4444),
    ".mkv": (replace(_H264, container="matroska"),),
    ".webm": (_VP9,),
    ".apng": (_APNG,),
    ".png": (_PNG,),
    ".jpg": (_JPEG,),
    ".jpeg": (_JPEG,),
    ".webp": (_WEBP,),
}


def find_format(suffix: str, *, alpha: bool) -> Format | None:
    """Returns the format of files with a suffix like ".mp4"; None if there is none."""
    for known in _FORMATS.get(suffix.lower(), ()):
        if (known.alpha_pixels if alpha else known.pixels) is not None:
            return known
    return None


def known_suffixes(*, alpha: bool) -> list[str]:
    """Returns the suffixes of all formats that hold alpha, or that hold colour alone."""
    return [suffix for suffix in _FORMATS if find_format(suffix, alpha=alpha) is not None]
