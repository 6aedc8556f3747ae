"""Indices of a tokenizer as ids of one vocabulary, in an order that a language model learns.

A tokenizer gives Q indices for each token of time, one for each layer of its quantizer. A language
model reads ids, step after step. The patterns differ in what a step holds:

- "flattened": one id. The Q ids of a token follow each other, so T tokens take T Q steps.
- "parallel": the Q ids of one token, which a model predicts independently of each other.
- "delay": Q ids, where layer q is q tokens late. A model that predicts an id of layer q then knows
  the layers before it, and T tokens take T + Q - 1 steps.

Source of the patterns: "Simple and Controllable Music Generation" (MusicGen, Copet et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.engine.config import check, check_option
from wanvae.engine.tensors import check_is_indices
from wanvae.errors import UserError

TokenPattern: TypeAlias = Literal["flattened", "parallel", "delay"]
# The number of ids that are no codes.
SPECIAL = 4


@dataclass(frozen=True, kw_only=True)
class TokenVocabulary:
    """The ids of a language model of motion.

    Ids from ``start`` on are ``pad``, ``begin``, ``end``, ``mask``, and then the codes of the first
    layer, of the second layer, and so on. An id tells its layer, so one table of embeddings does
    for all layers, also behind the ids of a text model.

    >>> vocabulary = TokenVocabulary(codebook_sizes=(8, 8), pattern="delay")
    >>> vocabulary.encode(torch.tensor([[5, 1], [6, 2]]))
    tensor([[ 1,  1],
            [ 9,  1],
            [10, 13],
            [ 2, 14],
            [ 2,  2]])

    Attributes:
        codebook_sizes: the number of codes of each of the Q layers.
        pattern: what a step of a sequence holds.
        start: the first id, such as the number of ids of a text model.

    Raises:
        UserError: a size is below 1, there is no layer, or ``start`` is negative.
    """

    codebook_sizes: tuple[int, ...]
    pattern: TokenPattern = "flattened"
    start: int = 0

    def __post_init__(self) -> None:
        sizes = self.codebook_sizes
        several = isinstance(sizes, Iterable) and not isinstance(sizes, str)
        sizes = tuple(sizes) if several else ()
        fit = all(isinstance(size, Integral) and int(size) >= 1 for size in sizes)
        expected = "a size of at least 1 for each layer"
        check(bool(sizes) and fit, "codebook_sizes", self.codebook_sizes, expected)
        object.__setattr__(self, "codebook_sizes", sizes)
        check_option("pattern", self.pattern, TokenPattern)
        whole = isinstance(self.start, Integral) and int(self.start) >= 0
        check(whole, "start", self.start, "a whole number, at least 0")

    @property
    def layers(self) -> int:
        """Q, the number of layers of the quantizer."""
        return len(self.codebook_sizes)

    @property
    def streams(self) -> int:
        """S, the number of ids in a step: 1 if the pattern is "flattened", else Q."""
        return 1 if self.pattern == "flattened" else self.layers

    @property
    def size(self) -> int:
        """The number of ids of motion: 4 and all codes."""
        return SPECIAL + sum(self.codebook_sizes)

    @property
    def stop(self) -> int:
        """The id after the last one: the number of rows of a table that holds ids from 0 on."""
        return self.start + self.size

    @property
    def pad(self) -> int:
        """The id after the end of a sequence, and of a layer without a code (index -1)."""
        return self.start

    @property
    def begin(self) -> int:
        """The id before the codes of a layer; the only one in the first step of a sequence."""
        return self.start + 1

    @property
    def end(self) -> int:
        """The id after the codes of a layer; the only one in the last step of a sequence."""
        return self.start + 2

    @property
    def mask(self) -> int:
        """The id for codes that a model has to fill in. ``decode`` takes it for no code."""
        return self.start + 3

    def codes(self, layer: int) -> range:
        """Returns the ids of the codes of a layer, counted from 0."""
        first = self._first_ids()[layer]
        return range(first, first + self.codebook_sizes[layer])

    def steps(self, tokens: int) -> int:
        """Returns the number of steps of so many tokens, with the first and the last step."""
        latest = self.layers - 1 if self.pattern == "delay" else 0
        return tokens * self.layers // self.streams + latest + 2

    def encode(self, indices: Tensor, *, begin: bool = True, end: bool = True) -> Tensor:
        """Returns the ids of clips, int64.

        Args:
            indices: ``(T, Q)`` or ``(B, T, Q)``, whole numbers; -1 is no code. Tokens of -1 alone
                at the end of a clip are padding.
            begin: begin each sequence with a step of ``begin``.
            end: end each sequence with a step of ``end``.

        Returns:
            ``(L,)`` or ``(B, L)`` if the pattern is "flattened", else ``(L, Q)`` or ``(B, L, Q)``.
            Shorter sequences of a batch end with ``pad``.

        Raises:
            UserError: the indices have another shape or dtype, or are out of range.
        """
        indices = self._check_indices(indices)
        clips = indices if indices.dim() == 3 else indices[None]
        lengths = count_tokens(clips)
        codes = torch.where(clips >= 0, clips + self._offsets(clips), self.pad)
        if self.pattern == "flattened":
            codes, lengths = codes.flatten(1)[:, :, None], lengths * self.layers
        delays = self._delays(codes)
        lengths = lengths[:, None, None]
        stops = lengths + 1 + int(delays[-1]) + end
        length = int(stops.max()) if len(stops) else 0
        step = torch.arange(length, device=codes.device)[None, :, None]
        place = (step - 1 - delays).expand(len(codes), -1, -1)
        # One more place, so that there is one where a clip has no token.
        places = F.pad(codes, (0, 0, 0, 1), value=self.pad)
        ids = places.gather(1, place.clamp(0, codes.shape[1]))
        ids = ids.masked_fill(place < 0, self.begin).masked_fill(place >= lengths, self.end)
        ids = ids.masked_fill(step >= stops, self.pad)[:, 0 if begin else 1 :]
        ids = ids[:, :, 0] if self.pattern == "flattened" else ids
        return ids if indices.dim() == 3 else ids[0]

    def decode(self, ids: Tensor) -> Tensor:
        """Returns the indices of sequences, int64: the inverse of ``encode``.

        A sequence may lack the first step. It ends before the first ``end`` of any layer, or where
        the ids end. A token that does not have all layers there is left out.

        Args:
            ids: of a shape that ``encode`` returns.

        Returns:
            ``(T, Q)`` or ``(B, T, Q)``; -1 where there is no code, and after the end of a clip.

        Raises:
            UserError: the ids have another shape or dtype, or an id is not of its layer.
        """
        dims = 1 if self.pattern == "flattened" else 2
        ids = self._check_ids(ids, dims)
        steps = ids if ids.dim() > dims else ids[None]
        if self.pattern == "flattened":
            codes, counts = self._read_streams(steps[:, :, None])
            counts = counts // self.layers
            padding = -codes.shape[1] % self.layers
            codes = F.pad(codes, (0, 0, 0, padding), value=self.pad)
            codes = codes[:, :, 0].unflatten(1, (-1, self.layers))
        else:
            codes, counts = self._read_streams(steps)
        indices = self._to_indices(codes, counts)
        indices = indices[:, : int(count_tokens(indices).max()) if len(indices) else 0]
        return indices if ids.dim() > dims else indices[0]

    def _read_streams(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the ids ``(B, T, S)`` without delays, and how many are before an end, ``(B,)``.

        Args:
            ids: ``(B, L, S)``.
        """
        batch, length, _ = ids.shape
        first = ids[:, :1, :1] == self.begin if length else ids.new_zeros(batch, 1, 1)
        place = torch.arange(length, device=ids.device)[None, :, None]
        step = place + self._delays(ids) + first.long()
        # After its last step a sequence ends, whether it says so or not.
        padded = F.pad(ids, (0, 0, 0, 1), value=self.end)
        codes = padded.gather(1, step.clamp(max=length))
        counts = (codes != self.end).long().cumprod(dim=1).sum(dim=1).amin(dim=1)
        return codes, counts

    def _to_indices(self, codes: Tensor, counts: Tensor) -> Tensor:
        """Returns the indices ``(B, T, Q)`` of ids, of which the first ``counts`` ``(B,)`` count.

        Raises:
            UserError: one of them is not of its layer.
        """
        indices = codes - self._offsets(codes)
        sizes = codes.new_tensor(self.codebook_sizes)
        no_code = (codes == self.pad) | (codes == self.mask)
        counted = torch.arange(codes.shape[1], device=codes.device) < counts[:, None]
        wrong = ((indices < 0) | (indices >= sizes)) & ~no_code & counted[:, :, None]
        if wrong.any():
            clip, token, layer = wrong.nonzero()[0].tolist()
            known = self.codes(layer)
            raise UserError(
                f"id {int(codes[clip, token, layer])} of token {token}, layer {layer} of sequence "
                f"{clip} is no code of this layer, whose ids are {known.start} to {known.stop - 1}"
            )
        return indices.masked_fill(no_code | ~counted[:, :, None], -1)

    def _first_ids(self) -> list[int]:
        """Returns the first id of each layer."""
        return list(accumulate(self.codebook_sizes[:-1], initial=self.start + SPECIAL))

    def _offsets(self, like: Tensor) -> Tensor:
        """Returns the first id of each layer, ``(Q,)``."""
        return like.new_tensor(self._first_ids())

    def _delays(self, like: Tensor) -> Tensor:
        """Returns the delay of each stream in steps, ``(S,)``."""
        streams = torch.arange(self.streams, device=like.device)
        return streams if self.pattern == "delay" else torch.zeros_like(streams)

    def _check_indices(self, indices: Tensor) -> Tensor:
        """Returns indices as int64, in which -1 and all sizes can be compared with them."""
        check_is_indices(indices, "indices")
        if indices.dim() not in (2, 3) or indices.shape[-1] != self.layers:
            raise UserError(
                f"indices must be (T, {self.layers}) or (B, T, {self.layers}), for {self.layers} "
                f"layers, not {tuple(indices.shape)}"
            )
        indices = indices.long()
        if ((indices < -1) | (indices >= indices.new_tensor(self.codebook_sizes))).any():
            most = [int(x) for x in indices.flatten(0, -2).amax(dim=0)]
            raise UserError(
                f"indices must be from 0, or -1 for no code, and below {self.codebook_sizes} in "
                f"the layers; they are from {int(indices.min())}, and to {tuple(most)}"
            )
        return indices

    def _check_ids(self, ids: Tensor, dims: int) -> Tensor:
        """Returns ids as int64."""
        check_is_indices(ids, "ids")
        shapes = "(L,) or (B, L)"
        if dims == 2:
            shapes = f"(L, {self.layers}) or (B, L, {self.layers})"
        if ids.dim() not in (dims, dims + 1) or (dims == 2 and ids.shape[-1] != self.layers):
            raise UserError(
                f'ids of the pattern "{self.pattern}" must be {shapes}, not {tuple(ids.shape)}'
            )
        return ids.long()


def count_tokens(indices: Tensor) -> Tensor:
    """Returns the number of tokens of each clip ``(B,)``, without -1 alone at the end of it.

    Args:
        indices: ``(B, T, Q)``.
    """
    numbers = torch.arange(1, indices.shape[1] + 1, device=indices.device)
    there = (indices >= 0).any(dim=2) * numbers
    return there.amax(dim=1) if indices.shape[1] else numbers.new_zeros(len(indices))
