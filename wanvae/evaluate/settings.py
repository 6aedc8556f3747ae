"""The settings of an evaluation: ``settings.json`` in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wanvae.engine.config import check, to_json_dict
from wanvae.engine.output_folder import describe_differences
from wanvae.metrics.lpips import LpipsNetwork

SETTINGS = "settings.json"
# What the folder holds, for messages.
EVALUATION = "an evaluation"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How to judge models.

    Attributes:
        frames: lengths to judge each clip at, from the middle of its video; empty means whole
            videos.
        resize: sizes to judge each clip at. "480x832" scales and crops to this height and width,
            "480" scales the shorter side to this length; empty keeps the size.
        clips: largest number of files, the first by name; None means all.
        lpips: network of LPIPS.
        media: number of clips that the page shows with videos and pictures.
        media_seconds: how many seconds of these clips the page shows.
        deinterlace: whether interlaced frames get all lines of one time.
        background: what transparent pictures are laid on, like "white" or "#ff8000"; None is black.
    """

    frames: tuple[int, ...] = ()
    resize: tuple[str, ...] = ()
    clips: int | None = None
    lpips: LpipsNetwork = "alex"
    media: int = 12
    media_seconds: float = 4.0
    deinterlace: bool = False
    background: str | None = None

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
        name: name of the model in tables.
        checkpoint: SHA-256 of the file of the weights, in hexadecimal.
        library: "wanvae" or "diffusers", the library that runs the model.
        encode_dtype: dtype that the model encodes in.
        decode_dtype: dtype that the model decodes in.
        model: SHA-256 of the tensors and the config; empty in evaluations of earlier versions,
            where ``checkpoint`` counts.
    """

    name: str
    checkpoint: str
    library: str
    encode_dtype: str
    decode_dtype: str
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Everything that the figures depend on, except the videos.

    Attributes:
        options: how to judge.
        source: the folder of videos, or the file.
        models: the judged models.
        lpips: whether LPIPS is measured.
        i3d: SHA-256 of the network of rFVD, in hexadecimal; None without rFVD.
    """

    options: EvaluationOptions
    source: str
    models: tuple[ModelFacts, ...]
    lpips: bool
    i3d: str | None

    def differences(self, other: EvaluationSettings) -> list[str]:
        """Says in words what of ``other`` is not the same."""
        known = all(model.model for model in (*self.models, *other.models))
        return describe_differences(flat(self, known), flat(other, known))


def flat(settings: EvaluationSettings, known: bool) -> dict[str, Any]:
    """Returns all values by name, with a line for each model.

    Args:
        known: whether ``model`` identifies the models, and not ``checkpoint``.
    """
    values = to_json_dict(settings)
    options = values.pop("options")
    values["lpips"] = options.pop("lpips") if values["lpips"] else "left out"
    values["models"] = [
        f"{model.name} ({model.library}, {model.encode_dtype}, {model.decode_dtype}, "
        f"{(model.model if known else model.checkpoint)[:12]})"
        for model in settings.models
    ]
    return values | options
