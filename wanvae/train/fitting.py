"""A smaller half of a model that is fitted to a larger one by least squares.

Channels are chosen by what the larger half computes of clips: one after the other, each the one
that the chosen ones tell least of. So of two channels that say the same, such as a value and its
negative, one is kept, and constant channels count. Then the convolutions of the smaller half are
solved in the order they run. Each gives the kept channels of the larger half best, from what the
smaller half has at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from wanvae.config import Half
from wanvae.model import WanVAE
from wanvae.nn import AttentionBlock, CausalConv, Downsample, Sequential, Upsample
from wanvae.nn.residual import SequentialResidual
from wanvae.train.least_squares import solve
from wanvae.train.pruning import (
    ChannelMap,
    Channels,
    HalfOfModel,
    Use,
    check_prunable,
    copy_channels,
    half_of,
    shallow_copy,
)

# Positions of clips for each unknown of a convolution.
POSITIONS = 60

# What a layer sees or gives of each clip, ``(B, C, T, H, W)``.
Values: TypeAlias = "list[Tensor]"
# From a convolution of each model, what each sees, and what is added to its output, to the sums.
Convolve: TypeAlias = (
    "Callable[[Sequence[CausalConv], Sequence[Values], Sequence[Values] | None], list[Values]]"
)


@torch.no_grad()
def fit(
    teacher: WanVAE,
    student: WanVAE,
    half: Half,
    clips: Sequence[Tensor],
    generator: torch.Generator,
    *,
    progress: bool = False,
) -> None:
    """Makes a half of ``student`` a smaller copy of the half of ``teacher``, fitted to clips.

    What attention computes, and a convolution that halves time, are copied and not fitted. The
    clips, and what layers compute of them, are held in memory.

    Args:
        teacher, student: on the CPU, in float32.
        clips: what the half takes, ``(B, C, T, H, W)`` each: videos to encode, latents to decode.
        generator: of the positions that count.
        progress: whether to show a progress bar.

    Raises:
        UserError: as ``prune`` does.
    """
    check_prunable(teacher)
    larger, smaller = half_of(shallow_copy(teacher, student, half), half), half_of(student, half)
    values = list(clips)
    kept = copy_channels(larger, smaller, lambda found: observe(larger, found, values))
    names = names_of(larger)

    def convolve(
        convs: Sequence[CausalConv], seen: Sequence[Values], added: Sequence[Values] | None
    ) -> list[Values]:
        (theirs, ours), (goals, given) = convs, seen
        goals = give(theirs, goals, added, 0)
        places = kept.get(names[id(theirs)])
        if places is not None:
            wanted = [x[:, places] for x in goals]
            if added is not None:
                wanted = [x - y for x, y in zip(wanted, added[1], strict=True)]
            weight, bias = solve(ours, given, wanted, generator, POSITIONS)
            ours.weight.copy_(weight)
            ours.bias.copy_(bias)
        bar.update()
        return [goals, give(ours, given, added, 1)]

    with tqdm(desc="fit", unit=" layers", disable=not progress) as bar:
        walk((larger.layers, smaller.layers), (values, values), convolve)


def observe(half: HalfOfModel, found: ChannelMap, values: Values) -> dict[Channels, Tensor]:
    """Returns the mean products of channels with each other, ``(C, C)`` in float64, by group.

    They are sums over the layers that write the group, each of mean 1 on the diagonal. Groups that
    no convolution writes as a whole are left out.
    """
    names, products = names_of(half), dict[Channels, Tensor]()
    uses: dict[str, Use] = {use.name: use for use in found.uses if use.axis == 0}

    def convolve(
        convs: Sequence[CausalConv], seen: Sequence[Values], added: Sequence[Values] | None
    ) -> list[Values]:
        outputs = give(convs[0], seen[0], added, 0)
        parts = uses[f"{names[id(convs[0])]}.weight"].parts
        groups = {part.found() for part in parts}
        if len(groups) == 1:
            (group,) = groups
            product = sum(multiply(x) for y in outputs for x in y.chunk(len(parts), dim=1))
            product = torch.as_tensor(product)
            mean = product.diagonal().mean()
            if mean > 0:
                products[group] = products.get(group, 0) + product / mean
        return [outputs]

    walk((half.layers,), (values,), convolve)
    return products


def names_of(half: HalfOfModel) -> Mapping[int, str]:
    """Returns the names of modules, by their identity."""
    return {id(module): name for name, module in half.modules.named_modules()}


def multiply(x: Tensor) -> Tensor:
    """Returns the mean products of channels of ``(B, C, ...)``, ``(C, C)`` in float64."""
    vectors = x.movedim(1, -1).flatten(0, -2)
    return (vectors.T @ vectors).double() / len(vectors)


def give(conv: CausalConv, seen: Values, added: Sequence[Values] | None, model: int) -> Values:
    """Returns the output of a convolution, plus what is added to it in the model of this number."""
    outputs = convolve_each(conv, seen)
    return outputs if added is None else plus(outputs, added[model])


def plus(values: Values, others: Values) -> Values:
    """Returns the sums of the values of each clip."""
    return [x + y for x, y in zip(values, others, strict=True)]


def convolve_each(conv: CausalConv, values: Values) -> Values:
    """Convolves ``(B, C, T, H, W)``, also by a convolution of images."""
    if conv.ndim != 2:
        return [conv(x) for x in values]
    return [
        rearrange(conv(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", t=t)
        for x in values
        for t in [x.shape[2]]
    ]


# Layers of one or more models in step


def walk(
    rows: Sequence[Sequence[nn.Module]], values: Sequence[Values], convolve: Convolve
) -> list[Values]:
    """Runs the layers of each model in step, and every convolution by ``convolve``.

    Args:
        rows: the layers of each model, of the same kinds.
        values: what each model has of the clips.
    """
    found = list(values)
    for layers in zip(*rows, strict=True):
        found = run(layers, found, convolve)
    return found


def run(layers: Sequence[Any], values: list[Values], convolve: Convolve) -> list[Values]:
    """Runs one layer of each model."""
    kind = layers[0]
    if isinstance(kind, CausalConv):
        return convolve(layers, values, None)
    if isinstance(kind, SequentialResidual):
        return add(layers, values, convolve)
    if isinstance(kind, Upsample):
        return double(layers, values, convolve)
    if isinstance(kind, Downsample):
        return halve(layers, values, convolve)
    if isinstance(kind, Sequential) and not isinstance(kind, AttentionBlock):
        return walk(layers, values, convolve)
    return [[layer(x) for x in clips] for layer, clips in zip(layers, values, strict=True)]


def add(layers: Sequence[Any], values: list[Values], convolve: Convolve) -> list[Values]:
    """Runs a residual block: its last convolution counts together with the shortcut."""
    shortcuts = run([layer.shortcut for layer in layers], values, convolve)
    bodies = [[*layer.body] for layer in layers]
    if isinstance(bodies[0][-1], CausalConv):
        inner = walk([body[:-1] for body in bodies], values, convolve)
        sums = convolve([body[-1] for body in bodies], inner, shortcuts)
    else:
        outputs = walk(bodies, values, convolve)
        sums = [plus(some, others) for some, others in zip(outputs, shortcuts, strict=True)]
    return run([layer.post_activation for layer in layers], sums, convolve)


def double(layers: Sequence[Any], values: list[Values], convolve: Convolve) -> list[Values]:
    """Runs a layer that doubles space, and time if it does. The first frame stays one frame."""
    later = [[x[:, :, 1:] for x in clips if x.shape[2] > 1] for clips in values]
    if layers[0].along_time is not None and later[0]:
        pairs = convolve([layer.along_time for layer in layers], later, None)
        values = [put_after_first(*both) for both in zip(values, pairs, strict=True)]
    doubled = [[x.repeat_interleave(2, 3).repeat_interleave(2, 4) for x in y] for y in values]
    return convolve([layer.conv for layer in layers], doubled, None)


def put_after_first(values: Values, pairs: Values) -> Values:
    """Returns clips of their first frame and pairs of frames, which are channels of ``pairs``."""
    frames = (rearrange(x, "b (two c) t h w -> b c (t two) h w", two=2) for x in pairs)
    return [torch.cat([x[:, :, :1], next(frames)], dim=2) if x.shape[2] > 1 else x for x in values]


def halve(layers: Sequence[Any], values: list[Values], convolve: Convolve) -> list[Values]:
    """Runs a layer that halves space, and time if it does."""
    values = convolve([layer.conv for layer in layers], values, None)
    if layers[0].along_time is None:
        return values
    return [
        [halve_time(layer.along_time, x) for x in clips]
        for layer, clips in zip(layers, values, strict=True)
    ]


def halve_time(conv: CausalConv, x: Tensor) -> Tensor:
    """Halves time. The first frame stays as it is."""
    first, rest = x[:, :, :1], x[:, :, 1:]
    return torch.cat([first, conv.step(rest, (first,))[0]], dim=2) if rest.shape[2] else first
