"""Items of a data set of tokens as a batch of sequences, for a DataLoader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from motion.dataset.reader import TokenClip
from motion.dataset.records import AudioSpan, Word
from motion.vocabulary import TokenVocabulary, count_tokens
from wanvae.errors import UserError


class TokenBatch(NamedTuple):
    """Clips of tokens as sequences of one length.

    Attributes:
        ids: ``(B, L)``, or ``(B, L, Q)`` for the patterns "parallel" and "delay"; int64. Each
            sequence begins with ``begin``, and ends with ``end`` and then ``pad``.
        mask: ``(B, L)``, bool: False for the padding of a sequence.
        indices: ``(B, T, Q)``, int64; -1 is no code, or padding.
        lengths: ``(B,)``, int64: tokens of each clip.
        captions: the caption of each clip; empty without one.
        speakers: who moves in each clip; empty if that is not known.
        audio: the sound of each clip; None without sound.
        names: the name of each clip.
        words: what is said in each clip.
    """

    ids: Tensor
    mask: Tensor
    indices: Tensor
    lengths: Tensor
    captions: list[str]
    speakers: list[str]
    audio: list[AudioSpan | None]
    names: list[str]
    words: list[tuple[Word, ...]]


def collate(clips: Sequence[TokenClip], vocabulary: TokenVocabulary) -> TokenBatch:
    """Returns a batch of clips.

    A ``DataLoader`` takes ``collate_fn=partial(collate, vocabulary=vocabulary)``.

    Raises:
        UserError: there are no clips, or they do not fit the vocabulary.
    """
    if not clips:
        raise UserError("a batch needs at least one clip")
    each = [clip.indices for clip in clips]
    indices = pad_sequence(each, batch_first=True, padding_value=-1)
    ids = vocabulary.encode(indices)
    lengths = count_tokens(indices)
    steps = torch.tensor([vocabulary.steps(length) for length in lengths.tolist()])
    return TokenBatch(
        ids=ids,
        mask=torch.arange(ids.shape[1]) < steps[:, None],
        indices=indices,
        lengths=lengths,
        captions=[clip.caption for clip in clips],
        speakers=[clip.speaker for clip in clips],
        audio=[clip.audio for clip in clips],
        names=[clip.name for clip in clips],
        words=[clip.words for clip in clips],
    )
