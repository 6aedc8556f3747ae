"""The benchmark of a training step of video models."""

import json
from pathlib import Path
from statistics import median

import pytest

from tools import benchmark


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    path = tmp_path / "steps.json"
    options = ["--model", "tiny", "--size-scale", "0.25", "--threads", "1", "--recompute"]
    assert benchmark.main(["video-step", *options, "--repeats", "1", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("training steps of video models on cpu; ")
    whole, again = json.loads(path.read_text())["results"]
    assert not whole["job"]["recompute"] and again["job"]["recompute"]
    for result in (whole, again):
        seconds, kept = result["seconds"], result["kept"]
        ratio = median(seconds["ours"]) / median(seconds["peer"])
        assert result["summary"]["ours / peer"] == pytest.approx(ratio)
        assert result["difference"] < 1e-4
        assert kept["ours"] < 0.4 * kept["peer"]
    assert again["kept"]["ours"] < 0.5 * whole["kept"]["ours"]


def test_wrong_threads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(["video-step", "--threads", "0"])
    assert error.value.code == 2
    assert "--threads must be positive" in capsys.readouterr().err
