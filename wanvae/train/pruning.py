"""A smaller encoder or decoder from a larger one: some blocks, and some channels of each layer.

First blocks are chosen, evenly spread over each stage. Then channels are chosen. Layers that add to
each other have to keep the same channels, so all tensors that share channels are found first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from wanvae.config import Half
from wanvae.errors import UserError
from wanvae.model import WanVAE
from wanvae.nn import (
    AttentionBlock,
    AverageDown,
    CausalConv,
    Decoder,
    Downsample,
    DuplicateUp,
    Encoder,
    Patchify,
    Resample,
    Residual,
    ResidualStage,
    RMSNorm,
    Sequential,
    Unpatchify,
)
from wanvae.nn.residual import SequentialResidual

# Norms that treat each channel alone, or all channels of a position alike.
PRUNABLE_NORMS = ("rms", "layer", "batch", "none")
# The energy of a channel, relative to the largest, below which it adds nothing to the others.
NOTHING = 1e-9


@torch.no_grad()
def prune(teacher: WanVAE, student: WanVAE, half: Half) -> None:
    """Makes a half of ``student`` a smaller copy of the half of ``teacher``.

    Raises:
        UserError: the half of the student is wider, or has blocks that cannot be pruned.
    """
    check_prunable(teacher)
    copy_channels(half_of(shallow_copy(teacher, student, half), half), half_of(student, half))


@torch.no_grad()
def shallow_copy(teacher: WanVAE, student: WanVAE, half: Half) -> WanVAE:
    """Returns a model whose half has the channels of ``teacher`` and the blocks of ``student``."""
    if half == "decoder":
        changes = {"decoder_res_blocks": student.config.blocks_of_decoder}
    else:
        blocks = teacher.config.blocks_of_decoder
        changes = {
            "num_res_blocks": student.config.num_res_blocks,
            "decoder_res_blocks": blocks,
        }
    shallow = WanVAE(replace(teacher.config, **changes)).to(teacher.device, teacher.decode_dtype)
    copy_blocks(half_of(teacher, half), half_of(shallow, half))
    return shallow.eval()


@dataclass(frozen=True)
class HalfOfModel:
    """The modules of one half of a VAE.

    Attributes:
        coder: the encoder or the decoder.
        latents: the 1-conv between the coder and latents.
    """

    coder: Encoder | Decoder
    latents: CausalConv

    @property
    def modules(self) -> nn.ModuleList:
        """All modules, so that parameters have names."""
        return nn.ModuleList([self.coder, self.latents])

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The layers in the order they run."""
        layers = self.coder.layers()
        decodes = isinstance(self.coder, Decoder)
        return (self.latents, *layers) if decodes else (*layers, self.latents)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The layers of each stage. All but the last stage end with a layer that resamples."""
        row = self.coder.upsamples if isinstance(self.coder, Decoder) else self.coder.downsamples
        stages: list[list[nn.Module]] = [[]]
        for layer in row:
            if isinstance(layer, ResidualStage):
                stages[-1].extend(layer.body)
            elif isinstance(layer, Sequential):  # the last stage of a decoder with shortcuts
                stages[-1].extend(layer.get_submodule("upsamples").children())
            else:
                stages[-1].append(layer)
            if isinstance(stages[-1][-1], Resample):
                stages.append([])
        return stages


def half_of(vae: WanVAE, half: Half) -> HalfOfModel:
    """Returns the modules of one half of a model."""
    if half == "decoder":
        return HalfOfModel(vae.decoder, vae.conv2)
    return HalfOfModel(vae.encoder, vae.conv1)


def check_prunable(vae: WanVAE) -> None:
    """Raises UserError if channels of a model cannot be chosen one by one."""
    config = vae.config
    reason = None
    if config.block == "dense":
        reason = "its blocks are dense"
    elif config.norm not in PRUNABLE_NORMS:
        reason = f"its norm is {config.norm!r}, which treats groups of channels"
    elif config.alpha_decoder:
        reason = "it has a second decoder, of alpha"
    if reason is not None:
        raise UserError(
            f"channels of the teacher cannot be chosen, because {reason}: set distill.start to new"
        )


# Blocks


def copy_blocks(teacher: HalfOfModel, student: HalfOfModel) -> None:
    """Copies all that two halves of one width have in common; they may differ in depth.

    A student with fewer blocks gets the first and the last block of each stage, and blocks evenly
    spread between them. Blocks that the teacher lacks start as the identity.
    """
    rows = [
        ([*half.coder.middle, *half.coder.head, half.coder.conv1, half.latents], *half.stages)
        for half in (teacher, student)
    ]
    for theirs, ours in zip(*rows, strict=True):
        for source, target in matching(theirs, ours):
            if source is None:
                begin_as_identity(target)
            else:
                target.load_state_dict(source.state_dict())


def matching(
    teacher: list[nn.Module], student: list[nn.Module]
) -> Iterator[tuple[nn.Module | None, nn.Module]]:
    """Yields each layer of the student, after the layer of the teacher that it starts as."""
    if len(teacher) == len(student):
        yield from zip(teacher, student, strict=True)
        return
    theirs, their_rest = in_units(teacher)
    ours, our_rest = in_units(student)
    for number, unit in enumerate(ours):
        place = place_of(number, len(ours), len(theirs))
        sources = [None] * len(unit) if place is None else theirs[place]
        yield from zip(sources, unit, strict=True)
    yield from zip(their_rest, our_rest, strict=True)


def in_units(stage: list[nn.Module]) -> tuple[list[list[nn.Module]], list[nn.Module]]:
    """Returns each block of a stage with the attention after it, and the layer that resamples."""
    units: list[list[nn.Module]] = []
    rest = []
    for layer in stage:
        if isinstance(layer, Resample):
            rest.append(layer)
        elif isinstance(layer, AttentionBlock):
            units[-1].append(layer)
        else:
            units.append([layer])
    return units, rest


def place_of(number: int, count: int, places: int) -> int | None:
    """Returns which of ``places`` blocks one of ``count`` blocks starts as; None is no block."""
    if count > places:
        return number if number < places else None
    return 0 if count == 1 else round(number * (places - 1) / (count - 1))


def begin_as_identity(block: nn.Module) -> None:
    """Makes a residual block add nothing."""
    *_, last = (layer for layer in block.modules() if isinstance(layer, CausalConv))
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


# Channels


@dataclass(eq=False)
class Channels:
    """Channels that some tensors share.

    Attributes:
        width: how many channels there are.
        same: the channels that these ones turned out to be; None if they stand for themselves.
    """

    width: int
    same: Channels | None = None

    def found(self) -> Channels:
        """Returns the channels that stand for these ones."""
        return self if self.same is None else self.same.found()


@dataclass(frozen=True)
class Use:
    """What an axis of a tensor has channels of.

    Attributes:
        name: of the tensor.
        axis: 0 or 1.
        parts: channels that follow each other along the axis.
        gain: the name of the tensor that each channel is multiplied with before it is read.
    """

    name: str
    axis: int
    parts: tuple[Channels, ...]
    gain: str | None = None


@dataclass
class ChannelMap:
    """Which channels all tensors of a half have, and which channels belong together.

    Attributes:
        uses: of all tensors.
        ties: two groups of channels between which a shortcut without parameters moves values. If
            one of them has k times the channels, k channels in a row belong to one of the other.
        attention: the name of each layer of queries, keys and values, and the channels of queries.
        gains: the name of the gain of each RMS norm, and its channels.
    """

    names: dict[int, str]
    uses: list[Use] = field(default_factory=list)
    ties: list[tuple[Channels, Channels]] = field(default_factory=list)
    attention: list[tuple[str, Channels]] = field(default_factory=list)
    gains: list[tuple[str, Channels]] = field(default_factory=list)

    def pass_through(self, layers: Iterable[nn.Module], channels: Channels | None) -> Channels:
        """Returns the channels after some layers in a row.

        Args:
            channels: before the first layer; None if a convolution comes first.
        """
        gain = None
        for layer in layers:
            if isinstance(layer, CausalConv):
                channels, gain = self.convolve(layer, channels, gain), None
            elif isinstance(layer, Resample):
                channels, gain = self.resample(layer, need(channels)), None
            elif isinstance(layer, AttentionBlock):
                self.attend(layer, need(channels))
            elif isinstance(layer, SequentialResidual):
                channels = self.add(layer, need(channels))
            elif isinstance(layer, Sequential):
                channels = self.pass_through(layer, channels)
            elif isinstance(layer, Residual):
                raise RuntimeError(f"no channels are known of {type(layer).__name__}")
            elif not isinstance(layer, (Patchify, Unpatchify)):
                gain = self.follow(layer, channels)
        return need(channels)

    def convolve(
        self, layer: CausalConv, channels: Channels | None, gain: str | None = None
    ) -> Channels:
        """Returns the channels after a convolution."""
        name = self.names[id(layer)]
        written, read = layer.weight.shape[:2]
        before = Channels(read) if channels is None else channels
        after = Channels(written)
        self.uses.append(Use(f"{name}.weight", 1, (before,), gain))
        self.write(name, (after,))
        return after

    def write(self, name: str, parts: tuple[Channels, ...]) -> None:
        """Notes what a convolution writes."""
        self.uses.append(Use(f"{name}.weight", 0, parts))
        self.uses.append(Use(f"{name}.bias", 0, parts))

    def follow(self, layer: nn.Module, channels: Channels | None) -> str | None:
        """Notes a norm; returns the name of its gain, if it has one. Others have no tensors."""
        gain = None
        for leaf, tensor in layer.state_dict().items():
            if tensor.dim():
                name = f"{self.names[id(layer)]}.{leaf}"
                self.uses.append(Use(name, 0, (need(channels),)))
                gain = name if leaf in ("gamma", "weight") else gain
        if isinstance(layer, RMSNorm):
            self.gains.append((f"{self.names[id(layer)]}.gamma", need(channels)))
        return gain

    def add(self, layer: SequentialResidual, channels: Channels) -> Channels:
        """Returns the channels after a residual block or a stage with a shortcut."""
        after = self.pass_through(layer.body, channels)
        if isinstance(layer.shortcut, (AverageDown, DuplicateUp)):
            self.ties.append((channels, after))
        elif isinstance(layer.shortcut, nn.Identity):
            unite(channels, after)
        else:
            unite(self.pass_through([layer.shortcut], channels), after)
        return after

    def attend(self, layer: AttentionBlock, channels: Channels) -> None:
        """Notes attention. Queries and keys share their channels, and values have others."""
        gain = self.follow(layer.norm, channels)
        name = self.names[id(layer.to_qkv)]
        compared, carried = Channels(channels.width), Channels(channels.width)
        self.uses.append(Use(f"{name}.weight", 1, (channels,), gain))
        self.write(name, (compared, compared, carried))
        self.attention.append((name, compared))
        unite(channels, self.convolve(layer.proj, carried))

    def resample(self, layer: Resample, channels: Channels) -> Channels:
        """Returns the channels after a layer that resamples.

        The first frame skips the convolution along time, so that one reads what it writes.
        """
        if layer.time_conv is None:
            return self.convolve(layer.conv, channels)
        name = self.names[id(layer.time_conv)]
        halves = isinstance(layer, Downsample)
        if halves:  # the convolution along time comes last
            channels = self.convolve(layer.conv, channels)
        self.uses.append(Use(f"{name}.weight", 1, (channels,)))
        self.write(name, (channels,) * (1 if halves else 2))
        return channels if halves else self.convolve(layer.conv, channels)


def need(channels: Channels | None) -> Channels:
    """Returns channels that must be known."""
    if channels is None:
        raise RuntimeError("the first layer with channels is no convolution")
    return channels


def unite(some: Channels, others: Channels) -> None:
    """Notes that two groups of channels are the same, because they are added."""
    some, others = some.found(), others.found()
    if some is not others:
        others.same = some


def map_channels(half: HalfOfModel) -> ChannelMap:
    """Returns which channels the tensors of a half share."""
    found = ChannelMap({id(module): name for name, module in half.modules.named_modules()})
    found.pass_through(half.layers, None)
    return found


def copy_channels(
    teacher: HalfOfModel,
    student: HalfOfModel,
    observe: Callable[[ChannelMap], Mapping[Channels, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Copies the most important channels of each layer of a half into a half of the same layers.

    Args:
        observe: gives the mean products of channels with each other, ``(C, C)``, of some groups of
            channels: what they are instead of how large the weights are that write them.

    Returns:
        The places of the channels that are kept of what a layer writes, by the name of the layer.

    Raises:
        UserError: the student is wider.
    """
    tensors = teacher.modules.state_dict()
    targets = student.modules.state_dict()
    channel_map = map_channels(teacher)
    weights = measure(channel_map, tensors)
    if observe is not None:
        weights = weights.seen_as(observe(channel_map))
    kept = choose_channels(channel_map, weights, targets)
    by_name: dict[str, list[Use]] = {}
    for use in channel_map.uses:
        by_name.setdefault(use.name, []).append(use)
    for name, tensor in tensors.items():
        for use in by_name.get(name, ()):
            tensor = tensor.index_select(use.axis, indices_of(use, kept))
        targets[name].copy_(tensor)
    for name, channels in channel_map.attention:
        # Scores are divided by the square root of the number of channels.
        count = len(kept[channels.found()])
        for leaf in ("weight", "bias"):
            targets[f"{name}.{leaf}"][:count] *= math.sqrt(count / channels.width)
    for name, channels in channel_map.gains:
        # The norm divides by the root mean square, which is larger over the channels that are kept.
        group = channels.found()
        energy = weights.written[group]
        if energy.any():
            ratio = energy[kept[group]].mean() / energy.mean()
            targets[name] *= ratio.sqrt().to(targets[name].dtype)
    return {
        use.name.removesuffix(".weight"): indices_of(use, kept)
        for use in channel_map.uses
        if use.axis == 0 and use.name.endswith(".weight")
    }


