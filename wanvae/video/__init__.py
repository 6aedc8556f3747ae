"""Video and image files in and out, through PyAV (FFmpeg)."""

from wanvae.video.common import FilePart, HdrWarning, VideoError
from wanvae.video.options import ReadOptions
from wanvae.video.reader import Frame, VideoInfo, VideoReader, probe, read_clip, read_video
from wanvae.video.writer import VideoWriter, write_video

__all__ = [
    "FilePart",
    "Frame",
    "HdrWarning",
    "ReadOptions",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "probe",
    "read_clip",
    "read_video",
    "write_video",
]
