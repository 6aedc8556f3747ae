"""What an evaluation was made with: ``settings.json`` in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanvae.dataset.settings import describe_differences
from wanvae.engine.config import check, from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path, make_directory
from wanvae.errors import UserError
from wanvae.metrics.lpips import LpipsNetwork

SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How to judge models.

    Attributes:
        frames: lengths to judge each clip at, from the middle of its video; empty is all of it.
        resize: sizes to judge each clip at: "480x832" scales and crops to that height and width,
            "480" scales the shorter side to that; empty is its own.
        clips: use at most so many files, the first by name; None is all.
        lpips: the network that LPIPS looks with.
        media: of how many clips the page shows videos and pictures.
        media_seconds: how much of each of these it shows.
    """

    frames: tuple[int, ...] = ()
    resize: tuple[str, ...] = ()
    clips: int | None = None
    lpips: LpipsNetwork = "alex"
    media: int = 12
    media_seconds: float = 4.0

    def __post_init__(self) -> None:
        for frames in self.frames:
            check(frames >= 1, "frames", frames, "at least 1")
        check(self.clips is None or self.clips >= 1, "clips", self.clips, "at least 1")
        check(self.media >= 0, "media", self.media, "0 or more")
        check(self.media_seconds > 0, "media_seconds", self.media_seconds, "more than 0")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the figures of a model depend on.

    Attributes:
        name: in tables.
        checkpoint: SHA-256 of its weights, in hexadecimal.
        library: "wanvae" or "diffusers", whose code runs.
        encode_dtype: that it encodes in.
        decode_dtype: that it decodes in.
    """

    name: str
    checkpoint: str
    library: str
    encode_dtype: str
    decode_dtype: str


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Everything that the figures depend on, but for the videos.

    Attributes:
        options: as asked for.
        source: the folder of videos, or the file.
        models: that are judged.
        lpips: whether LPIPS is measured.
        i3d: SHA-256 of the network for rFVD, in hexadecimal; None without.
    """

    options: EvaluationOptions
    source: str
    models: tuple[ModelFacts, ...]
    lpips: bool
    i3d: str | None


def take_folder(folder: Path, settings: EvaluationSettings) -> None:
    """Make the folder of an evaluation, or check that it is of the same settings.

    Raises:
        ValueError: it is of other settings, or holds anything else.
        CheckpointError: it cannot be made.
    """
    make_directory(folder)
    path = folder / SETTINGS
    if not path.exists():
        if any(not file.name.startswith(".") for file in folder.iterdir()):
            raise UserError(f"{folder} has other files in it; name a new folder")
        with atomic_path(path) as temporary:
            text = json.dumps(to_json_dict(settings), indent=2) + "\n"
            temporary.write_text(text, encoding="utf-8")
        return
    try:
        before = from_json_dict(EvaluationSettings, parse_json(path.read_bytes()))
    except UserError as error:
        raise UserError(
            f"{path} is not that of an evaluation of this version ({error}); name a new folder"
        ) from error
    differences = describe_differences(flat(settings), flat(before))
    if differences:
        raise UserError(
            f"{folder} was made with other settings: {'; '.join(differences)}; "
            "give the same again, or name another folder"
        )


def flat(settings: EvaluationSettings) -> dict[str, Any]:
    """All values by name, with a line for each model."""
    values = to_json_dict(settings)
    options = values.pop("options")
    values["lpips"] = options.pop("lpips") if values["lpips"] else "left out"
    values["models"] = [
        f"{model.name} ({model.library}, {model.encode_dtype}, {model.decode_dtype}, "
        f"{model.checkpoint[:12]})"
        for model in settings.models
    ]
    return values | options
