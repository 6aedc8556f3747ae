"""The residual addition, and the bodies that can stand inside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.conv import CausalConv
from wanvae.nn.interval import Interval
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.kernels.pointwise import PointwiseFunction
from wanvae.nn.norm import NormKind, make_norm
from wanvae.nn.region import Region, crop, union
from wanvae.nn.sequential import (
    Sequential,
    find_regions_between,
    forward_masked,
    input_interval,
    input_region,
    multiply_adds,
    pass_through,
    space_factor,
    time_factor,
)
from wanvae.nn.streaming import State, Streaming, split_state, step_layer, streaming_layers

# Runs a step of a body: output, pointwise layers that are left to apply to it, state.
BodyStep: TypeAlias = (
    "Callable[[Tensor, State, Region | None], tuple[Tensor, Sequence[PointwiseFunction], State]]"
)

ActivationKind = Literal["silu", "relu", "gelu"]
BlockKind = Literal["residual", "standard", "bottleneck", "preactivation", "dense"]

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """How the residual blocks of a network are built.

    Attributes:
        kind: the body (see :func:`make_block`); Wan's checkpoints need "residual".
        norm: the normalization inside it; Wan's is "rms".
        activation: the nonlinearity inside it; Wan's is "silu".
        dropout: probability of dropping a value: before the last convolution for "residual", after
            the body for other kinds.
        causal: whether convolutions see only the past; needed for streaming.
        time_kernel: extent of 3-convs in time; with 1 they treat each frame alone.
    """

    kind: BlockKind = "residual"
    norm: NormKind = "rms"
    activation: ActivationKind = "silu"
    dropout: float = 0.0
    causal: bool = True
    time_kernel: int = 3


class Residual(Streaming):
    """A residual block: ``y = post_activation(body(x) + shortcut(x))``.

    A subclass implements the body: every method that raises NotImplementedError here.
    State: (state of the body, state of the shortcut).
    """

    def __init__(
        self, shortcut: nn.Module | None = None, post_activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.shortcut = shortcut or nn.Identity()
        self.post_activation = post_activation or nn.Identity()

    def body_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, Sequence[PointwiseFunction], State]:
        """Runs one step of the body alone.

        Returns:
            A new tensor or ``x``, the pointwise layers of the body that are still to be applied to
            it, and the state.
        """
        raise self._unanswered("body_step")

    def body_input_region(self, region: Region) -> Region:
        """Returns ``input_region`` of the body alone."""
        raise self._unanswered("body_input_region")

    def body_forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``forward_masked`` of the body alone. The output is a new tensor or ``x``."""
        raise self._unanswered("body_forward_masked")

    def body_input_interval(self, interval: Interval) -> Interval:
        """Returns ``input_interval`` of the body alone."""
        raise self._unanswered("body_input_interval")

    def body_multiply_adds(self, positions: int, frames: int) -> int:
        """Returns ``multiply_adds`` of the body alone."""
        raise self._unanswered("body_multiply_adds")

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        return self.step_by(self.body_step, x, state, region)

    def step_by(
        self, body_step: BodyStep, x: Tensor, state: State, region: Region | None
    ) -> tuple[Tensor, State]:
        """Does the same as ``step``, with ``body_step`` for the body."""
        body_state, shortcut_state = split_state(state, 2)
        of_body = of_shortcut = x
        if region is not None:
            given = self.input_region(region)
            of_body = crop(x, given, self.body_input_region(region))
            of_shortcut = crop(x, given, input_region([self.shortcut], region))
        y, pointwise, body_state = body_step(of_body, body_state, region)
        if y is of_body:
            y = y.clone()  # of a body that only has pointwise layers; ``x`` is not ours to change
        shortcut, shortcut_state = step_layer(self.shortcut, of_shortcut, shortcut_state, region)
        return self.add(y, pointwise, shortcut), (body_state, shortcut_state)

    def input_region(self, region: Region) -> Region:
        return union(self.body_input_region(region), input_region([self.shortcut], region))

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        shortcut, _ = forward_masked([self.shortcut], x, lengths)
        y, lengths = self.body_forward_masked(x, lengths)
        return self.add(y.clone() if y is x else y, (), shortcut), lengths

    def input_interval(self, interval: Interval) -> Interval:
        of_shortcut = input_interval([self.shortcut], interval)
        return self.body_input_interval(interval).union(of_shortcut)

    # Body and shortcut have the same factors: otherwise there is nothing to add.
    def time_factor(self) -> Fraction:
        return time_factor([self.shortcut])

    def space_factor(self) -> Fraction:
        return space_factor([self.shortcut])

    def multiply_adds(self, positions: int, frames: int) -> int:
        of_shortcut = multiply_adds([self.shortcut], positions, frames)
        return self.body_multiply_adds(positions, frames) + of_shortcut

    def add(self, y: Tensor, pointwise: Sequence[PointwiseFunction], shortcut: Tensor) -> Tensor:
        """Returns ``post_activation(pointwise(y) + shortcut)``; inference may overwrite ``y``."""
        return self.post_activation(kernels_for(y).add(y, pointwise, shortcut))