def indices_of(use: Use, kept: dict[Channels, Tensor]) -> Tensor:
    """Returns the places of the kept channels along an axis."""
    starts = accumulate((part.width for part in use.parts), initial=0)
    parts = zip(use.parts, starts, strict=False)
    return torch.cat([kept[part.found()] + start for part, start in parts])


@dataclass(frozen=True)
class Weights:
    """The sums of squares of all weights of each channel, ``(width,)`` in float64.

    Attributes:
        written: of the weights that write the channels; 1 for the input of a half.
        read: of the weights that read the channels; 1 for the output of a half.
        products: of some groups, mean products of channels with each other, ``(width, width)``.
    """

    written: dict[Channels, Tensor]
    read: dict[Channels, Tensor]
    products: Mapping[Channels, Tensor] = field(default_factory=dict)

    def seen_as(self, products: Mapping[Channels, Tensor]) -> Weights:
        """Returns the weights of channels of which the mean products are known."""
        squares = {group: each.diagonal() for group, each in products.items()}
        return Weights(self.written | squares, self.read, products)

    def importance(self, channels: Channels) -> Tensor:
        """Returns the importance of each channel, squared.

        It is the norm of all weights that write the channel, times the norm of all weights that
        read it. The gain of a norm before a weight is counted with the weight.
        """
        return self.written[channels] * self.read[channels]


