"""How long frames are shown, in the packets that an encoder gives for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from av import Packet, VideoFrame
from av.video.frame import PictureType

# Pictures at the end that need no later one.
_IN_ORDER = 2


class LastPictures:
    """Holds pictures back until it is known which are the last.

    The last two are encoded as pictures that need earlier ones alone. So no picture is decoded
    after the one shown last, and the duration of the last packet is the duration of that picture.

    Args:
        reorders: whether the encoder has pictures that need later ones. Otherwise none is held.
    """

    def __init__(self, *, reorders: bool) -> None:
        self._most = _IN_ORDER if reorders else 0
        self._held: deque[VideoFrame] = deque()
        self._begun = False

    def push(self, picture: VideoFrame) -> Iterator[VideoFrame]:
        """Takes a picture, and yields those that are not the last."""
        self._held.append(picture)
        while len(self._held) > self._most:
            self._begun = True
            yield self._held.popleft()

    def finish(self) -> Iterator[VideoFrame]:
        """Yields the last pictures."""
        for picture in self._held:
            if self._begun:  # the first needs no other
                picture.pict_type = PictureType.P
            self._begun = True
            yield picture


class Ending:
    """Gives packets the durations of their frames, so that the last frame ends when it should.

    Encoders give all packets the duration of an average frame. Containers take the length of a
    video from the last packet, whose frame is shown last. MP4 adds up the steps of decoding times.
    Where frames need later frames and times vary, the sum is wrong, so the last packet is moved.

    All times are in ticks of the encoder.

    Args:
        step: the least step of times in the container. Shorter durations become 0 in it.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._shown: int | None = None  # when the newest frame is shown
        self._lengths: dict[int, int] = {}  # of frames whose packets are not there yet
        self._held: Packet | None = None
        self._before: int | None = None  # decoding time of the packet before the one that is held
        self._delay = 0  # of the first frame, from decoding it to showing it

    def show(self, time: int) -> None:
        """Notes that the next frame is shown from ``time`` on."""
        if self._shown in self._lengths:
            self._lengths[self._shown] = time - self._shown
        self._shown = time
        self._lengths[time] = self._step

    def pass_on(self, packets: list[Packet]) -> Iterator[Packet]:
        """Yields packets that can be written. The last one is held back."""
        for packet in packets:
            if packet.pts is None or packet.dts is None:
                yield packet
                continue
            if self._held is None:
                self._delay = packet.pts - packet.dts
            else:
                self._before = self._held.dts
                yield self._held
            packet.duration = self._lengths.pop(packet.pts, packet.duration)
            self._held = packet

    def finish(self, packets: list[Packet], end: int) -> Iterator[Packet]:
        """Yields the rest of the packets. The last frame is shown until ``end``."""
        if self._shown is not None:
            end = max(end, self._shown + self._step)
            if self._shown in self._lengths:
                self._lengths[self._shown] = end - self._shown
        yield from self.pass_on(packets)
        last = self._held
        if last is None or last.pts is None or last.dts is None:
            return
        even = last.pts - self._delay  # decoded as early as the first frame
        last.dts = even if self._before is None else max(even, self._before + self._step)
        last.duration = max(end - last.pts, self._step)
        yield last
