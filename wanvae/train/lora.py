"""Training of a LoRA: small matrices change the convolutions, and nothing else is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wanvae.checkpoints.lora import Change, load_lora
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.config import check
from wanvae.errors import UserError
from wanvae.model import WanVAE
from wanvae.nn import CausalConv

Part = Literal["decoder", "encoder", "both"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A LoRA, which is trained instead of the weights of a model (Hu et al., arXiv 2106.09685).

    Attributes:
        rank: columns of one matrix of each convolution, and rows of the other matrix. For the
            decoder of Wan2.1 rank 4 is a file of 4 MB. Without a rank there is no LoRA, and the
            weights of the model are trained.
        alpha: the product of both matrices is multiplied by alpha / rank; by default alpha is the
            rank.
        part: what is trained. "decoder" leaves latents as they are, as freeze_encoder does.
    """

    rank: int | None = None
    alpha: float | None = None
    part: Part = "decoder"

    def __post_init__(self) -> None:
        if self.rank is None:
            check(self.alpha is None, "lora.alpha", self.alpha, "left out without lora.rank")
            check(self.part == "decoder", "lora.part", self.part, "left out without lora.rank")
            return
        check(self.rank >= 1, "lora.rank", self.rank, "at least 1")
        positive = self.alpha is None or 0 < self.alpha < math.inf
        check(positive, "lora.alpha", self.alpha, "above 0 and finite")

    @property
    def scale(self) -> float:
        """What the product of both matrices is multiplied by."""
        return 1.0 if self.rank is None or self.alpha is None else self.alpha / self.rank


class LowRankChange(nn.Module):
    """Adds ``scale * up @ down`` to a weight ``(O, ...)``.

    At first ``up`` is 0 and nothing changes. The sum is the only weight that a layer sees. So all
    that a layer does, with whole clips, streams and tiles, is as with a weight of its own.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        ones = (1,) * (weight.dim() - 2)
        self.down = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank, *ones))
        self.scale = scale
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        # Autocast would round the product. It knows no meta device.
        kind = "cpu" if weight.is_meta else weight.device.type
        with torch.autocast(kind, enabled=False):
            product = self.up.flatten(1) @ self.down.flatten(1)
        return torch.add(weight, product.view(weight.shape), alpha=self.scale)


def add_lora(vae: WanVAE, config: LoraConfig) -> None:
    """Freezes ``vae`` and gives its convolutions, or the ones of a half, a LoRA to be trained.

    A layer with fewer channels than the rank gets the rank that its weight has.

    Raises:
        UserError: the LoRA would be no smaller than the weights that it changes.
    """
    if config.rank is None:
        raise RuntimeError("a LoRA without a rank")
    convolutions = list(find_convolutions(vae, config.part))
    ranks = [min(config.rank, *as_matrix(conv.weight)) for conv in convolutions]
    size = sum(rank * sum(as_matrix(c.weight)) for c, rank in zip(convolutions, ranks, strict=True))
    changed = sum(conv.weight.numel() for conv in convolutions)
    if size >= changed:
        raise UserError(
            f"lora.rank is {config.rank}: such a LoRA has {size} parameters, no fewer than the "
            f"{changed} of the weights that it changes; choose a smaller rank, or leave lora.rank "
            "out to train the weights themselves"
        )
    vae.requires_grad_(False)
    for conv, rank in zip(convolutions, ranks, strict=True):
        change = LowRankChange(conv.weight, rank, config.scale)
        parametrize.register_parametrization(conv, "weight", change)
    # A frozen encoder stays in evaluation mode.
    vae.train(vae.training)


def find_convolutions(vae: WanVAE, part: Part) -> Iterator[CausalConv]:
    """Yields the convolutions of one half of a model, or of both."""
    if part != "decoder":
        yield from convolutions_in(vae.encoding_modules())
    if part != "encoder":
        yield from convolutions_in(vae.decoding_modules())


def convolutions_in(modules: tuple[nn.Module, ...]) -> Iterator[CausalConv]:
    for layer in nn.ModuleList(modules).modules():
        if isinstance(layer, CausalConv):
            yield layer


def as_matrix(weight: Tensor) -> tuple[int, int]:
    """Returns the outputs of a weight ``(O, ...)``, and the inputs of each output."""
    return len(weight), weight[0].numel()


def find_changes(vae: WanVAE) -> dict[str, LowRankChange]:
    """Returns what is trained of a model with a LoRA, by the names of the layers."""
    changes = {}
    for name, layer in vae.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            change = layer.get_submodule("parametrizations.weight.0")
            assert isinstance(change, LowRankChange)
            changes[name] = change
    return changes


def changes_of(vae: WanVAE) -> dict[str, Change]:
    """Returns the LoRA of a model, as files of LoRAs have it."""
    return {
        name: Change(change.down.detach(), change.up.detach(), change.scale)
        for name, change in find_changes(vae).items()
    }


@torch.no_grad()
def load_changes(vae: WanVAE, path: str | PathLike[str]) -> None:
    """Copies a LoRA from a file into the LoRA of ``vae``.

    Raises:
        CheckpointError: the file cannot be read, or has a LoRA of other layers, ranks or scales.
    """
    ours, theirs = changes_of(vae), load_lora(path)
    alike = ours.keys() == theirs.keys() and all(
        change.down.shape == theirs[name].down.shape
        and change.up.shape == theirs[name].up.shape
        and math.isclose(change.scale, theirs[name].scale, rel_tol=1e-6)
        for name, change in ours.items()
    )
    if not alike:
        raise CheckpointError(f"{path} holds a LoRA of other layers, of another rank or alpha")
    for name, change in ours.items():
        # These share the memory of the parameters.
        change.down.copy_(theirs[name].down)
        change.up.copy_(theirs[name].up)


@torch.no_grad()
def merged(vae: WanVAE) -> WanVAE:
    """Returns a model without a LoRA that computes the same as ``vae``, which has one.

    Both models share the tensors that the LoRA does not change.
    """
    with torch.device("meta"):
        plain = WanVAE(vae.config)
    tensors = {}
    for name in plain.state_dict():
        layer, _, leaf = name.rpartition(".")
        tensors[name] = getattr(vae.get_submodule(layer), leaf)
    plain.load_state_dict(tensors, assign=True)
    return plain.train(vae.training)


def last_trained_weight(vae: WanVAE) -> Tensor:
    """Returns what is trained of the last layer that is trained, of a decoder or an encoder."""
    layers = vae.decoder.head[-1], vae.conv1
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            return layer.get_parameter("parametrizations.weight.0.up")
    weights = [layer.get_parameter("weight") for layer in layers]
    return next(weight for weight in weights if weight.requires_grad)
