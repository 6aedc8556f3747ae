"""The tool that kills runs of encode-dataset."""

import os
import subprocess
from pathlib import Path

import pytest

from tools.kill_trials import LAUNCHER


@pytest.mark.slow
def test_two_processes_are_started(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, pathlib\n"
        "name = os.environ['RANK'] + ' of ' + os.environ['WORLD_SIZE']\n"
        f"(pathlib.Path({str(tmp_path)!r}) / name).touch()\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*LAUNCHER, str(script)], check=True, env=environment, timeout=120)
    assert {path.name for path in tmp_path.glob("* of *")} == {"0 of 2", "1 of 2"}
