"""Codes of languages, as a container takes them."""

from __future__ import annotations

import io
from functools import lru_cache

import av
from av import Packet

from wanvae.video.common import MP4_FAMILY

_NONE = "und"
# Two codes of one language: QuickTime knows one of them.
_SAME = (
    *(("deu", "ger"), ("nld", "dut"), ("swe", "sve"), ("nob", "nor"), ("ell", "gre")),
    *(("isl", "ice"), ("zho", "chi"), ("fra", "fre"), ("ces", "cze"), ("ron", "rum")),
)


def language_for(container: str, language: str) -> str | None:
    """Returns the code that a container keeps for a language; None if it keeps none.

    Args:
        container: FFmpeg's name.
        language: a code, such as "deu", which has other names.
    """
    others = [code for pair in _SAME if language in pair for code in pair]
    return next((code for code in (language, *others) if _is_kept(container, code)), None)


@lru_cache
def _is_kept(container: str, language: str) -> bool:
    """Returns whether a language is read back from a file."""
    if container not in MP4_FAMILY or language == _NONE:
        return True
    trial = io.BytesIO()
    with av.open(trial, "w", format=container) as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        stream.metadata["language"] = language
        silence = Packet(bytes(2))
        silence.stream, silence.pts, silence.dts = stream, 0, 0
        file.mux(silence)
    trial.seek(0)
    with av.open(trial) as file:
        return file.streams[0].metadata.get("language") == language
