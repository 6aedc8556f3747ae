"""Carries what a file holds beside its pictures into a video that is written, in order of time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

import av
from av import Packet
from av.container import OutputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.stream import Discard
from av.video.stream import VideoStream

from wanvae.video.beside import Beside
from wanvae.video.choice import choose_tracks, write_tags
from wanvae.video.common import Notices, address, one_line_errors, reason
from wanvae.video.restarts import continued, restarts, time_of

# Seconds. A subtitle may be shown for so long before the beginning, and tracks may be so far apart
# in a file.
_LEAD = 10


class Carrier:
    """Writes the tracks of a file beside a video that is being written.

    The streams are added to the output, which must not have begun. Packets are read as they are
    needed, so memory does not grow with the length. What cannot be carried is told once. Damage
    ends a track, not the video, with a warning.

    Args:
        output: the written file, which has its stream of video.
        suffix: of the name of the written file, for messages.

    Raises:
        VideoError: the file cannot be opened.
    """

    def __init__(self, beside: Beside, output: OutputContainer, suffix: str) -> None:
        self._beside = beside
        self._output = output
        self._end = None if beside.end is None else beside.end - beside.start
        self._notices = Notices(beside.source)
        with one_line_errors("read", beside.source):
            self._input = av.open(address(beside.source), metadata_errors="replace")
        try:
            self._tracks = choose_tracks(beside, self._input, output, suffix, self._notices)
            write_tags(beside, self._input, output, suffix, self._notices)
            self._packets = self._timed()
            self._next: tuple[Fraction, Packet] | None = None
            self._advance()
        except BaseException:
            self.close()
            raise

    def until(self, time: float | Fraction) -> None:
        """Writes what begins at or before a time of the written video, in seconds.

        Raises:
            FFmpegError, OSError: the output cannot be written.
        """
        while self._next is not None and self._next[0] <= time:
            begin, packet = self._next
            index = packet.stream.index
            try:
                written = self._tracks[index].convert(packet, begin)
            except (FFmpegError, ValueError) as error:
                self._tell_damage("a part cannot be decoded", begin, error)
            else:
                self._write(index, written, begin)
            self._advance()

    def finish(self) -> None:
        """Writes the rest; raises as ``until``."""
        while self._next is not None:
            self.until(self._next[0])
        for index, track in list(self._tracks.items()):
            try:
                written = track.finish()
            except (FFmpegError, ValueError) as error:
                self._tell_damage("its end cannot be decoded", self._reached, error)
            else:
                self._write(index, written, self._reached)

    def close(self) -> None:
        """Closes the source."""
        self._input.close()

    def _write(self, index: int, packets: list[Packet], time: Fraction) -> None:
        """Writes packets of a track; leaves out the rest of the track if the output refuses one."""
        try:
            self._output.mux(packets)
        except (ArgumentError, InvalidDataError) as error:
            del self._tracks[index]
            self._notices.tell(
                f"track {index} is damaged, and left out from {float(time):.2f} s on "
                f"({reason(error)})"
            )

    def _advance(self) -> None:
        """Reads the next packet of a track that is carried."""
        self._next = None
        try:
            for time, packet in self._packets:
                if self._end is not None and time >= self._end + _LEAD:
                    return
                if packet.stream.index in self._tracks:
                    self._next = time, packet
                    return
        except FFmpegError as error:
            self._tell_damage("the rest cannot be read", self._reached, error)

    def _tell_damage(self, what: str, time: Fraction, error: Exception) -> None:
        self._notices.tell(
            f"its sound or subtitles are damaged: {what}, from {float(time):.2f} s on "
            f"({reason(error)})",
            once="damage",
        )

    def _timed(self) -> Iterator[tuple[Fraction, Packet]]:
        """Packets of the tracks, with their times in the written video."""
        self._reached = Fraction(0)
        if not self._tracks:
            return
        following: dict[int, Fraction] = {}
        for time, packet in self._continued():
            index = packet.stream.index
            if not packet.size or index not in self._tracks:
                continue
            begin = following.get(index, Fraction(0)) if time is None else time - self._beside.start
            following[index] = begin + (packet.duration or 0) * packet.time_base
            self._reached = max(self._reached, begin)
            yield begin, packet

    def _continued(self) -> Iterator[tuple[Fraction | None, Packet]]:
        """Packets of the tracks with their times in the file, from before the beginning on."""
        video = self._input.streams.best("video")
        wanted = [self._input.streams[index] for index in self._tracks]
        if isinstance(video, VideoStream) and restarts(self._input):
            return continued(self._input.demux(video, *wanted), video)
        for stream in self._input.streams:
            if stream not in wanted:
                stream.discard = Discard.all
        kind = self._input.format.name
        indexed = "mov" in kind or ("matroska" in kind and self._input.duration)
        if indexed and self._beside.start > _LEAD:
            before = self._beside.start - _LEAD
            tick = None if video is None else video.time_base
            with suppress(FFmpegError):
                self._input.seek(int(before / (tick or Fraction(1, av.time_base))), stream=video)
        return ((time_of(packet), packet) for packet in self._input.demux(*wanted))