class RowResidual(Residual):
    """A residual block whose body is a row of layers; a subclass provides ``body_layers``."""

    def body_layers(self) -> tuple[nn.Module, ...]:
        """Returns the layers of the body in the order they run."""
        raise self._unanswered("body_layers")

    def body_step(
        self, x: Tensor, state: State, region: Region | None = None
    ) -> tuple[Tensor, Sequence[PointwiseFunction], State]:
        return pass_through(self.body_layers(), x, state, region)

    def body_input_region(self, region: Region) -> Region:
        return input_region(self.body_layers(), region)

    def body_forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return forward_masked(self.body_layers(), x, lengths)

    def body_input_interval(self, interval: Interval) -> Interval:
        return input_interval(self.body_layers(), interval)

    def body_multiply_adds(self, positions: int, frames: int) -> int:
        return multiply_adds(self.body_layers(), positions, frames)


class SequentialResidual(RowResidual):
    """A residual block whose body is a row of layers, held as ``residual`` (Wan's name for it).

    Args:
        name: the name of the body, if not ``residual``.
    """

    def __init__(
        self,
        body: Sequence[nn.Module],
        shortcut: nn.Module | None = None,
        post_activation: nn.Module | None = None,
        name: str = "residual",
    ) -> None:
        super().__init__(shortcut, post_activation)
        self.add_module(name, Sequential(*body))
        self._name = name

    @property
    def body(self) -> Sequential:
        """The layers of the body."""
        body = self.get_submodule(self._name)
        assert isinstance(body, Sequential)
        return body

    def body_layers(self) -> tuple[nn.Module, ...]:
        return self.body.layers()


class ResidualBlock(SequentialResidual):
    """Wan's block: norm, activation, 3-conv, norm, activation, dropout, 3-conv.

    The shortcut is a 1-conv where ``in_dim`` and ``out_dim`` differ.
    """

    def __init__(self, ndim: int, in_dim: int, out_dim: int, spec: BlockSpec | None = None) -> None:
        spec = spec or BlockSpec()
        super().__init__(
            [
                make_norm(spec.norm, ndim, in_dim),
                make_activation(spec.activation),
                make_conv(ndim, in_dim, out_dim, spec),
                make_norm(spec.norm, ndim, out_dim),
                make_activation(spec.activation),
                nn.Dropout(spec.dropout),
                make_conv(ndim, out_dim, out_dim, spec),
            ],
            make_projection(ndim, in_dim, out_dim),
        )


class StandardBlock(SequentialResidual):
    """ResNet's block: conv, norm, activation, conv, norm; the activation again after the sum."""

    def __init__(self, ndim: int, in_dim: int, out_dim: int, spec: BlockSpec) -> None:
        super().__init__(
            [
                make_conv(ndim, in_dim, out_dim, spec),
                make_norm(spec.norm, ndim, out_dim),
                make_activation(spec.activation),
                make_conv(ndim, out_dim, out_dim, spec),
                make_norm(spec.norm, ndim, out_dim),
                nn.Dropout(spec.dropout),
            ],
            make_projection(ndim, in_dim, out_dim),
            make_activation(spec.activation),
        )


