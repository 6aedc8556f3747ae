"""The codebooks that a config names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from motion.quantizer.books import Books
from motion.quantizer.codebooks import Codebooks
from motion.quantizer.finite_scalar import GridCodes
from motion.quantizer.implicit import ImplicitCodebooks
from motion.quantizer.learned import LearnedCodebooks
from motion.quantizer.lookup_free import SignCodes
from motion.quantizer.simvq import TurnedCodebooks
from motion.quantizer_config import QuantizerConfig, QuantizerKind

KINDS: Mapping[QuantizerKind, Callable[[QuantizerConfig, int], Books]] = {
    "ema": Codebooks,
    "learned": LearnedCodebooks,
    "simvq": TurnedCodebooks,
    "implicit": ImplicitCodebooks,
    "fsq": GridCodes,
    "lfq": SignCodes,
}


def make_books(config: QuantizerConfig, dim: int) -> Books:
    """Returns the codebooks for groups of latents of ``dim`` channels each."""
    return KINDS[config.kind](config, dim)