def measure(channel_map: ChannelMap, tensors: dict[str, Tensor]) -> Weights:
    """Returns how large the weights of each channel are."""
    sums: tuple[dict[Channels, Tensor], dict[Channels, Tensor]] = {}, {}
    for use in channel_map.uses:
        tensor = tensors[use.name]
        if tensor.dim() == 1 or not use.name.endswith(".weight"):
            continue
        squares = tensor.double().movedim(use.axis, 0).flatten(1).square().sum(1)
        if use.gain is not None:
            squares = squares * tensors[use.gain].flatten().double().square()
        shares = squares.chunk(len(use.parts))
        for part, share in zip(use.parts, shares, strict=True):
            group = part.found()
            sums[use.axis][group] = sums[use.axis].get(group, 0) + share
    for some, others in (sums, sums[::-1]):
        for group, total in others.items():
            some.setdefault(group, torch.ones_like(total))
    return Weights(*sums)


def choose_channels(
    channel_map: ChannelMap, weights: Weights, student: dict[str, Tensor]
) -> dict[Channels, Tensor]:
    """Returns the places of the channels that are kept, sorted, for each group of channels.

    Args:
        student: the tensors, which say how many channels are kept.
    """
    wanted = {
        part.found(): student[use.name].shape[use.axis] // len(use.parts)
        for use in channel_map.uses
        for part in use.parts
    }
    kept = {}
    for groups in tied(channel_map, wanted):
        kept |= choose_together(groups, wanted, weights)
    return kept