class BottleneckBlock(SequentialResidual):
    """1-conv down to ``mid_dim``, 3-conv, 1-conv up, each with a norm; activation after the sum.

    The shortcut is a 1-conv and a norm where ``in_dim`` and ``out_dim`` differ.
    """

    def __init__(self, ndim: int, in_dim: int, mid_dim: int, out_dim: int, spec: BlockSpec) -> None:
        shortcut = None
        if in_dim != out_dim:
            shortcut = Sequential(
                CausalConv(ndim, in_dim, out_dim, 1), make_norm(spec.norm, ndim, out_dim)
            )
        super().__init__(
            [
                CausalConv(ndim, in_dim, mid_dim, 1),
                make_norm(spec.norm, ndim, mid_dim),
                make_activation(spec.activation),
                make_conv(ndim, mid_dim, mid_dim, spec),
                make_norm(spec.norm, ndim, mid_dim),
                make_activation(spec.activation),
                CausalConv(ndim, mid_dim, out_dim, 1),
                make_norm(spec.norm, ndim, out_dim),
                nn.Dropout(spec.dropout),
            ],
            shortcut,
            make_activation(spec.activation),
        )


class PreActivationBlock(SequentialResidual):
    """Norm and activation before each of two convolutions, nothing after the sum."""

    def __init__(self, ndim: int, in_dim: int, out_dim: int, spec: BlockSpec) -> None:
        super().__init__(
            [
                *make_normed_conv(ndim, in_dim, out_dim, spec),
                *make_normed_conv(ndim, out_dim, out_dim, spec),
                nn.Dropout(spec.dropout),
            ],
            make_projection(ndim, in_dim, out_dim),
        )


class DenseBlock(Streaming):
    """DenseNet's block: each layer sees all features before it and appends ``growth_rate`` more.

    Maps ``in_dim`` channels to ``in_dim + num_layers * growth_rate``, the input first. It
    concatenates and never adds. State: one entry for each layer.
    """

    def __init__(
        self, ndim: int, in_dim: int, growth_rate: int, num_layers: int, spec: BlockSpec
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Sequential(*make_normed_conv(ndim, in_dim + i * growth_rate, growth_rate, spec))
            for i in range(num_layers)
        )
        self.out_dim = in_dim + num_layers * growth_rate

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        layers = streaming_layers(self.layers)
        states = split_state(state, len(layers))
        regions = itertools.pairwise(find_regions_between(layers, region))
        new_states = []
        for layer, layer_state, (given, wanted) in zip(layers, states, regions, strict=True):
            feature, layer_state = layer.step(x, layer_state, wanted)
            if given is not None and wanted is not None:
                x = crop(x, given, wanted)
            x = torch.cat([x, feature], dim=1)
            new_states.append(layer_state)
        return x, tuple(new_states)

    def input_region(self, region: Region) -> Region:
        return input_region(self.layers, region)

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        for layer in streaming_layers(self.layers):
            x = torch.cat([x, layer.forward_masked(x, lengths)[0]], dim=1)
        return x, lengths

    def input_interval(self, interval: Interval) -> Interval:
        for layer in reversed(streaming_layers(self.layers)):
            interval = interval.union(layer.input_interval(interval))
        return interval

    def time_factor(self) -> Fraction:
        return Fraction(1)

    def space_factor(self) -> Fraction:
        return Fraction(1)

    def multiply_adds(self, positions: int, frames: int) -> int:
        return sum(
            layer.multiply_adds(positions, frames) for layer in streaming_layers(self.layers)
        )


