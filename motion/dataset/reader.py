"""Tokens that ``wanvae-motion tokenize`` wrote for a folder, as clips to train on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from motion.dataset.containers import CONTAINERS, read_container
from motion.dataset.records import (
    INDEX,
    SETTINGS,
    AudioSpan,
    Caption,
    TokenRecord,
    TokenSettings,
    Word,
)
from motion.tokens import find_smallest_type, read_tokens
from wanvae.engine.config import check, check_option
from wanvae.engine.json_files import read_value
from wanvae.engine.json_lines import JsonLines
from wanvae.errors import UserError

LOGGER = logging.getLogger("wanvae")
ADVICE = "run wanvae-motion tokenize again"
Captions: TypeAlias = Literal["each", "first"]


class TokenClip(NamedTuple):
    """Tokens of a clip, or of a part of it, and what describes them.

    Attributes:
        indices: ``(T, Q)``, int64; -1 is no code.
        caption: empty without a caption.
        speaker: who moves; empty if that is not known.
        audio: the sound of these tokens, with the path of its file; None without sound.
        name: the motion file without suffix, relative to its folder.
        words: what is said while these tokens last, with seconds from their first frame.
    """

    indices: Tensor
    caption: str
    speaker: str
    audio: AudioSpan | None
    name: str
    words: tuple[Word, ...] = ()


class Excerpt(NamedTuple):
    """An item of a data set: tokens from ``start`` to before ``stop`` of a clip.

    record: the number of the clip in the index.
    caption: the number of its caption; -1 without one.
    """

    record: int
    caption: int
    start: int
    stop: int


class TokenDataset(Dataset[TokenClip]):
    """The clips of a folder of tokens. An item is a clip with one caption.

    A caption of a part of a clip has the tokens of this part, as in the training of T2M-GPT and
    MoMask. Tokens are read when they are asked for, and then held in memory, in one or two bytes
    a code.

    Args:
        folder: the folder that ``wanvae-motion tokenize`` wrote.
        captions: "each" gives a clip once with each of its captions, "first" once with its first
            caption. A clip without captions comes once, with an empty one.
        select: whether a clip of the index is used; None uses all clips.
        window: cut clips into parts of so many tokens, the last of which may be shorter; None
            leaves them whole.
        source: the folder of the motion files, which paths of sound start from; None is the folder
            that was tokenized.

    Attributes:
        settings: what all clips share: codebooks, frames a token, frames per second.
        records: the clips by the index, with all captions.
        lengths: the number of tokens of each item.

    Raises:
        UserError: the folder is no complete data set of tokens, or an argument is out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        captions: Captions = "each",
        select: Callable[[TokenRecord], bool] | None = None,
        window: int | None = None,
        source: str | os.PathLike[str] | None = None,
    ) -> None:
        check_option("captions", captions, Captions)
        check(window is None or window >= 1, "window", window, "1 or more tokens")
        self._folder = Path(folder)
        try:
            self.settings = read_value(self._folder / SETTINGS, TokenSettings)
            self.records: Sequence[TokenRecord] = JsonLines(
                self._folder / INDEX, TokenRecord, ADVICE
            )
        except OSError:
            raise UserError(
                f"{folder} is no complete data set of tokens, because it has no {SETTINGS} or no "
                f"{INDEX}; {ADVICE}"
            ) from None
        self._source = Path(self.settings.source if source is None else source)
        self._tokens: dict[str, Tensor] = {}
        spans = [
            (number, *span)
            for number, record in enumerate(self.records)
            if select is None or select(record)
            for span in spans_of(record, self.settings, captions)
        ]
        items = [item for span in spans for item in cut(Excerpt(*span), window)]
        if empty := sum(start >= stop for *_, start, stop in spans):
            LOGGER.warning("%s: captions of parts without a token are left out: %d", folder, empty)
        if not items:
            raise UserError(f"{folder} has no tokens to use; tokenize or select other motion files")
        # One tensor, which the workers of a DataLoader share.
        self._items = torch.tensor(items)
        self.lengths: list[int] = (self._items[:, 3] - self._items[:, 2]).tolist()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of codes of each layer, for a :class:`~motion.TokenVocabulary`."""
        return self.settings.codebook_sizes

    def shapes(self, multiple: int = 16) -> list[tuple[int]]:
        """Returns the length of each item, rounded up, for :class:`wanvae.BucketBatches`.

        Args:
            multiple: of so many tokens; a batch then has less padding than this for each item.
        """
        check(multiple >= 1, "multiple", multiple, "1 or more tokens")
        return [(-(-length // multiple) * multiple,) for length in self.lengths]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> TokenClip:
        """Returns an item.

        Raises:
            UserError: the file of tokens cannot be read, or is not the one that was indexed.
        """
        item = Excerpt(*self._items[index].tolist())
        record = self.records[item.record]
        caption = "" if item.caption < 0 else record.captions[item.caption].text
        indices = self._read(record)[item.start : item.stop].long()
        return TokenClip(
            indices=indices,
            caption=caption,
            speaker=record.speaker,
            audio=self._sound(record, item),
            name=record.name,
            words=self._words(record, item),
        )

    def _read(self, record: TokenRecord) -> Tensor:
        """Returns the tokens of a clip, which are then held."""
        if record.name not in self._tokens:
            path = self._folder / record.file
            if self.settings.format in CONTAINERS:
                clips = read_container(path)
                found = {clip.record.name: clip.tokens.indices for clip in clips}
            else:
                found = {record.name: read_tokens(path).indices}
            dtype = find_smallest_type(max(self.codebook_sizes))
            self._tokens |= {name: indices.to(dtype) for name, indices in found.items()}
        indices = self._tokens.get(record.name)
        if indices is None or indices.shape != (record.tokens, len(self.codebook_sizes)):
            raise UserError(
                f"{self._folder / record.file} is not the file that {INDEX} names; {ADVICE}"
            )
        return indices

    def _sound(self, record: TokenRecord, item: Excerpt) -> AudioSpan | None:
        """Returns the sound of an item, whose samples are as long as its tokens."""
        audio = record.audio
        if audio is None:
            return None
        start, stop = (
            min(audio.stop, audio.start + round(seconds * audio.rate))
            for seconds in self._seconds(item)
        )
        path = os.path.normpath(self._source / audio.path)
        return replace(audio, path=path, start=start, stop=stop)

    def _words(self, record: TokenRecord, item: Excerpt) -> tuple[Word, ...]:
        """Returns the words of an item; words that it cuts are shorter."""
        start, stop = self._seconds(item)
        return tuple(
            Word(word.text, max(word.start, start) - start, min(word.stop, stop) - start)
            for word in record.words
            if word.start < stop and word.stop > start
        )

    def _seconds(self, item: Excerpt) -> tuple[float, float]:
        """Returns where an item starts and stops in its clip."""
        first, after = map(self.settings.first_frame_of, (item.start, item.stop))
        return first / self.settings.fps, after / self.settings.fps


def spans_of(
    record: TokenRecord, settings: TokenSettings, captions: Captions
) -> Iterator[tuple[int, int, int]]:
    """Yields the captions of a clip: number, first token, and the token after the last one."""
    if not record.captions:
        yield -1, 0, record.tokens
    for place, caption in enumerate(record.captions[: 1 if captions == "first" else None]):
        yield place, *tokens_of_caption(caption, record, settings)


def cut(item: Excerpt, window: int | None) -> Iterator[Excerpt]:
    """Yields the parts of an item that are as long as a window, and what is left."""
    for first in range(item.start, item.stop, window or max(1, item.stop - item.start)):
        yield item._replace(start=first, stop=min(item.stop, first + (window or item.stop)))


def tokens_of_caption(
    caption: Caption, record: TokenRecord, settings: TokenSettings
) -> tuple[int, int]:
    """Returns the first token of the part of a clip that a caption is of, and the one after it."""
    if caption.start == 0 and caption.stop is None:
        return 0, record.tokens
    start = settings.token_at(caption.start)
    stop = record.tokens if caption.stop is None else settings.token_at(caption.stop)
    return start, min(stop, record.tokens)
