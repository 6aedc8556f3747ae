"""The frames of packets that can be relied on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile

import av
from av import Packet
from av.error import FFmpegError

from wanvae.video.common import reason
from wanvae.video.reading.packets import PacketSource, is_hidden

_CORRUPT = "a frame cannot be decoded whole"
# After a packet with an error of transmission, so many packets tell whether others are missing.
_PACKETS_TO_SEE = 3
# So many packets in a row without a frame are no quirk, such as the second field of a frame.
_MOST_WITHHELD = 1


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
        self._withheld = Withheld()

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
        elif self._withheld.come_last():
            self.damage = _CORRUPT
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
        self._withheld.expect(packet)
        try:
            return _pictures(self._source.decoder.decode(packet if packet.size else None))
        except FFmpegError as error:
            if not self._begun and packet.size:
                self._failure = reason(error)
                return []
            self.damage = reason(error)
            # Some threads have finished frames that follow the one that failed.
            self._withheld.allowed = 0
            return self._finish() if self._withheld.is_known else []

    def _finish(self) -> list[av.VideoFrame]:
        """The frames that are still in the decoder."""
        with suppress(FFmpegError):
            return _pictures(self._source.decoder.decode(None))
        return []

    def _good(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            time, key = self.timestamp(frame), self._key
            leading = time is not None and key is not None and time < key
            broken = self._withheld.come_before(frame) or frame.is_corrupt
            if broken and self._begun:
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


def _pictures(frames: list) -> list[av.VideoFrame]:
    return [frame for frame in frames if isinstance(frame, av.VideoFrame)]


class Withheld:
    """Finds frames that the decoder passes over without an error, because they need missing ones.

    Frames that are shown before the keyframe that precedes them in the file may be passed over:
    where recordings are joined, they need frames of another recording. So may single frames, which
    are also the second fields of frames.

    Attributes:
        allowed: how many frames in a row may be passed over.
        is_known: whether packets have the times of their frames. Nothing is found elsewhere.
    """

    def __init__(self) -> None:
        self.allowed = _MOST_WITHHELD
        self.is_known = True
        # For the time of each packet whose frame is not there yet, whether it may be passed over.
        self._due: dict[int, bool] = {}
        self._doubtful: list[int] = []
        self._key: int | None = None
        self._last: int | None = None

    def expect(self, packet: Packet) -> None:
        """Notes a packet that the decoder is given."""
        if packet.pts is None or is_hidden(packet):
            return
        if packet.is_keyframe:
            self._key = packet.pts
        self._due[packet.pts] = self._key is None or packet.pts < self._key

    def come_before(self, frame: av.VideoFrame) -> bool:
        """Whether frames are missing between the last frame and this one."""
        time, last = frame.pts, self._last
        self.is_known = self.is_known and time is not None and time in self._due
        if not self.is_known or time is None:
            return False
        self._last = time
        before = list(takewhile(lambda due: due != time, self._due))  # in the order of packets
        missing = [due for due in before if self._is_missed(due, last, time)]
        if last is not None and time > last:
            missing += self._doubtful
        # Packets after this one whose frames come next after all, if this time is far off.
        missed = [due for due in self._due if self._is_missed(due, last, time)]
        self._doubtful = [due for due in missed if due not in missing]
        for due in {time, *missing, *(due for due in before if due < time)}:
            self._due.pop(due, None)
        return len(missing) > self.allowed

    def _is_missed(self, due: int, last: int | None, time: int) -> bool:
        """Whether a frame that must be shown has its time between two others."""
        return last is not None and last < due < time and not self._due[due]

    def come_last(self) -> bool:
        """Whether frames are missing after the last frame, at the end of the packets."""
        last = self._last
        if not self.is_known or last is None:
            return False
        later = sum(due > last and not optional for due, optional in self._due.items())
        return later + len(self._doubtful) > self.allowed
