"""Residual vector quantization, with codebooks that learn moving averages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from motion.config import QuantizerConfig
from motion.quantizer.codebooks import NO_CODE, Codebooks
from motion.quantizer.codes import Finder, cut_into_blocks
from wanvae.engine.tensors import check_is_indices
from wanvae.errors import UserError
from wanvae.nn.masking import make_mask


@dataclass(frozen=True)
class Choices:
    """Which codes the latents of a batch chose: what codebooks learn from.

    Attributes:
        rows: ``(N, C)``, the latents.
        indices: ``(N, Q)``, the codes that they chose; -1 where a layer leaves a row as it is.
        counts: ``(Q, K)``, how many rows chose each code.
        sums: ``(Q, K, C)``, the sums of what the layer was given, by code.
    """

    rows: Tensor
    indices: Tensor
    counts: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Usage:
    """How evenly codes are used.

    Attributes:
        perplexity: ``(Q,)``, the exponential of the entropy of the codes of each layer, at most K.
        code_use: ``(Q,)``, the part of the codes of each layer that were used.
    """

    perplexity: Tensor
    code_use: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> Usage:
        """The usage of codes that were chosen ``(Q, K)`` times."""
        shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
        return cls(torch.special.entr(shares).sum(1).exp(), (counts > 0).to(shares.dtype).mean(1))


@dataclass(frozen=True)
class Quantized:
    """The result of a quantizer.

    Attributes:
        latents: ``(B, C, T)``, sums of codes. Gradients pass unchanged to the input of the
            quantizer.
        indices: ``(B, T, Q)``, int64, the codes of each layer; -1 where there is no code.
        commitment_loss: scalar; the squared error after each layer, averaged over channels and
            latents, then over layers.
        perplexity: ``(Q,)``, the exponential of the entropy of the codes of each layer, at most K.
            In training mode it counts the batches of all processes.
        code_use: ``(Q,)``, the fraction of the codes of each layer that were used. In training mode
            it counts the batches of all processes.
        choices: what ``ResidualVQ.learn`` takes; None in evaluation.
    """

    latents: Tensor
    indices: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    code_use: Tensor
    choices: Choices | None = None


@dataclass(frozen=True)
class Search:
    """The codes that the layers find for rows of latents, and statistics of them.

    Attributes:
        latents: ``(N, C)``, sums of codes.
        indices: ``(N, Q)``, -1 where a layer does not quantize a row.
        loss: scalar, the commitment loss.
        loss_gradient: ``(N, C)``, the gradient of the loss with respect to the rows; None if nobody
            needs it.
        counts: ``(Q, K)``, how many rows chose each code.
        sums: ``(Q, K, C)``, the sums of the inputs of each layer, by code; None in evaluation.
    """

    latents: Tensor
    indices: Tensor
    loss: Tensor
    loss_gradient: Tensor | None
    counts: Tensor
    sums: Tensor | None


@dataclass(frozen=True)
class LayerResult:
    """The result of one layer of the quantizer for some rows.

    Attributes:
        layer: the number of the layer.
        given: ``(N, C)``, the input of the layer: the residuals of the layers before.
        found: ``(N,)``, the nearest code of each row, also if the layer does not quantize the row.
        left: ``(N, C)``, the residuals: ``given`` minus the codes.
    """

    layer: int
    given: Tensor
    found: Tensor
    left: Tensor


class StraightThrough(torch.autograd.Function):
    """A straight-through estimator for quantized latents and the commitment loss.

    The gradient of quantized latents passes to ``latents`` unchanged, once for all layers.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, latents: Tensor, quantized: Tensor, loss: Tensor, loss_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(loss_gradient)
        return quantized.view_as(quantized), loss.view_as(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_quantized: Tensor, of_loss: Tensor) -> tuple:
        (loss_gradient,) = ctx.saved_tensors
        gradient = of_quantized + (of_loss * loss_gradient).to(of_quantized.dtype)
        return gradient, None, None, None


