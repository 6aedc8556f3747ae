"""The frames of packets that can be relied on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import av
from av import Packet
from av.error import FFmpegError

from wanvae.video.common import reason

if TYPE_CHECKING:
    from wanvae.video.packets import PacketSource

_CORRUPT = "a frame cannot be decoded whole"
# After a packet with an error of transmission, so many packets tell whether others are missing.
_PACKETS_TO_SEE = 3


class Decoder:
    """Iterates over the good frames of packets that begin at a keyframe.

    The first packet or frame that cannot be decoded ends it, after the frames that the decoder has
    finished by then. Frames that are shown before the keyframe may need frames before it; it is no
    damage if these cannot be decoded.

    Attributes:
        damage: why there are no more frames, if the end of the packets is not the reason.
        lost: why frames between the keyframe and the first good frame are missing, if any are.
    """

    def __init__(self, source: PacketSource, packets: Iterator[Packet]) -> None:
        self.damage: str | None = None
        self.lost: str | None = None
        self._source = source
        self._packets = packets
        self._key: int | None = None
        self._begun = False
        self._failure: str | None = None

    def timestamp(self, frame: av.VideoFrame) -> int | None:
        """When a frame is shown, in ticks; None if the file does not say."""
        return frame.pts if self._source.has_display_times else frame.dts

    def __iter__(self) -> Iterator[av.VideoFrame]:
        try:
            for packet in self._until_gap():
                if self._key is None and packet.is_keyframe:
                    self._key = self._source.shown(packet)
                yield from self._good(self._decode(packet))
                if self.damage is not None:
                    return
        except FFmpegError as error:  # of the container
            self.damage = reason(error)
        if self.damage is not None:
            yield from self._good(self._finish())
        if not self._begun:
            self.damage = self.damage or self._failure

    def _until_gap(self) -> Iterator[Packet]:
        """The packets, up to a packet with an error of transmission after which others are missing.

        Such an error alone is no damage: it is also noted where two whole recordings are joined.
        """
        held: list[Packet] = []
        for packet in self._packets:
            if not held and not packet.is_corrupt:
                yield packet
                continue
            held.append(packet)
            times = [each.dts for each in held[-2:] if each.dts is not None]
            if len(times) == 2 and times[1] - times[0] > 1.5 * self._source.period:
                self.damage = "packets are missing"
                return
            if len(held) > _PACKETS_TO_SEE:
                yield from held
                held = []
        yield from held

    def _decode(self, packet: Packet) -> list[av.VideoFrame]:
        try:
            return self._source.decode(packet)
        except FFmpegError as error:
            if not self._begun and packet.size:
                self._failure = reason(error)
                return []
            self.damage = reason(error)
            return self._finish()

    def _finish(self) -> list[av.VideoFrame]:
        """The frames that are still in the decoder."""
        with suppress(FFmpegError):
            return self._source.decode(None)
        return []

    def _good(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            time, key = self.timestamp(frame), self._key
            leading = time is not None and key is not None and time < key
            if frame.is_corrupt and self._begun:
                self.damage = self.damage or _CORRUPT
                return
            if frame.is_corrupt:
                self._failure = self._failure if leading else _CORRUPT
                continue
            if not leading and not self._begun:
                self._begun = True
                if time != key:
                    self.lost = self._failure
            yield frame
