"""The codecs of the files that are written, and their encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The pixel formats of a codec for one number of bits.

    Attributes:
        bits: of each sample of colour.
        colour: the pixel format for colour alone.
        odd: the pixel format for colour where a side is odd; None if ``colour`` can have one.
        alpha: the pixel format for colour and alpha; None if the codec has no alpha.
    """

    bits: int
    colour: str
    odd: str | None = None
    alpha: str | None = None


@dataclass(frozen=True, kw_only=True)
class VideoCodec:
    """How pictures are compressed.

    Attributes:
        name: as people write it.
        encoder: FFmpeg's name of the encoder.
        depths: what it writes for each number of bits. The first is the default.
        options: options of the encoder.
        has_quality: whether the encoder takes ``crf``.
        smallest: the shortest side that the encoder takes, in pixels.
        palette: whether each picture has a palette of its own.
        delay: frames after which the encoder knows decoding times. Those of fewer frames are noise.
        reorders: whether frames may need later frames, and so are stored after them.
    """

    name: str
    encoder: str
    depths: tuple[Pixels, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    has_quality: bool = False
    smallest: int = 1
    palette: bool = False
    delay: int = 0
    reorders: bool = False


# swscale centres chroma samples; encoders take them as left-sited unless they are told.
_CENTERED = {"chroma_sample_location": "center"}
H264 = VideoCodec(
    name="h264",
    encoder="libx264",
    # 4:2:0 cannot hold a side that is odd in H.264 and H.265.
    depths=(
        Pixels(bits=8, colour="yuv420p", odd="yuv444p"),
        Pixels(bits=10, colour="yuv420p10le", odd="yuv444p10le"),
    ),
    options=_CENTERED,
    has_quality=True,
    reorders=True,
)
H265 = VideoCodec(
    name="h265",
    encoder="libx265",
    depths=H264.depths,
    options=_CENTERED | {"x265-params": "log-level=none"},
    has_quality=True,
    # x265 refuses sides under 16, and overwrites memory of its own in some sizes under 64.
    smallest=64,
    delay=2,
    reorders=True,
)
AV1 = VideoCodec(
    name="av1",
    encoder="libsvtav1",
    depths=(Pixels(bits=8, colour="yuv420p"), Pixels(bits=10, colour="yuv420p10le")),
    # Faster presets than 6 leave out small changes of colour, also at crf 1. AV1 has no name for
    # centred chroma samples.
    options={"preset": "6"},
    has_quality=True,
    smallest=4,
)
VP9 = VideoCodec(
    name="vp9",
    encoder="libvpx-vp9",
    depths=(Pixels(bits=8, colour="yuv420p", alpha="yuva420p"),),
    # Quality alone decides about the size only where the rate of bits is 0.
    options=_CENTERED | {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    has_quality=True,
)
FFV1 = VideoCodec(
    name="ffv1",
    encoder="ffv1",
    depths=(
        Pixels(bits=8, colour="bgr0", alpha="bgra"),
        Pixels(bits=10, colour="gbrp10le", alpha="gbrap10le"),
        Pixels(bits=16, colour="gbrp16le", alpha="gbrap16le"),
    ),
    # Version 3 has checksums.
    options={"level": "3", "slicecrc": "1", "g": "1"},
)
PRORES = VideoCodec(
    name="prores",
    encoder="prores_ks",
    depths=(Pixels(bits=10, colour="yuv444p10le", alpha="yuva444p10le"),),
    options={"profile": "4444", "alpha_bits": "16"},
)
GIF = VideoCodec(name="gif", encoder="gif", depths=(Pixels(bits=8, colour="pal8"),), palette=True)
APNG = VideoCodec(
    name="apng",
    encoder="apng",
    depths=(
        Pixels(bits=8, colour="rgb24", alpha="rgba"),
        Pixels(bits=16, colour="rgb48be", alpha="rgba64be"),
    ),
)
PNG = VideoCodec(name="png", encoder="png", depths=APNG.depths)
TIFF = VideoCodec(
    name="tiff",
    encoder="tiff",
    depths=(
        Pixels(bits=8, colour="rgb24", alpha="rgba"),
        Pixels(bits=16, colour="rgb48le", alpha="rgba64le"),
    ),
    options={"compression_algo": "deflate"},
)
JPEG = VideoCodec(
    name="jpeg",
    encoder="mjpeg",
    depths=(Pixels(bits=8, colour="yuvj444p"),),
    options={"qmin": "1", "qmax": "1"},  # the finest quantizer
)
WEBP = VideoCodec(
    name="webp",
    encoder="libwebp",
    depths=(Pixels(bits=8, colour="bgra", alpha="bgra"),),
    options={"lossless": "1"},
)
ANIMATED_WEBP = VideoCodec(
    name="webp", encoder="libwebp_anim", depths=WEBP.depths, options=WEBP.options
)
RAW_RGB = VideoCodec(name="raw", encoder="rawvideo", depths=TIFF.depths)
RAW_YUV = VideoCodec(
    name="raw",
    encoder="rawvideo",
    depths=(Pixels(bits=8, colour="yuv444p"), Pixels(bits=10, colour="yuv444p10le")),
)
