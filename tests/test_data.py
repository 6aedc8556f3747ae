"""Training clips: what is drawn, and what is left out."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from wanvae.data import DataConfig, VideoClips
from wanvae.video import VideoError, write_video

FRAMES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos, the second in a subfolder; every frame of both has its own gray."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    ramp = torch.linspace(-0.9, 0.1, FRAMES)[None, :, None, None]
    write_video(folder / "a.mp4", ramp.expand(3, -1, 32, 48), Fraction(25))
    write_video(folder / "more" / "b.mkv", ramp.expand(3, -1, 40, 32) + 0.8, Fraction(30))
    return folder


def clips(folder: Path, seed: int = 0, **changes: object) -> VideoClips:
    options = {"folder": str(folder), "frames": 3, "size": 16, "largest_scale": 2.0}
    return VideoClips(DataConfig(**{**options, **changes}), seed)


def test_samples_are_clips_of_consecutive_frames_of_all_videos(folder):
    samples = clips(folder)
    starts = set()
    for number in range(30):
        clip = samples[number]
        assert clip.shape == (3, 3, 16, 16)
        assert clip.abs().max() <= 1
        levels = clip.mean((0, 2, 3))
        torch.testing.assert_close(levels.diff(), torch.full((2,), 0.2), atol=0.03, rtol=0)
        starts.add(round(levels[0].item(), 1))
    # Four possible starts in each of two videos.
    assert len(starts) > 5


def test_a_sample_follows_from_seed_and_number_alone(folder):
    forwards = [clips(folder)[number] for number in range(8)]
    samples = clips(folder)
    for number in reversed(range(8)):
        assert torch.equal(samples[number], forwards[number])
    different = [clips(folder, seed=1)[number] for number in range(8)]
    assert not all(map(torch.equal, forwards, different))


def test_crops_of_one_clip_share_its_frames(folder):
    samples = clips(folder, crops_per_clip=4, flip=False)
    drawn = [samples[number] for number in range(8)]
    levels = [round(clip[0, 0].mean().item(), 2) for clip in drawn]
    assert len(set(levels[:4])) == len(set(levels[4:])) == 1
    fresh = [clips(folder, crops_per_clip=4, flip=False)[number] for number in range(8)]
    assert all(map(torch.equal, drawn, fresh))


def test_broken_and_small_files_are_left_out_and_counted(folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "notes.txt").write_text("not even by its name")
    write_video(tmp_path / "small.mp4", torch.zeros(3, 8, 8, 8), Fraction(25))
    write_video(tmp_path / "short.mp4", torch.zeros(3, 2, 32, 32), Fraction(25))
    (tmp_path / "good.mp4").write_bytes((folder / "a.mp4").read_bytes())
    with pytest.warns(UserWarning, match=r"3 videos left out, the first: .*short\.mp4"):
        samples = clips(tmp_path)
    assert [path.name for path, _ in samples.videos] == ["good.mp4"]


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="no usable video"):
        clips(tmp_path)
