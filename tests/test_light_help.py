"""Commands import only the libraries that they need."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"accelerate", "av", "huggingface_hub", "jinja2", "scipy", "torchmetrics", "torchvision"}


@pytest.mark.parametrize("package", ["wanvae", "motion"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_little(package: str, option: str) -> None:
    code = f"""
import sys
from {package} import cli
try:
    cli.main(["{option}"])
except SystemExit:
    print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr, end="")
"""
    command = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout and result.stderr == ""


def test_commands_on_a_video_import_no_library_of_metrics() -> None:
    """It would import transformers where that is installed, which takes seconds."""
    code = """
import sys
import wanvae.commands.video
print(*(name for name in ("torchmetrics", "transformers") if name in sys.modules), end="")
"""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout == ""
