"""Hardware decoding where there is none: what is missing is named, the rest goes to the CPU."""

from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from av.codec.hwaccel import hwdevices_available

from wanvae.video import ReadOptions, VideoError, VideoReader, read_video, write_video
from wanvae.video.reading import hardware


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    write_video(path, torch.linspace(-1, 1, 3 * 4 * 16 * 16).view(3, 4, 16, 16), Fraction(25))
    return path


def test_an_unknown_device_is_refused_with_the_names_of_those_there_are(video: Path) -> None:
    with pytest.raises(VideoError, match=r"no hardware decoding 'warp'.*it has") as error:
        VideoReader(video, options=ReadOptions(hwaccel="warp:1"))
    assert all(name in str(error.value) for name in hwdevices_available())


def test_an_ffmpeg_without_devices_says_so(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "hwdevices_available", list)
    with pytest.raises(VideoError, match="it has none; leave out --hwaccel"):
        VideoReader(video, options=ReadOptions(hwaccel="cuda"))


def test_a_device_that_cannot_be_used_is_refused(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, kind: str, device: str | None, allow_software_fallback: bool) -> None:
            assert (kind, device, allow_software_fallback) == ("cuda", "7", True)

        def create(self, codec: av.Codec) -> None:
            raise av.error.PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(hardware, "hwdevices_available", lambda: ["cuda"])
    monkeypatch.setattr(hardware, "HWAccel", Broken)
    with pytest.raises(VideoError, match=r"'cuda:7' .* cannot be used \(Operation not permitted\)"):
        VideoReader(video, options=ReadOptions(hwaccel="cuda:7"))


def test_a_codec_that_the_device_does_not_decode_goes_to_the_cpu(video: Path) -> None:
    if "drm" not in hwdevices_available():
        pytest.skip("this FFmpeg knows no device without decoders")
    with pytest.warns(UserWarning, match="its codec h264 is decoded on the CPU"):
        found, _ = read_video(video, options=ReadOptions(hwaccel="drm"))
    assert torch.equal(found, read_video(video)[0])
