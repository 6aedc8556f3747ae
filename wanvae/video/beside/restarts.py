"""Continued times of sound and subtitles, in files whose clock restarts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from av import Packet
from av.video.stream import VideoStream

from wanvae.video.clock import LONGEST_PAUSE, Clock, time_of

# Packets that wait for the video to restart. Tracks are not that far apart in a file.
_MOST_WAITING = 1000
# Seconds that sound may go on after the video where recordings are joined.
_OVERLAP = 1


def continued(
    packets: Iterable[Packet], video: VideoStream
) -> Iterator[tuple[Fraction | None, Packet]]:
    """Yields the packets of all tracks except the video, with continued times.

    The video is continued as in ``PacketSource``, and what is added to its times is added to the
    times of the other tracks. Packets of other tracks that come before the restarted video wait for
    it.

    Args:
        packets: packets of the video and of other tracks, in the order of the file.
        video: the video.
    """
    rate = video.guessed_rate or video.average_rate or 25
    tick = video.time_base
    assert tick is not None
    clock = Clock(max(1, round(1 / (rate * tick))), float(LONGEST_PAUSE / tick))
    offset = Fraction(0)
    shown: Fraction | None = None  # time of the video
    last: dict[int, Fraction] = {}
    waiting: list[Packet] = []

    def follows(packet: Packet) -> bool:
        """Returns whether a time does not go back, and is not far ahead of the video."""
        time = time_of(packet)
        if time is None or shown is None:
            return True
        earliest = last.get(packet.stream.index, time + offset) - _OVERLAP
        return earliest <= time + offset <= shown + LONGEST_PAUSE

    def timed(packet: Packet) -> tuple[Fraction | None, Packet]:
        time = time_of(packet)
        # A single time that is far off is as good as none.
        if time is None or not follows(packet):
            return None, packet
        last[packet.stream.index] = time + offset
        return time + offset, packet

    for packet in packets:
        ready = False
        if packet.stream.index != video.index:
            ready = not waiting and follows(packet)
            waiting.append(packet)
        elif packet.dts is not None:
            before, earlier = packet.dts, offset
            clock.adjust(packet)
            offset = (packet.dts - before) * tick
            shown = packet.dts * tick
            ready = offset != earlier
        if ready or len(waiting) > _MOST_WAITING:
            yield from map(timed, waiting)
            waiting = []
    yield from map(timed, waiting)
