"""The benchmark of reading and writing videos."""

import json
from pathlib import Path
from statistics import median

import pytest

from tools import benchmark


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
        steps = [seconds[side] for side in ("reader", "model", "compare", "writer")]
        whole = seconds["reconstruct"]
        assert summary["reconstruct / slowest step"] == pytest.approx(max(steps) / whole)
        assert summary["reconstruct / sum of steps"] == pytest.approx(sum(steps) / whole)


def test_videos_have_frames(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(["video-io", "--frames", "0"])
    assert error.value.code == 2
    assert "--frames must be positive" in capsys.readouterr().err
