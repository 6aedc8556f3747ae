"""Video and image files in and out, through PyAV (FFmpeg)."""

from wanvae.video.beside.source import Beside, beside_of, sound_of
from wanvae.video.common import FilePart, HdrWarning, VideoError
from wanvae.video.reading.options import ReadOptions
from wanvae.video.reading.reader import Frame, VideoInfo, VideoReader, probe, read_clip, read_video
from wanvae.video.writing.formats import Encoding
from wanvae.video.writing.writer import VideoWriter, write_video

__all__ = [
    "Beside",
    "Encoding",
    "FilePart",
    "Frame",
    "HdrWarning",
    "ReadOptions",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "beside_of",
    "probe",
    "read_clip",
    "read_video",
    "sound_of",
    "write_video",
]