class DenseResidualBlock(SequentialResidual):
    """A residual block with a :class:`DenseBlock` and a 1-conv to ``out_dim`` as its body."""

    def __init__(
        self,
        ndim: int,
        in_dim: int,
        growth_rate: int,
        num_layers: int,
        out_dim: int,
        spec: BlockSpec,
    ) -> None:
        dense = DenseBlock(ndim, in_dim, growth_rate, num_layers, spec)
        transition = CausalConv(ndim, dense.out_dim, out_dim, 1)
        super().__init__(
            [dense, transition, nn.Dropout(spec.dropout)], make_projection(ndim, in_dim, out_dim)
        )


class ResConv1DBlock(RowResidual):
    """Resnet1D's block: (norm, activation, dilated 3-conv), (norm, activation, 1-conv), dropout.

    Parameter names (``norm1``, ``conv1``, ``norm2``, ``conv2``) come from the published motion
    models.

    Args:
        n_in: channels of input and output, ``(B, n_in, T)``.
        n_state: channels between the two convolutions.
        causal: False gives the published "same" padding.
    """

    def __init__(
        self,
        n_in: int,
        n_state: int,
        dilation: int = 1,
        activation: ActivationKind = "silu",
        norm: NormKind = "none",
        dropout: float = 0.0,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        eps = 1e-5 if norm == "layer" else 1e-6  # as published
        self.norm1 = make_norm(norm, 1, n_in, eps)
        self.conv1 = CausalConv(1, n_in, n_state, 3, dilation=dilation, causal=causal)
        self.norm2 = make_norm(norm, 1, n_state, eps)
        self.conv2 = CausalConv(1, n_state, n_in, 1)
        self.activation = make_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def body_layers(self) -> tuple[nn.Module, ...]:
        first = (self.norm1, self.activation, self.conv1)
        return (*first, self.norm2, self.activation, self.conv2, self.dropout)


def make_block(ndim: int, in_dim: int, out_dim: int, spec: BlockSpec) -> Residual:
    """Returns the residual block ``spec.kind`` from ``in_dim`` to ``out_dim`` channels.

    "bottleneck" narrows to ``out_dim / 4`` channels; "dense" has two layers of ``out_dim / 2``.
    """
    if spec.kind == "residual":
        return ResidualBlock(ndim, in_dim, out_dim, spec)
    if spec.kind == "standard":
        return StandardBlock(ndim, in_dim, out_dim, spec)
    if spec.kind == "bottleneck":
        return BottleneckBlock(ndim, in_dim, max(1, out_dim // 4), out_dim, spec)
    if spec.kind == "preactivation":
        return PreActivationBlock(ndim, in_dim, out_dim, spec)
    if spec.kind == "dense":
        return DenseResidualBlock(ndim, in_dim, max(1, out_dim // 2), 2, out_dim, spec)
    raise UserError(f"block must be one of {', '.join(get_args(BlockKind))}, not {spec.kind!r}")


def make_conv(ndim: int, in_dim: int, out_dim: int, spec: BlockSpec) -> CausalConv:
    """Returns a 3-conv."""
    kernel = (3, 3) if ndim == 2 else (spec.time_kernel, 3, 3)[:ndim]
    return CausalConv(ndim, in_dim, out_dim, kernel, causal=spec.causal)


def make_activation(kind: ActivationKind) -> nn.Module:
    """Returns a nonlinearity by name."""
    if kind not in ACTIVATIONS:
        raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {kind!r}")
    return ACTIVATIONS[kind]()


def make_normed_conv(ndim: int, in_dim: int, out_dim: int, spec: BlockSpec) -> list[nn.Module]:
    """Returns a norm, an activation and a 3-conv, in this order."""
    return [
        make_norm(spec.norm, ndim, in_dim),
        make_activation(spec.activation),
        make_conv(ndim, in_dim, out_dim, spec),
    ]


def make_projection(ndim: int, in_dim: int, out_dim: int) -> nn.Module | None:
    """Returns a 1-conv as shortcut if the channels differ, else None."""
    return None if in_dim == out_dim else CausalConv(ndim, in_dim, out_dim, 1)
