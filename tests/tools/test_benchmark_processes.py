"""The benchmark of processes that share a video, on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import LAUNCHER

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark_processes.py"


def test_it_reports_every_job_once(tmp_path: Path) -> None:
    options = ["--model", "tiny", "--size-scale", "0.1", "--repeats", "2", "--json", "a.json"]
    command = [*LAUNCHER, str(SCRIPT), *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")][2:]
    assert [row.split()[1] for row in rows] == ["decode-wide", "encode-wide", "encode-wider"]
    assert "tiny model, float32, 2 processes" in result.stdout
    for entry in json.loads((tmp_path / "a.json").read_text())["results"]:
        assert len(entry["alone"]) == len(entry["together"]) == 2
        assert entry["error"] < 1e-4
        assert entry["bytes_together"] >= 0 < entry["speedup"]


def test_bad_options_are_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--repeats", "0"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2 and "--repeats must be positive, not 0" in result.stderr
