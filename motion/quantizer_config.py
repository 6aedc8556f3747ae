"""The configuration of quantizers, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar, Literal

from wanvae.engine.config import check, check_option

QuantizerKind = Literal["ema", "learned", "simvq", "implicit", "fsq", "lfq"]
Estimator = Literal["straight_through", "rotation"]
Metric = Literal["euclidean", "cosine"]
Initialization = Literal["kmeans", "samples"]

# Kinds whose codes are tables that do not depend on the layers before.
TABLES: tuple[QuantizerKind, ...] = ("ema", "learned", "simvq")
# Kinds whose codes learn by gradients.
BY_GRADIENT: tuple[QuantizerKind, ...] = ("learned", "simvq", "implicit")


@dataclass(frozen=True, kw_only=True)
class FSQConfig:
    """Finite scalar quantization.

    Attributes:
        levels: the number of values of each channel. Their product is ``codebook_size``.
    """

    levels: tuple[int, ...] = (8, 8, 8)

    def __post_init__(self) -> None:
        expected = "one or more numbers of at least 2"
        check(bool(self.levels) and min(self.levels) >= 2, "levels", self.levels, expected)


@dataclass(frozen=True, kw_only=True)
class LFQConfig:
    """The entropy loss of lookup-free quantization.

    Attributes:
        entropy: weight of the loss: the mean entropy of the codes of each latent, minus
            ``diversity`` times the entropy of the codes of the batch.
        diversity: weight of the entropy of the batch.
        sharpness: codes of a latent have the probabilities of a softmax over the products of latent
            and codes, times twice this number.
    """

    entropy: float = 0.1
    diversity: float = 1.0
    sharpness: float = 100.0

    def __post_init__(self) -> None:
        for name in ("entropy", "diversity"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        check(self.sharpness > 0, "sharpness", self.sharpness, "above 0")


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig:
    """The networks that compute the codes of implicit codebooks.

    Attributes:
        depth: residual blocks of the network of each layer.
        hidden: channels inside a block; None is the number of channels of the codes.
    """

    depth: int = 2
    hidden: int | None = None

    def __post_init__(self) -> None:
        check(self.depth >= 0, "depth", self.depth, "at least 0")
        check(self.hidden is None or self.hidden >= 1, "hidden", self.hidden, "at least 1")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """A residual quantizer; the defaults are MoMask's.

    Attributes:
        kind: what the codes of a layer are.

            - "ema": codebooks that are moving averages of the latents (van den Oord et al., arXiv
              1711.00937, appendix A.1);
            - "learned": codebooks that learn by the gradient of the codebook loss (the same paper,
              section 3.2);
            - "simvq": fixed random codebooks, each with a matrix that learns by this gradient (Zhu
              et al., arXiv 2411.02038);
            - "implicit": codebooks that a network computes for each latent from what the layers
              before found, as QINCo (Huijben et al., arXiv 2401.14732);
            - "fsq": each of a few channels is rounded to one of some values (Mentzer et al., arXiv
              2309.15505);
            - "lfq": the signs of a few channels (Yu et al., arXiv 2310.05737).
        num_quantizers: the number of codes of a token. Each layer quantizes what the layers before
            it left.
        codebook_size: codes in each codebook. For "fsq" it is the product of its levels, for "lfq"
            a power of 2.
        groups: the channels are cut into so many groups, which are quantized on their own: code q
            is of group q % groups, and each group has num_quantizers / groups layers (grouped
            residual VQ: Yang et al., arXiv 2305.02765).
        codebook_dim: channels of the codes of a group, if other than the channels of its latents: a
            matrix leads to them and another one back, as in ViT-VQGAN (Yu et al., arXiv
            2110.04627). "fsq" and "lfq" know their channels themselves.
        shared_codebook: whether all layers of a group use one codebook; "ema" and "learned".
        metric: how the nearest code is found: by distance, or by the angle between latent and code,
            which "ema", "learned" and "simvq" can.
        estimator: the gradient of the quantized latents with respect to the latents: unchanged
            (straight_through), or turned and scaled as the latent is to its code (rotation: Fifty
            et al., arXiv 2410.06424), once for all layers. "fsq" and "lfq" have straight_through.
        decay: decay of the moving averages: "ema" learns its codes by them, "learned" counts how
            often its codes are chosen; 1 keeps both as they are.
        initialization: what the codes are before the first training batch is quantized: the means
            of k-means clusters of its latents (kmeans), or some of its latents (samples). "simvq"
            only takes the size of the latents, "fsq" and "lfq" take nothing.
        kmeans_iterations: rounds of k-means.
        revive_below: while training, codes of "ema" and "learned" are replaced by random latents
            where the moving average of the number of latents of a batch that chose them is less; 0
            never does.
        dropout: probability, for each clip, that while training only a random number of layers,
            the first ones, quantize it.
        temperature: while training codes are drawn with probabilities in proportion to
            exp(-distance ** 2 / temperature), or exp(cosine / temperature); 0 takes the nearest.
            "ema", "learned" and "simvq" can.
        orthogonality: weight of a loss that keeps the codes of a codebook at right angles: the mean
            squared cosine between them (Shin et al., arXiv 2112.00384, equation 2). For the kinds
            that learn by gradients.
        fsq: more of "fsq".
        lfq: more of "lfq".
        implicit: more of "implicit".
    """

    RENAMED: ClassVar[Mapping[str, str]] = {
        "layers": "num_quantizers",
        "codes": "codebook_size",
        "shared": "shared_codebook",
        "initialisation": "initialization",
    }

    kind: QuantizerKind = "ema"
    num_quantizers: int = 6
    codebook_size: int = 512
    groups: int = 1
    codebook_dim: int | None = None
    shared_codebook: bool = False
    metric: Metric = "euclidean"
    estimator: Estimator = "straight_through"
    decay: float = 0.99
    initialization: Initialization = "kmeans"
    kmeans_iterations: int = 10
    revive_below: float = 1.0
    dropout: float = 0.2
    temperature: float = 0.0
    orthogonality: float = 0.0
    fsq: FSQConfig = field(default_factory=FSQConfig)
    lfq: LFQConfig = field(default_factory=LFQConfig)
    implicit: ImplicitConfig = field(default_factory=ImplicitConfig)

    def __post_init__(self) -> None:
        check_option("kind", self.kind, QuantizerKind)
        for name in ("num_quantizers", "codebook_size", "kmeans_iterations", "groups"):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and int(value) >= 1
            check(whole, name, value, "a whole number, at least 1")
        for name in ("revive_below", "temperature", "orthogonality"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("decay", "dropout"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        check_option("metric", self.metric, Metric)
        check_option("estimator", self.estimator, Estimator)
        check_option("initialization", self.initialization, Initialization)
        whole = self.num_quantizers % self.groups == 0
        check(whole, "groups", self.groups, f"a divisor of num_quantizers, {self.num_quantizers}")
        width = self.codebook_dim
        check(width is None or width >= 1, "codebook_dim", width, "at least 1")
        self._check_kind()

    def _check_kind(self) -> None:
        """Raises UserError if an option is not for this kind."""
        kind, size = self.kind, self.codebook_size
        if kind == "fsq":
            product = math.prod(self.fsq.levels)
            expected = f"the product of fsq.levels {self.fsq.levels}, {product}"
            check(size == product, "codebook_size", size, expected)
        if kind == "lfq":
            power = size > 1 and size.bit_count() == 1
            check(power, "codebook_size", size, "a power of 2, 2 or more, for lfq")
        fits = {
            "codebook_dim": (self.codebook_dim is None, (*TABLES, "implicit")),
            "estimator": (self.estimator == "straight_through", (*TABLES, "implicit")),
            "shared_codebook": (not self.shared_codebook, ("ema", "learned")),
            "metric": (self.metric == "euclidean", TABLES),
            "temperature": (self.temperature == 0, TABLES),
            "orthogonality": (self.orthogonality == 0, BY_GRADIENT),
        }
        for name, (unused, kinds) in fits.items():
            expected = f"left as it is for {kind}: it is for {', '.join(kinds)}"
            check(unused or kind in kinds, name, getattr(self, name), expected)

    @property
    def stores_codes(self) -> bool:
        """Whether there is a number for each channel of each code."""
        return self.kind not in ("fsq", "lfq")

    def channels(self, dim: int) -> int:
        """Returns the channels of the codes of a group, for latents of ``dim`` channels.

        Raises:
            UserError: the groups do not divide ``dim``.
        """
        check(dim % self.groups == 0, "groups", self.groups, f"a divisor of {dim} channels")
        if self.kind == "fsq":
            return len(self.fsq.levels)
        if self.kind == "lfq":
            return self.codebook_size.bit_length() - 1
        return dim // self.groups if self.codebook_dim is None else self.codebook_dim
