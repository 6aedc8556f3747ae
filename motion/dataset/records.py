"""The lists in the folder of a data set of tokens.

``dataset.json`` says what all clips share. ``index.jsonl`` has one JSON object for each clip, and
is written once all clips are done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from wanvae.engine.config import check, check_option

SETTINGS, INDEX = "dataset.json", "index.jsonl"
# Files of tokens: one for each clip, or one for many clips.
TokenFormat: TypeAlias = Literal["npz", "safetensors", "tar", "parquet"]


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a person says of a clip, or of a part of it.

    Attributes:
        text: the caption.
        start: seconds from the first frame of the clip.
        stop: seconds from the first frame of the clip; None is the end of the clip.
    """

    text: str
    start: float = 0.0
    stop: float | None = None


@dataclass(frozen=True, kw_only=True)
class AudioSpan:
    """The sound of a clip: samples of a file.

    Attributes:
        path: the file; in an index, relative to the folder of the motion files.
        rate: samples per second.
        start: the first sample.
        stop: the sample after the last one.
    """

    path: str
    rate: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        check(self.rate >= 1, "rate", self.rate, "at least 1 sample per second")
        check(0 <= self.start <= self.stop, "start", self.start, f"from 0 to {self.stop}")


@dataclass(frozen=True)
class Word:
    """A word that is said in a clip.

    Attributes:
        text: the word.
        start, stop: seconds from the first frame of the clip.
    """

    text: str
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a clip besides its motion.

    Attributes:
        captions: all captions of the clip and of its parts.
        speaker: who moves; empty if that is not known.
        audio: its sound; None without sound.
        words: the words that are said in it, by time.
    """

    captions: tuple[Caption, ...] = ()
    speaker: str = ""
    audio: AudioSpan | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """A clip of a data set, a line of its index.

    Attributes:
        name: the motion file without suffix, relative to its folder, with "/" between its parts.
        source: the motion file, relative to its folder.
        file: the file of tokens, relative to the folder of the data set.
        tokens: T', the number of tokens.
        frames: the number of frames at the rate of the model.
        captions, speaker, audio, words: as in a :class:`Description`.
    """

    name: str
    source: str
    file: str
    tokens: int
    frames: int
    captions: tuple[Caption, ...] = ()
    speaker: str = ""
    audio: AudioSpan | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """What all clips of a data set share.

    Attributes:
        format: what the tokens are stored in.
        codebook_sizes: the number of codes of each of the Q layers.
        fps: frames per second of the model.
        factor: frames a token.
        first_frames: frames of the first token.
        model: the digest of the model, as in an :class:`~motion.tokens.Origin`.
        source: the folder of the motion files.
    """

    format: TokenFormat
    codebook_sizes: tuple[int, ...]
    fps: float
    factor: int
    first_frames: int
    model: str
    source: str

    def __post_init__(self) -> None:
        check_option("format", self.format, TokenFormat)
        for name in ("fps", "factor", "first_frames"):
            check(getattr(self, name) > 0, name, getattr(self, name), "above 0")

    def first_frame_of(self, token: int) -> int:
        """Returns the first frame of a token, counted from 0."""
        return 0 if token == 0 else self.first_frames + (token - 1) * self.factor

    def token_at(self, seconds: float) -> int:
        """Returns the token that has the frame at a time."""
        frame = int(seconds * self.fps)
        return max(0, 1 + (frame - self.first_frames) // self.factor)
