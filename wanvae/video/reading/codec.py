"""The decoder of a video: of those that FFmpeg has for it, the one that tells of most damage."""

from __future__ import annotations

import av
from av.codec.codec import UnknownCodecError
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

# Decoders that go on after errors without marking the frame, unless errors are to end them.
_LENIENT = ("mjpeg", "mjpegb", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "wmv1", "wmv2")
_ERRORS_END = {"err_detect": "crccheck+bitstream+buffer+explode"}
# Decoders of libraries that notice what FFmpeg's own decoders let pass.
_STRICTER = {"vp9": "libvpx-vp9"}
# Decoders of libraries that see alpha beside pictures, by the names of FFmpeg's own decoders,
# which do not.
OWN_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def has_alpha_beside(stream: VideoStream) -> bool:
    """Returns whether alpha is a second picture beside each picture, as in WebM."""
    return stream.codec_context.name in OWN_DECODERS and stream.metadata.get("alpha_mode") == "1"


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """Returns the decoder of a stream. It has the tags of the container, except for the rotation.

    Everything else comes out as from FFmpeg's own decoder, as long as nothing is damaged, and with
    alpha, which FFmpeg's own decoders may leave out. A device that decodes is left as it is.
    """
    own = stream.codec_context
    if own.is_hwaccel:
        return own
    own.thread_type = "AUTO"
    if own.name in _LENIENT:
        own.options = _ERRORS_END
    layout = own.format
    names = _STRICTER
    if has_alpha_beside(stream):
        names = OWN_DECODERS
    elif layout is None or any(part.bits > 8 for part in layout.components):
        return own  # builds of libvpx may be for 8 bits only
    try:
        stricter = av.CodecContext.create(names[own.name], "r")
    except (KeyError, UnknownCodecError):  # not every build of FFmpeg has the library
        return own
    assert isinstance(stricter, VideoCodecContext)
    stricter.thread_type = "AUTO"
    stricter.extradata = own.extradata
    stricter.width, stricter.height = own.width, own.height
    stricter.color_trc, stricter.color_primaries = own.color_trc, own.color_primaries
    return stricter
