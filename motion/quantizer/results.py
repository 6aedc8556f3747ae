"""The results of a quantizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choices:
    """Which codes the latents of a batch chose: what codebooks learn from.

    Attributes:
        rows: ``(N, C)``, the latents.
        indices: ``(N, Q)``, the codes that they chose; -1 where a layer leaves a row as it is.
        counts: ``(Q, K)``, how many rows chose each code.
        sums: ``(Q, K, C)``, the sums of what the layer was given, by code; None if the codebooks do
            not learn from them.
    """

    rows: Tensor
    indices: Tensor
    counts: Tensor
    sums: Tensor | None


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
        latents: ``(B, C, T)``, sums of codes. Gradients pass to the input of the quantizer as its
            ``estimator`` says.
        indices: ``(B, T, Q)``, int64, the codes of each layer; -1 where there is no code.
        commitment_loss: scalar; the squared error after each layer, averaged over channels and
            latents, then over layers. Its gradient moves latents. 0 for "fsq", which needs none.
        perplexity: ``(Q,)``, the exponential of the entropy of the codes of each layer, at most K.
            In training mode it counts the batches of all processes.
        code_use: ``(Q,)``, the fraction of the codes of each layer that were used. In training mode
            it counts the batches of all processes.
        choices: what ``ResidualVQ.learn`` takes; None in evaluation.
        codebook_loss: scalar; the same error with a gradient that moves codes. None for codes that
            do not learn by gradients, and where no gradients are kept.
        regularization: scalar; the losses that the config of the quantizer weights: orthogonality,
            and the entropy of "lfq". None without such losses, and where no gradients are kept.
    """

    latents: Tensor
    indices: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    code_use: Tensor
    choices: Choices | None = None
    codebook_loss: Tensor | None = None
    regularization: Tensor | None = None
