"""Residual quantization: each layer quantizes what the layers before it left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor, nn

from motion.quantizer.books import NO_CODE, Search, codebook_loss
from motion.quantizer.build import make_books
from motion.quantizer.codes import cut_into_blocks
from motion.quantizer.estimators import estimate
from motion.quantizer.projection import Projection
from motion.quantizer.results import Choices, Quantized, Usage
from motion.quantizer.rows import as_rows, find_valid, make_mean_weights, place_rows
from motion.quantizer_config import QuantizerConfig
from wanvae.engine.config import check
from wanvae.engine.tensors import check_is_indices, check_is_tensor
from wanvae.errors import UserError


@dataclass(frozen=True)
class Found:
    """The codes that the layers find for rows of latents, and statistics of them.

    Rows are ``(N, groups * d)``.

    Attributes:
        indices: ``(N, Q)``, -1 where a layer does not quantize a row.
        weights: ``(N, Q)``, of the squared error of each row after each layer in the loss.
        loss: scalar, the commitment loss.
        loss_gradient: the gradient of the loss with respect to the rows; None if nobody needs it.
        counts: ``(Q, K)``, how many rows chose each code.
        sums: ``(Q, K, d)``, the sums of the inputs of each layer, by code; None in evaluation, and
            for codes that do not learn from them.
    """

    indices: Tensor
    weights: Tensor
    loss: Tensor
    loss_gradient: Tensor | None
    counts: Tensor
    sums: Tensor | None


@dataclass(frozen=True)
class LayerResult:
    """The result of one layer of the quantizer for some rows.

    Attributes:
        layer: the number of the layer.
        given: ``(N, d)``, the input of the layer: the residuals of the layers before.
        found: ``(N,)``, the nearest code of each row, also if the layer does not quantize the row.
        left: ``(N, d)``, the residuals: ``given`` minus the codes.
    """

    layer: int
    given: Tensor
    found: Tensor
    left: Tensor


class ResidualVQ(nn.Module):
    """A residual quantizer of latents ``(B, C, T)``: each layer quantizes the residual.

    What codes are, the config says; :class:`~motion.quantizer.books.Books` is all that this class
    knows of them. Channels are cut into ``config.groups``, and code q is of group q % groups. If
    the codes have other channels than the latents, a linear map leads to them and another one back.

    In training mode it learns its codes, which ``books`` holds. It computes in float32, or in
    float64 if its codes are float64, for any dtype of the latents.

    Args:
        config: all options; the defaults are MoMask's.
        dim: channels of the latents, C.
        codebook_size, num_quantizers: replace these options of ``config``, if they are given.
        channel_last: latents are ``(B, T, C)`` instead, given and returned.

    Raises:
        UserError: the groups do not divide ``dim``, or an option does not fit the others.
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
        if config is not None and not isinstance(config, QuantizerConfig):
            raise UserError(
                f"config must be a QuantizerConfig, not {config!r}; the number of channels is dim, "
                "as in ResidualVQ(dim=256)"
            )
        whole = isinstance(dim, Integral) and int(dim) >= 1
        check(whole, "dim", dim, "a whole number, at least 1")
        config = config or QuantizerConfig()
        config = replace(
            config,
            codebook_size=config.codebook_size if codebook_size is None else codebook_size,
            num_quantizers=config.num_quantizers if num_quantizers is None else num_quantizers,
        )
        self.config, self.dim, self.channel_last = config, dim, channel_last
        self.width = config.channels(dim)
        self.books = make_books(config, self.width)
        groups, channels = config.groups, dim // config.groups
        projects = self.width != channels or config.codebook_dim is not None
        self.project_in = Projection(groups, channels, self.width) if projects else None
        self.project_out = Projection(groups, self.width, channels) if projects else None

    def forward(
        self,
        latents: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
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
            UserError: latents are no such tensor of floating point, the mask or ``lengths`` do not
                fit, or both are given.
        """
        valid = find_valid(latents, self._check_latents(latents)[1], lengths, mask)
        with torch.autocast(latents.device.type, enabled=False):
            quantized = self._quantize(self._project(latents), valid, learn=learn)
            restored = self._restore(quantized.latents, valid)
        return replace(quantized, latents=restored.to(latents.dtype))

    def _quantize(self, latents: Tensor, valid: Tensor | None, *, learn: bool) -> Quantized:
        """Quantizes projected latents ``(B, groups * d, T)`` where ``valid`` ``(B, T)``."""
        batch, _, length = latents.shape
        keeps_gradients = torch.is_grad_enabled()
        differentiated = latents.requires_grad and keeps_gradients
        with torch.no_grad():
            rows = as_rows(latents.detach(), valid)
            layers = self._draw_layers(batch, length, valid)
            if self.training and learn and not self.books.ready():
                self.books.initialize(rows)
            temperature = self.config.temperature if self.training else 0.0
            found = self._search(rows, layers, temperature, differentiated)
            values = self.books.look_up(found.indices)
        codes = regularization = None
        if self.training and keeps_gradients:
            if self.books.learns_by_gradient:
                codes = codebook_loss(self.books, rows, found.indices, found.weights)
            regularization = self.books.regularize(as_rows(latents, valid), found.indices)
        with torch.no_grad():
            choices, usage = None, Usage.of(found.counts)
            if self.training:
                choices = Choices(rows, found.indices, found.counts, found.sums)
                usage = self.learn([choices]) if learn else usage

        def as_latents(values: Tensor) -> Tensor:
            """Returns rows ``(N, C)`` as ``(B, C, T)``."""
            return place_rows(values, (batch, length), valid, 0).movedim(2, 1)

        quantized, loss = as_latents(values), found.loss
        if found.loss_gradient is not None:
            gradient = as_latents(found.loss_gradient)
            groups = self.config.groups if self.config.estimator == "rotation" else None
            quantized, loss = estimate(latents, quantized, loss, gradient, groups)
        return Quantized(
            latents=quantized,
            indices=place_rows(found.indices, (batch, length), valid, NO_CODE),
            commitment_loss=loss,
            perplexity=usage.perplexity,
            code_use=usage.code_use,
            choices=choices,
            codebook_loss=codes,
            regularization=regularization,
        )

    @torch.no_grad()
    def learn(self, batches: Sequence[Choices]) -> Usage:
        """Moves the codebooks once by the choices of batches, as if these were one large batch.

        Returns:
            The usage of codes over these batches, of all processes together.
        """
        sums = [choices.sums for choices in batches if choices.sums is not None]
        counts = self.books.learn(
            torch.cat([choices.rows for choices in batches]),
            torch.cat([choices.indices for choices in batches]),
            torch.stack([choices.counts for choices in batches]).sum(0),
            torch.stack(sums).sum(0) if sums else None,
        )
        return Usage.of(counts)

    @torch.no_grad()
    def initialize(self, batches: Sequence[Tensor]) -> None:
        """Makes the codebooks from the latents ``(B, C, T)`` of batches."""
        rows = [as_rows(self._project(latents), None) for latents in batches]
        self.books.initialize(torch.cat(rows))

    @torch.no_grad()
    def encode(
        self,
        latents: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the indices ``(B, T, Q)`` of all layers for ``(B, C, T)``; nothing is learnt.

        Args:
            lengths, mask: as in ``forward``.

        Raises:
            UserError: as ``forward``.
        """
        shape = self._check_latents(latents)
        valid = find_valid(latents, shape[1], lengths, mask)
        with torch.autocast(latents.device.type, enabled=False):
            rows = as_rows(self._project(latents), valid)
            search = self.books.search()
            found = [
                torch.stack([step.found for step in self._descend(rows[block], search)], dim=1)
                for block in cut_into_blocks(rows, search.row_size)
            ]
        return place_rows(torch.cat(found), shape, valid, NO_CODE)

    def decode(self, indices: Tensor, layers: int | None = None) -> Tensor:
        """Returns the latents ``(B, C, T)`` of ``indices`` ``(B, T, Q)``; -1 adds nothing.

        Args:
            indices: indices of all layers, or of the first few layers.
            layers: number of layers to use, from the first; None is all layers of ``indices``.

        Raises:
            UserError: indices have another shape, are not whole numbers or are out of range, or
                ``layers`` is larger than Q.
        """
        indices = self._check_indices(indices)
        given = indices.shape[2]
        if layers is not None and not 1 <= layers <= given:
            raise UserError(f"layers must be from 1 to {given}, not {layers}")
        return self.look_up(indices[:, :, :layers].to(self.books.device))

    def look_up(self, indices: Tensor) -> Tensor:
        """Does the same as ``decode`` for indices that are right, without a look at them."""
        rows = self.books.look_up(indices.flatten(0, 1))
        return self._restore(rows.unflatten(0, indices.shape[:2]).movedim(2, 1), None)

    def _check_latents(self, latents: Tensor) -> tuple[int, int]:
        """Returns B and T of latents; raises UserError if their shape does not fit."""
        check_is_tensor(latents, "latents")
        wanted = f"(B, T, {self.dim})" if self.channel_last else f"(B, {self.dim}, T)"
        if latents.dim() != 3 or latents.shape[2 if self.channel_last else 1] != self.dim:
            raise UserError(
                f"latents must be {wanted}, as channel_last={self.channel_last} says, not "
                f"{tuple(latents.shape)}"
            )
        return latents.shape[0], latents.shape[1 if self.channel_last else 2]

    def tables(self) -> Iterator[Tensor]:
        """Yields tensors that tell the latents of indices, for a digest."""
        yield from self.books.tables()
        if self.project_out is not None:
            yield from self.project_out.parameters()

    def _project(self, latents: Tensor) -> Tensor:
        """Returns latents as ``(B, groups * d, T)``, in the range and the dtype of the codes."""
        latents = (latents.mT if self.channel_last else latents).to(self.books.dtype)
        if self.project_in is not None:
            latents = self.project_in(latents)
        return self.books.bound(latents)

    def _restore(self, latents: Tensor, valid: Tensor | None) -> Tensor:
        """Returns sums of codes ``(B, groups * d, T)`` as latents, 0 where not ``valid``."""
        if self.project_out is not None:
            latents = self.project_out(latents)
            latents = latents if valid is None else torch.where(valid[:, None], latents, 0)
        return latents.mT if self.channel_last else latents

    def _draw_layers(self, clips: int, length: int, valid: Tensor | None) -> Tensor | None:
        """Draws how many layers quantize each row, ``(N,)``, equal within a clip; None is all."""
        if not self.training or self.config.dropout == 0:
            return None
        device = self.books.device
        few = torch.randint(1, self.config.num_quantizers + 1, (clips,), device=device)
        dropped = torch.rand(clips, device=device) < self.config.dropout
        layers = torch.where(dropped, few, self.config.num_quantizers)[:, None].expand(-1, length)
        return layers.flatten() if valid is None else layers[valid]

    def _descend(
        self,
        rows: Tensor,
        search: Search,
        taken: Tensor | None = None,
        temperature: float = 0.0,
    ) -> Iterator[LayerResult]:
        """Yields the result of each layer for rows ``(N, groups * d)``, from the first layer.

        Args:
            taken: ``(N, Q)``, false where a layer does not quantize a row; None is all true.
        """
        groups = self.config.groups
        parts = list(rows.split(self.width, 1))
        before = [rows.new_zeros(()).expand_as(part) for part in parts]
        for layer in range(self.config.num_quantizers):
            group = layer % groups
            given = parts[group]
            found, chosen = search.find(given, layer, before[group], temperature)
            if taken is not None:
                chosen *= taken[:, layer, None]
            if search.looks_back:
                before[group] = before[group] + chosen
            parts[group] = given - chosen
            yield LayerResult(layer, given, found, parts[group])

    def _search(
        self, rows: Tensor, layers: Tensor | None, temperature: float, differentiated: bool
    ) -> Found:
        """Quantizes rows, each by its number of ``layers`` ``(N,)``; adds up by code."""
        search = self.books.search()
        count, codes, width = self.config.num_quantizers, self.config.codebook_size, self.width
        every = torch.arange(count, device=rows.device)
        taken = None if layers is None else layers[:, None] > every
        weights = rows.new_ones(len(rows), count) if taken is None else taken.to(rows.dtype)
        weights = make_mean_weights(weights) / width
        indices = torch.empty(len(rows), count, dtype=torch.long, device=rows.device)
        loss_gradient = torch.zeros_like(rows) if differentiated else None
        loss, counts = rows.new_zeros(()), rows.new_zeros(count, codes)
        sums = None
        if self.training and self.books.learns_from_sums:
            sums = rows.new_zeros(count, codes, width)
        for block in cut_into_blocks(rows, search.row_size):
            here = None if taken is None else taken[block]
            for step in self._descend(rows[block], search, here, temperature):
                layer, given, found, left = step.layer, step.given, step.found, step.left
                indices[block, layer] = found
                if here is not None:
                    given, found = given[here[:, layer]], found[here[:, layer]]
                counts[layer] += torch.bincount(found, minlength=codes)
                if sums is not None:
                    sums[layer].index_add_(0, found, given)
                if not self.books.commits:
                    continue
                weight = weights[block, layer]
                loss += left.square().sum(1) @ weight
                if loss_gradient is not None:
                    start = layer % self.config.groups * width
                    part = loss_gradient[block, start : start + width]
                    part.addcmul_(left, weight[:, None], value=2)
        if taken is not None:
            indices.masked_fill_(~taken, NO_CODE)
        return Found(indices, weights, loss, loss_gradient, counts, sums)

    def _check_indices(self, indices: Tensor) -> Tensor:
        """Returns indices as int64, in which -1 can be compared with them."""
        check_is_indices(indices, "indices")
        indices = indices.long()
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
        return indices
