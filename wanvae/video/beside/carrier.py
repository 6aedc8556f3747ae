"""Carries what a file holds beside its pictures into a video that is written, in order of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial

import av
from av import Packet
from av.container import OutputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.stream import Discard
from av.video.stream import VideoStream

from wanvae.engine.storage.remote_file import RemoteFile
from wanvae.video.beside.choice import choose_tracks, write_tags
from wanvae.video.beside.restarts import continued
from wanvae.video.beside.source import Beside
from wanvae.video.clock import length_of, restarts, time_of
from wanvae.video.common import Notices, one_line_errors, opened

# Seconds. A subtitle may be shown for so long before the beginning, and tracks may be so far apart
# in a file.
_LEAD = 10


class Carrier:
    """Writes the tracks of a file beside a video that is being written.

    The streams are added to the output, which must not have begun. Packets are read as they are
    needed, so memory does not grow with the length. What cannot be carried is told once. Damaged
    parts are left out with a warning, and the video goes on.

    Args:
        output: the written file, which has its stream of video.
        suffix: of the name of the written file, for messages.

    Raises:
        VideoError: the file cannot be opened.
    """

    def __init__(self, beside: Beside, output: OutputContainer, suffix: str) -> None:
        self._beside = beside
        self._output = output
        self._end = beside.length
        self._notices = Notices(beside.source)
        with one_line_errors("read", beside.source):
            self._source = opened(beside.source)
            self._input = av.open(self._source, "r", metadata_errors="replace")
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
            RemoteError: the source is at an address, and the server cannot be reached.
        """
        while self._next is not None and self._next[0] <= time:
            begin, packet = self._next
            track = self._tracks[packet.stream.index]
            self._write(partial(track.convert, packet, begin), begin)
            self._advance()

    def finish(self) -> None:
        """Writes the rest; raises as ``until``."""
        while self._next is not None:
            self.until(self._next[0])
        for track in self._tracks.values():
            self._write(track.finish, self._reached)

    def close(self) -> None:
        """Closes the source."""
        self._input.close()
        if isinstance(self._source, RemoteFile):
            self._source.close()

    def _write(self, packets: Callable[[], list[Packet]], time: Fraction) -> None:
        """Writes packets. Leaves out those that cannot be decoded, or that the output refuses."""
        try:
            ready = packets()
        except (FFmpegError, ValueError, OverflowError):
            self._tell_damage(time)
            return
        for packet in ready:
            try:
                self._output.mux(packet)
            except (ArgumentError, InvalidDataError):
                self._tell_damage(time)

    def _advance(self) -> None:
        """Reads the next packet of a track that is carried."""
        self._next = None
        try:
            following = next(self._packets, None)
        except FFmpegError:
            self._tell_damage(self._reached)
            return
        # FFmpeg takes a failure of the network for the end of the file.
        if isinstance(self._source, RemoteFile) and self._source.failure is not None:
            raise self._source.failure
        # Tracks are not further apart in a file.
        if following is not None and (self._end is None or following[0] < self._end + _LEAD):
            self._next = following

    def _tell_damage(self, time: Fraction) -> None:
        self._notices.tell(
            f"its sound or subtitles are damaged; parts from {float(time):.2f} s on are left out",
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
            if not packet.size:
                continue
            begin = following.get(index, Fraction(0)) if time is None else time - self._beside.start
            following[index] = begin + length_of(packet)
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