def tied(channel_map: ChannelMap, groups: Iterable[Channels]) -> list[list[Channels]]:
    """Returns the groups of channels in sets between which there are ties."""
    sets = {group: {group} for group in groups}
    for some, others in channel_map.ties:
        joined = sets[some.found()] | sets[others.found()]
        for group in joined:
            sets[group] = joined
    return [
        list(members) for members in {id(members): members for members in sets.values()}.values()
    ]


def choose_together(
    groups: list[Channels], wanted: dict[Channels, int], weights: Weights
) -> dict[Channels, Tensor]:
    """Returns the kept channels of groups that have to keep the same parts."""
    units = min(group.width for group in groups)
    count = min(wanted[group] for group in groups)
    scores = 0
    for group in groups:
        size = group.width // units
        if units * size != group.width or wanted[group] != count * size or count > units:
            raise UserError(
                f"the student has {wanted[group]} channels where the teacher has {group.width}, "
                "and these cannot be chosen from them: choose a smaller distill.dim, or set "
                "distill.start to new"
            )
        scores = scores + weights.importance(group).unflatten(0, (units, size)).sum(1)
    group, *others = groups
    if not others and group in weights.products:
        scale = weights.read[group].sqrt()
        best = choose_spanning(scale[:, None] * weights.products[group] * scale, count)
    else:
        best = torch.as_tensor(scores).argsort(descending=True, stable=True)[:count].sort().values
    kept = {}
    for group in groups:
        size = group.width // units
        offsets = torch.arange(size, device=best.device)
        kept[group] = (best[:, None] * size + offsets).flatten()
    return kept


def choose_spanning(products: Tensor, count: int) -> Tensor:
    """Returns the places of ``count`` channels, sorted, that tell most of all channels.

    Each is the one whose part that the ones before do not tell, linearly, is largest: Cholesky's
    method with pivots.

    Args:
        products: mean products of channels with each other, ``(C, C)`` in float64.
    """
    rest, columns = products.diagonal().clone(), products.new_zeros(len(products), 0)
    chosen: list[int] = []
    least = NOTHING * float(rest.max())
    while len(chosen) < count and float(rest.max()) > least:
        place = int(rest.argmax())
        chosen.append(place)
        column = (products[:, place] - columns @ columns[place]) / math.sqrt(float(rest[place]))
        columns = torch.cat([columns, column[:, None]], dim=1)
        rest = (rest - column.square()).clamp(min=0)
        rest[chosen] = 0
    # Others say nothing new. The largest come first.
    order = products.diagonal().argsort(descending=True, stable=True).tolist()
    others = [place for place in order if place not in chosen]
    return torch.tensor([*chosen, *others][:count]).sort().values