class ResidualVQ(nn.Module):
    """A residual vector quantizer of latents ``(B, C, T)``: each layer quantizes the residual.

    In training mode it learns its codes, which are its only state (see
    :class:`~motion.quantizer.codebooks.Codebooks`). It computes in float32, or in float64 if its
    codes are float64, for any dtype of the latents.

    Args:
        config: all options; the defaults are MoMask's.
        dim: channels of the latents, C.
        codebook_size, num_quantizers: replace these options of ``config``, if they are given.
        channel_last: latents are ``(B, T, C)`` instead, given and returned.
    """

    def __init__(
        self,
        config: QuantizerConfig | None = None,
        dim: int = 512,
        *,
        codebook_size: int | None = None,
        num_quantizers: int | None = None,
        channel_last: bool = False,
    ) -> None:
        super().__init__()
        config = config or QuantizerConfig()
        self.config = replace(
            config,
            codebook_size=config.codebook_size if codebook_size is None else codebook_size,
            num_quantizers=config.num_quantizers if num_quantizers is None else num_quantizers,
        )
        self.dim, self.channel_last = dim, channel_last
        self.books = Codebooks(self.config, dim)

    def forward(
        self,
        latents: Tensor,
        lengths: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        learn: bool = True,
    ) -> Quantized:
        """Quantizes ``(B, C, T)``. Padding is neither learnt from nor part of losses and figures.

        Padding becomes 0, and its indices are -1.

        Args:
            lengths: ``(B,)``, the number of latents of each clip; padding follows them.
            mask: ``(B, T)``, bool, instead of ``lengths``: false where a latent is padding.
            learn: in training mode, learn at once. Otherwise the codebooks stay as they are, and
                the ``choices`` of several batches can be learnt together by ``learn``.

        Raises:
            UserError: latents or the mask have another shape, or ``lengths`` are given, too.
        """
        batch, length = self._check_latents(latents)
        valid = find_valid(batch, length, lengths, mask)
        differentiated = latents.requires_grad and torch.is_grad_enabled()
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            rows = self._rows(latents, valid)
            layers = self._draw_layers(batch, length, valid)
            if self.training and learn and not self.books.initialized:
                self.books.initialize(rows)
            temperature = self.config.temperature if self.training else 0.0
            search = self._search(rows, layers, temperature, differentiated)
            choices, usage = None, Usage.of(search.counts)
            if search.sums is not None:
                choices = Choices(rows, search.indices, search.counts, search.sums)
                usage = self.learn([choices]) if learn else usage

        def as_latents(values: Tensor) -> Tensor:
            """Returns rows ``(N, C)`` as latents."""
            return self._as_latents(place_rows(values, (batch, length), valid, 0))

        quantized, loss = as_latents(search.latents).to(latents.dtype), search.loss
        if search.loss_gradient is not None:
            gradient = as_latents(search.loss_gradient)
            quantized, loss = StraightThrough.apply(latents, quantized, loss, gradient)
        return Quantized(
            latents=quantized,
            indices=place_rows(search.indices, (batch, length), valid, NO_CODE),
            commitment_loss=loss,
            perplexity=usage.perplexity,
            code_use=usage.code_use,
            choices=choices,
        )

    @torch.no_grad()
    def learn(self, batches: Sequence[Choices]) -> Usage:
        """Moves the codebooks once by the choices of batches, as if these were one large batch.

        Returns:
            The usage of codes over these batches, of all processes together.
        """
        counts = self.books.learn(
            torch.cat([choices.rows for choices in batches]),
            torch.cat([choices.indices for choices in batches]),
            torch.stack([choices.counts for choices in batches]).sum(0),
            torch.stack([choices.sums for choices in batches]).sum(0),
        )
        return Usage.of(counts)

    @torch.no_grad()
    def initialize(self, batches: Sequence[Tensor]) -> None:
        """Makes the codebooks from the latents ``(B, C, T)`` of batches."""
        self.books.initialize(torch.cat([self._rows(latents, None) for latents in batches]))

    @torch.no_grad()
    def encode(
        self, latents: Tensor, lengths: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Returns the indices ``(B, T, Q)`` of all layers for ``(B, C, T)``; nothing is learnt.

        Args:
            lengths, mask: as in ``forward``.

        Raises:
            UserError: as ``forward``.
        """
        batch, length = self._check_latents(latents)
        valid = find_valid(batch, length, lengths, mask)
        with torch.autocast(latents.device.type, enabled=False):
            rows = self._rows(latents, valid)
            finder = self.books.finder()
            found = [
                torch.stack([step.found for step in self._descend(rows[block], finder)], dim=1)
                for block in cut_into_blocks(rows, self.config.codebook_size)
            ]
        return place_rows(torch.cat(found), (batch, length), valid, NO_CODE)

    def decode(self, indices: Tensor, layers: int | None = None) -> Tensor:
        """Returns the latents ``(B, C, T)`` of ``indices`` ``(B, T, Q)``; -1 adds nothing.

        Args:
            indices: indices of all layers, or of the first few layers.
            layers: number of layers to use, from the first; None is all layers of ``indices``.

        Raises:
            UserError: indices have another shape, are not whole numbers or are out of range, or
                ``layers`` is larger than Q.
        """
        self._check_indices(indices)
        given = indices.shape[2]
        if layers is not None and not 1 <= layers <= given:
            raise UserError(f"layers must be from 1 to {given}, not {layers}")
        return self.look_up(indices[:, :, :layers].to(self.books.codes.device))

    def look_up(self, indices: Tensor) -> Tensor:
        """Does the same as ``decode`` for indices that are right, without a look at them."""
        rows = self.books.look_up(indices.flatten(0, 1))
        return self._as_latents(rows.unflatten(0, indices.shape[:2]))

    def _check_latents(self, latents: Tensor) -> tuple[int, int]:
        """Returns B and T of latents; raises UserError if their shape does not fit."""
        wanted = f"(B, T, {self.dim})" if self.channel_last else f"(B, {self.dim}, T)"
        if latents.dim() != 3 or latents.shape[2 if self.channel_last else 1] != self.dim:
            raise UserError(
                f"latents must be {wanted}, as channel_last={self.channel_last} says, not "
                f"{tuple(latents.shape)}"
            )
        return latents.shape[0], latents.shape[1 if self.channel_last else 2]

    def _as_latents(self, values: Tensor) -> Tensor:
        """Returns ``(B, T, C)`` as latents, which may be ``(B, C, T)``."""
        return values if self.channel_last else values.movedim(2, 1)

    def _rows(self, latents: Tensor, valid: Tensor | None) -> Tensor:
        """Returns latents as ``(N, C)`` where ``valid`` ``(B, T)``, in ``books.dtype``."""
        latents = latents.detach()
        rows = (latents if self.channel_last else latents.movedim(1, 2)).to(self.books.dtype)
        return rows.flatten(0, 1) if valid is None else rows[valid]

    def _draw_layers(self, clips: int, length: int, valid: Tensor | None) -> Tensor | None:
        """Draws how many layers quantize each row, ``(N,)``, equal within a clip; None is all."""
        if not self.training or self.config.dropout == 0:
            return None
        device = self.books.codes.device
        few = torch.randint(1, self.config.num_quantizers + 1, (clips,), device=device)
        dropped = torch.rand(clips, device=device) < self.config.dropout
        layers = torch.where(dropped, few, self.config.num_quantizers)[:, None].expand(-1, length)
        return layers.flatten() if valid is None else layers[valid]

    def _descend(
        self,
        rows: Tensor,
        finder: Finder,
        taken: Tensor | None = None,
        temperature: float = 0.0,
    ) -> Iterator[LayerResult]:
        """Yields the result of each layer for rows ``(N, C)``, from the first layer.

        Args:
            taken: ``(N, Q)``, false where a layer does not quantize a row; None is all true.
        """
        left = rows
        for layer in range(self.config.num_quantizers):
            book = layer % len(finder.books)
            found = finder.find(left, book, temperature)
            chosen = F.embedding(found, finder.books[book])
            if taken is not None:
                chosen *= taken[:, layer, None]
            given, left = left, left - chosen
            yield LayerResult(layer, given, found, left)

    def _search(
        self, rows: Tensor, layers: Tensor | None, temperature: float, differentiated: bool
    ) -> Search:
        """Quantizes rows ``(N, C)``, each by its number of ``layers`` ``(N,)``; adds up by code."""
        finder = self.books.finder()
        count, codes = self.config.num_quantizers, self.config.codebook_size
        every = torch.arange(count, device=rows.device)
        taken = None if layers is None else layers[:, None] > every
        weights = rows.new_ones(len(rows), count) if taken is None else taken.to(rows.dtype)
        weights = make_mean_weights(weights) / rows.shape[1]
        indices = torch.empty(len(rows), count, dtype=torch.long, device=rows.device)
        latents = torch.empty_like(rows)
        loss_gradient = torch.zeros_like(rows) if differentiated else None
        loss, counts = rows.new_zeros(()), rows.new_zeros(count, codes)
        sums = rows.new_zeros(count, codes, rows.shape[1]) if self.training else None
        for block in cut_into_blocks(rows, codes):
            here = None if taken is None else taken[block]
            left = rows[block]
            for step in self._descend(left, finder, here, temperature):
                layer, given, found, left = step.layer, step.given, step.found, step.left
                indices[block, layer] = found
                if here is not None:
                    given, found = given[here[:, layer]], found[here[:, layer]]
                counts[layer] += torch.bincount(found, minlength=codes)
                if sums is not None:
                    sums[layer].index_add_(0, found, given)
                weight = weights[block, layer]
                loss += left.square().sum(1) @ weight
                if loss_gradient is not None:
                    loss_gradient[block].addcmul_(left, weight[:, None], value=2)
            torch.sub(rows[block], left, out=latents[block])
        if taken is not None:
            indices.masked_fill_(~taken, NO_CODE)
        return Search(latents, indices, loss, loss_gradient, counts, sums)

    def _check_indices(self, indices: Tensor) -> None:
        check_is_indices(indices, "indices")
        layers, codes = self.config.num_quantizers, self.config.codebook_size
        if indices.dim() != 3 or indices.shape[2] > layers or indices.numel() == 0:
            raise UserError(
                f"indices must be (B, T, Q) with Q at most {layers} and none of them 0, not "
                f"{tuple(indices.shape)}"
            )
        if not (indices.min() >= NO_CODE and indices.max() < codes):
            raise UserError(
                f"indices must be from 0 to {codes - 1}, or {NO_CODE} for no code, not "
                f"{indices.min()} to {indices.max()}: they are of another model"
            )


def find_valid(
    batch: int, length: int, lengths: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """Returns which latents ``(B, T)`` are no padding, by ``lengths`` or ``mask``; None is all.

    Raises:
        UserError: both are given, or the mask is no ``(B, T)`` of bool.
    """
    if mask is None:
        return None if lengths is None else make_mask(lengths, length)
    if lengths is not None:
        raise UserError("lengths and mask both say what is padding; give one of them")
    if mask.shape != (batch, length) or mask.dtype != torch.bool:
        raise UserError(
            f"mask must be bool {(batch, length)}, (B, T), not {mask.dtype} {tuple(mask.shape)}"
        )
    return mask


def place_rows(values: Tensor, shape: Sequence[int], valid: Tensor | None, absent: int) -> Tensor:
    """Returns rows ``(N, X)`` as ``(B, T, X)``, with ``absent`` where not ``valid`` ``(B, T)``."""
    if valid is None:
        return values.unflatten(0, shape)
    whole = values.new_full((*shape, values.shape[1]), absent)
    whole[valid] = values
    return whole


def make_mean_weights(taken: Tensor) -> Tensor:
    """Returns weights ``(N, Q)`` of a mean over rows, then over layers, where ``taken`` is 1.

    ``taken`` is 0 or 1. Layers that take no row do not count.
    """
    rows = taken.sum(0)
    return taken / (rows.clamp_min(1) * (rows > 0).sum().clamp_min(1))
