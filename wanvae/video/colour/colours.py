"""What the tags of a frame say of its colours, and the conversion of all colours to one kind.

Frames are read as RGB of BT.709, shown as BT.1886 shows it. All the rest becomes that: light is
linear, primaries are converted, HDR is mapped to SDR, and what is outside of BT.709 is clipped.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, Colorspace
from torch import Tensor

from wanvae.video.colour.primaries import BT709, BT2020, PRIMARIES, Primaries, conversion
from wanvae.video.colour.side_data import side_data_of
from wanvae.video.colour.tone_mapping import (
    HIGHEST_PEAK,
    HLG,
    PQ,
    SDR,
    TRANSFERS,
    USUAL_PEAK,
    WHITE,
    Transfer,
    displayed_hlg,
    map_tones,
    to_sdr,
)

_HDR = (PQ, HLG)
# Sides from which on untagged video is taken as high definition, as players do.
_HIGH_WIDTH, _HIGH_HEIGHT = 1280, 720
# FFmpeg's codes for a matrix that is not one of YUV: "RGB", "unspecified" and "reserved".
_UNTAGGED_MATRICES = (0, 2, 3)
# Matrices that FFmpeg does not convert.
_UNKNOWN_MATRICES: Mapping[int, str] = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "of its primaries",
    13: "of its primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-R",
    17: "YCgCo-R",
}
# Primaries of many more colours than BT.709 has. People are told of these.
_WIDE = (9, 11, 12)


@dataclass(frozen=True)
class Colours:
    """How the colours of a frame differ from SDR of BT.709.

    Attributes:
        primaries: what red, green and blue are.
        transfer: how code values stand for light.
        peak: the brightest light of HDR, in cd/m2.
        is_wide: whether the primaries span many more colours than BT.709.
    """

    primaries: Primaries
    transfer: Transfer
    peak: float
    is_wide: bool

    @property
    def is_converted(self) -> bool:
        """Whether anything but the matrix of YUV is converted."""
        return self.primaries != BT709 or self.transfer is not SDR

    @property
    def is_hdr(self) -> bool:
        """Whether light is brighter than the white of paper."""
        return self.transfer in _HDR

    @property
    def name(self) -> str | None:
        """Why the colours would not look right as SDR: "PQ", "HLG", "BT.2020"; None for SDR."""
        if self.is_hdr:
            return self.transfer.name
        return self.primaries.name if self.is_wide else None

    @property
    def conversion(self) -> str:
        """A sentence that says how colours with a ``name`` are converted."""
        if self.is_hdr:
            return (
                f"it is HDR ({self.transfer.name}, up to {self.peak:g} cd/m2), and is converted to "
                "SDR by tone mapping; highlights are darker"
            )
        return (
            f"it has wide colours ({self.primaries.name}), and is converted to BT.709; colours "
            "outside of it are clipped"
        )

    def convert(self, levels: np.ndarray, black: int, white: int) -> Tensor:
        """Returns RGB ``(3, H, W)`` in [0, 1] of integer samples ``(H, W, 3)`` of 16 bit.

        Args:
            levels: code values.
            black, white: the samples of code values 0 and 1.
        """
        light = torch.from_numpy(_light(self.transfer, black, white)[levels]).permute(2, 0, 1)
        if self.transfer is HLG:
            light = displayed_hlg(light)
        light = torch.tensordot(_to_bt709(self.primaries), light, dims=1)
        if self.is_hdr:
            light = map_tones(light, self.peak / WHITE)
        return to_sdr(light)


@lru_cache(maxsize=4)
def _to_bt709(primaries: Primaries) -> Tensor:
    """The matrix ``(3, 3)`` of linear RGB."""
    return torch.from_numpy(conversion(primaries, BT709)).float()


@lru_cache(maxsize=4)
def _light(transfer: Transfer, black: int, white: int) -> np.ndarray:
    """The light of every sample of 16 bit."""
    code = (np.arange(65536) - black) / (white - black)
    return transfer.linear(code.clip(0, 1)).astype(np.float32)


def colours_of(frame: av.VideoFrame, peak: float = USUAL_PEAK) -> Colours:
    """Returns the colours of a frame, as its tags say.

    A frame that names no primaries has the primaries of BT.2020 if it is HDR, or YUV with the
    matrix of BT.2020. Otherwise it has the primaries of BT.709.

    Args:
        peak: the brightest light of PQ, in cd/m2. For HLG it is 1000.
    """
    if frame.format.name.startswith("xyz"):  # which FFmpeg converts as a whole
        return Colours(BT709, SDR, USUAL_PEAK, False)
    transfer = TRANSFERS.get(frame.color_trc, SDR)
    number = frame.color_primaries
    primaries = PRIMARIES.get(number)
    if primaries is None:
        wide = transfer in _HDR or _says_bt2020(frame)
        number, primaries = (9, BT2020) if wide else (1, BT709)
    return Colours(primaries, transfer, USUAL_PEAK if transfer is HLG else peak, number in _WIDE)


def peak_of(frame: av.VideoFrame) -> float:
    """Returns the brightest light of a video in PQ, in cd/m2, as the metadata of a frame says.

    The metadata tell the brightest light of the content (MaxCLL), or else the brightest light of
    the display that the content was mastered on. Without both it is 1000.
    """
    peak = 0.0
    display = side_data_of(frame, "MASTERING_DISPLAY_METADATA")
    if display is not None:
        # Two numbers for each of 10 fractions, the last the brightest, and whether each is known.
        *_, numerator, denominator, _, has_luminance = struct.unpack_from("=22i", display)
        peak = numerator / denominator if has_luminance and denominator else 0.0
    content = side_data_of(frame, "CONTENT_LIGHT_LEVEL")
    if content is not None:
        peak = float(struct.unpack_from("=I", content)[0]) or peak
    return min(max(peak, WHITE), HIGHEST_PEAK) if peak else USUAL_PEAK


def assume_matrix(frame: av.VideoFrame, *, is_of_images: bool) -> None:
    """Tags a frame of YUV without a matrix.

    The matrix is the one that belongs to its primaries or to HDR. Without these it is by custom
    BT.709 when high definition and BT.601 below, as players take it; the still image formats are
    defined with BT.601.
    """
    if frame.format.is_rgb or frame.colorspace not in _UNTAGGED_MATRICES:
        return
    primaries = frame.color_primaries
    if primaries == ColorPrimaries.BT2020 or TRANSFERS.get(frame.color_trc) in _HDR:
        frame.colorspace = Colorspace.BT2020
    elif is_of_images or primaries in (ColorPrimaries.BT470BG, ColorPrimaries.SMPTE170M):
        frame.colorspace = Colorspace.ITU601
    else:
        high = frame.height >= _HIGH_HEIGHT or frame.width >= _HIGH_WIDTH
        bt709 = high or primaries == ColorPrimaries.BT709
        frame.colorspace = Colorspace.ITU709 if bt709 else Colorspace.ITU601


def unknown_matrix(frame: av.VideoFrame) -> str | None:
    """Returns the name of the matrix of a frame if FFmpeg cannot convert it."""
    return None if frame.format.is_rgb else _UNKNOWN_MATRICES.get(frame.colorspace)


def _says_bt2020(frame: av.VideoFrame) -> bool:
    return not frame.format.is_rgb and frame.colorspace == Colorspace.BT2020
