"""Which video of a file is read."""

from __future__ import annotations

from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from wanvae.video.common import Source, VideoError

_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails


def choose_stream(container: InputContainer, source: Source) -> VideoStream:
    """Returns the video that FFmpeg finds best, but no cover picture, and no single picture if
    another video has more frames.

    Raises:
        VideoError: there is no video, or a picture that is stored in tiles.
    """
    videos = [stream for stream in container.streams.video if not is_picture(stream)]
    videos = [stream for stream in videos if stream.frames != 1] or videos
    best = container.streams.best("video")
    if best not in videos:
        best = max(videos, key=lambda stream: stream.width * stream.height, default=None)
    if not isinstance(best, VideoStream):
        found = "only a cover picture" if container.streams.video else "no video"
        raise VideoError(f"cannot read {source}: it has {found}; give a video or image")
    if best.disposition & Disposition.dependent:
        raise VideoError(
            f"cannot read {source}: it is a picture of several tiles, as cameras write HEIC; "
            "convert it to JPEG or PNG first"
        )
    return best


def is_picture(stream: Stream) -> bool:
    """Whether a stream of pictures is no video: a cover picture, or thumbnails."""
    return bool(stream.disposition & _NO_VIDEO)
