"""The benchmark of reading and writing videos."""

import json
from pathlib import Path
from statistics import median
from typing import cast

import pytest

from tools import benchmark
from tools.benchmark_video_io import Identity, VideoIO, moving_picture, write
from wanvae import WanVAE
from wanvae.commands.pipeline import reconstruct_file


def test_the_report_of_video_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "io.json"
    options = ["--size-scale", "0.05", "--frames", "5", "--repeats", "1", "--json", str(path)]
    assert benchmark.main(["video-io", *options]) == 0
    assert capsys.readouterr().out.startswith("reading and writing videos on cpu; ")
    small, large = json.loads(path.read_text())["results"]
    assert small["job"] == {"width": 32, "height": 16, "frames": 5}
    for result in (small, large):
        seconds = {side: median(times) for side, times in result["seconds"].items()}
        summary = result["summary"]
        assert summary["reader"] == pytest.approx(5 / seconds["reader"])
        assert summary["reader / PyAV"] == pytest.approx(seconds["PyAV"] / seconds["reader"])
        ratio = seconds["transcode"] / seconds["identity"]
        assert summary["identity / transcode"] == pytest.approx(ratio)
        steps = [seconds[side] for side in ("reader", "model", "compare", "writer")]
        whole = seconds["reconstruct"]
        assert summary["reconstruct / slowest step"] == pytest.approx(max(steps) / whole)
        assert summary["reconstruct / sum of steps"] == pytest.approx(sum(steps) / whole)


def test_videos_have_frames(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(["video-io", "--frames", "0"])
    assert error.value.code == 2
    assert "--frames must be positive" in capsys.readouterr().err


def test_the_identity_gives_frames_back(tmp_path: Path) -> None:
    job = VideoIO(32, 16, 6)
    picture = moving_picture(job)
    write(tmp_path / "in.mkv", job, [picture(n) for n in range(6)])
    report = reconstruct_file(cast(WanVAE, Identity()), tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert report is not None and report.frames == 6 and report.psnr == float("inf")
