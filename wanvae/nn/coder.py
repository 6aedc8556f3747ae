"""Wan's encoder and decoder, for inputs of any rank."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import chain, pairwise

from torch import Tensor, nn

from wanvae.nn.attention import AttentionBlock, TimeAttentionBlock
from wanvae.nn.norm import make_norm
from wanvae.nn.patch import Patchify, Unpatchify
from wanvae.nn.region import Region
from wanvae.nn.resample import Downsample, Upsample
from wanvae.nn.residual import BlockSpec, make_activation, make_block, make_conv
from wanvae.nn.sequential import Row, Sequential, step_through
from wanvae.nn.stage import AverageDown, DuplicateUp, ResidualStage
from wanvae.nn.streaming import State


@dataclass(frozen=True, kw_only=True)
class CoderSpec:
    """The shape that an encoder and its decoder share.

    Attributes:
        ndim: 1 for ``(B, C, T)``, 2 for ``(B, C, H, W)``, 3 for ``(B, C, T, H, W)``.
        dim: channels at full resolution.
        dim_mult: channels of each stage, in multiples of ``dim``; space halves between stages.
        num_res_blocks: residual blocks in each stage of the encoder. The decoder has one more.
        attn_scales: scales at which attention follows each residual block. The encoder counts from
            1 and halves; the decoder counts from ``1 / 2 ** (stages - 2)`` and doubles. This is the
            count of the official code: in a model of four stages, 0.25 means 1/4 resolution in the
            encoder and 1/8 resolution in the decoder.
        temporal_downsample: for each step from stage to stage, whether it also halves time.
        frames_alone: whether each frame is the first frame of a stream of its own. Then no step
            halves time, but the shortcuts of stages stay as ``temporal_downsample`` says.
        attention_window: frames that attention over time sees (1D only); None is all frames.
        block: the kind, the norm and the activation of the residual blocks.
        stage_shortcuts: whether stages have a shortcut across all of their layers, as in Wan2.2
            (3D only, without attn_scales). Then upsampling does not halve the channels.
    """

    ndim: int
    dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    attn_scales: tuple[float, ...] = ()
    attention_window: int | None = None
    block: BlockSpec = field(default_factory=BlockSpec)
    stage_shortcuts: bool = False
    frames_alone: bool = False


class Coder(Row):
    """The base of encoder and decoder: layers in a row. State: one entry for each layer."""

    def core(self) -> tuple[nn.Module, ...]:
        """Returns the layers at the smallest resolution, from the attention to the latents."""
        raise self._unanswered("core")

    def shell(self) -> tuple[nn.Module, ...]:
        """Returns all other layers, which run at every resolution."""
        raise self._unanswered("shell")

    def step(
        self, x: Tensor, state: State, region: Region | None = None, *, recompute: bool = False
    ) -> tuple[Tensor, State]:
        """Processes the next piece of a stream.

        Args:
            recompute: keep only the tensors between every two blocks, and compute the tensors
                inside again in the backward pass: less memory, more time, the same gradients.
        """
        return step_through(self.layers(), x, state, region, recompute=recompute)


class Encoder(Coder):
    """Wan's encoder: ``conv1``, ``downsamples``, ``middle``, ``head``.

    Maps ``(B, in_channels, 1 + f * n, ...)`` to ``(B, out_channels, 1 + n, ...)``, where f is 2 to
    the number of stages that halve time; each step from stage to stage halves space.

    Args:
        patch_size: side of the squares of positions that become channels before ``conv1``.
    """

    def __init__(
        self, spec: CoderSpec, in_channels: int, out_channels: int, *, patch_size: int = 1
    ) -> None:
        super().__init__()
        widths = [spec.dim * multiple for multiple in (1, *spec.dim_mult)]
        self.patches = Sequential(*([Patchify(patch_size)] if patch_size > 1 else []))
        self.conv1 = make_conv(spec.ndim, in_channels * patch_size**2, widths[0], spec.block)
        layers: list[nn.Module] = []
        steps = (*spec.temporal_downsample, None)
        for stage, (dims, temporal) in enumerate(zip(pairwise(widths), steps, strict=True)):
            attention = 0.5**stage in spec.attn_scales
            layers += make_encoder_stage(spec, *dims, attention, temporal)
        self.downsamples = Sequential(*layers)
        self.middle = make_middle(spec, widths[-1])
        self.head = make_head(spec, widths[-1], out_channels)

    def shell(self) -> tuple[nn.Module, ...]:
        return *self.patches, self.conv1, *self.downsamples

    def core(self) -> tuple[nn.Module, ...]:
        return *self.middle, self.head

    def layers(self) -> tuple[nn.Module, ...]:
        return self.shell() + self.core()


class Decoder(Coder):
    """Wan's decoder: ``conv1``, ``middle``, ``upsamples``, ``head``; the mirror of the encoder.

    Each upsampling halves the channels, so all stages except the first start at half their width.
    With ``stage_shortcuts`` no upsampling halves the channels.

    Args:
        unpatchify: the last layer, which turns channels into squares of positions; None is none.
    """

    def __init__(
        self,
        spec: CoderSpec,
        in_channels: int,
        out_channels: int,
        unpatchify: Unpatchify | None = None,
    ) -> None:
        super().__init__()
        multiples = spec.dim_mult[::-1]
        widths = [spec.dim * multiple for multiple in (multiples[0], *multiples)]
        self.conv1 = make_conv(spec.ndim, in_channels, widths[0], spec.block)
        self.middle = make_middle(spec, widths[0])
        layers: list[nn.Module] = []
        steps = (*spec.temporal_downsample[::-1], None)
        for stage, (dims, temporal) in enumerate(zip(pairwise(widths), steps, strict=True)):
            in_dim, out_dim = dims
            in_dim = in_dim // 2 if stage and not spec.stage_shortcuts else in_dim
            attention = 2.0 ** (stage + 2 - len(multiples)) in spec.attn_scales
            layers += make_decoder_stage(spec, in_dim, out_dim, attention, temporal)
        self.upsamples = Sequential(*layers)
        values = out_channels * (unpatchify.size**2 if unpatchify else 1)
        self.head = make_head(spec, widths[-1], values)
        self.patches = Sequential(*([unpatchify] if unpatchify else []))

    def core(self) -> tuple[nn.Module, ...]:
        return self.conv1, *self.middle

    def shell(self) -> tuple[nn.Module, ...]:
        # The last stage may be a Sequential without a shortcut, which only has longer names.
        stages = (
            tuple(stage.get_submodule("upsamples").children())
            if isinstance(stage, Sequential)
            else (stage,)
            for stage in self.upsamples
        )
        return *chain.from_iterable(stages), self.head, *self.patches

    def layers(self) -> tuple[nn.Module, ...]:
        return self.core() + self.shell()


def make_encoder_stage(
    spec: CoderSpec, in_dim: int, out_dim: int, attention: bool, temporal: bool | None
) -> list[nn.Module]:
    """Returns the layers of one resolution, and the layer that halves after them.

    Args:
        temporal: whether time is halved too; None for the last stage, which halves nothing.
    """
    layers = make_blocks(spec, in_dim, out_dim, spec.num_res_blocks, attention)
    if temporal is not None:
        alone = spec.frames_alone
        layers.append(Downsample(spec.ndim, out_dim, temporal=temporal, frames_alone=alone))
    if not spec.stage_shortcuts:
        return layers
    time, space = 2 if temporal else 1, 1 if temporal is None else 2
    shortcut = AverageDown(in_dim, out_dim, time, space, frames_alone=spec.frames_alone)
    return [ResidualStage(layers, shortcut, "downsamples")]


def make_decoder_stage(
    spec: CoderSpec, in_dim: int, out_dim: int, attention: bool, temporal: bool | None
) -> list[nn.Module]:
    """Returns the layers of one resolution, and the layer that doubles after them.

    Args:
        temporal: whether time is doubled too; None for the last stage, which doubles nothing.
    """
    layers = make_blocks(spec, in_dim, out_dim, spec.num_res_blocks + 1, attention)
    if temporal is not None:
        width, alone = out_dim if spec.stage_shortcuts else out_dim // 2, spec.frames_alone
        layers.append(Upsample(spec.ndim, out_dim, width, temporal=temporal, frames_alone=alone))
    if not spec.stage_shortcuts:
        return layers
    if temporal is None:
        # This stage has no shortcut, but its parameter names are as long as in the other stages.
        return [Sequential(OrderedDict(upsamples=Sequential(*layers)))]
    time = 2 if temporal else 1
    shortcut = DuplicateUp(in_dim, out_dim, time, 2, frames_alone=spec.frames_alone)
    return [ResidualStage(layers, shortcut, "upsamples")]


def make_blocks(
    spec: CoderSpec, in_dim: int, out_dim: int, blocks: int, attention: bool
) -> list[nn.Module]:
    """Returns the residual blocks of one resolution, each followed by attention if wanted."""
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers.append(make_block(spec.ndim, out_dim if block else in_dim, out_dim, spec.block))
        if attention:
            layers.append(make_attention(spec, out_dim))
    return layers


def make_middle(spec: CoderSpec, dim: int) -> Sequential:
    return Sequential(
        make_block(spec.ndim, dim, dim, spec.block),
        make_attention(spec, dim),
        make_block(spec.ndim, dim, dim, spec.block),
    )


def make_attention(spec: CoderSpec, dim: int) -> nn.Module:
    """Returns attention over the positions of each frame; in 1D over time."""
    if spec.ndim > 1:
        return AttentionBlock(dim)
    return TimeAttentionBlock(dim, causal=spec.block.causal, window=spec.attention_window)


def make_head(spec: CoderSpec, in_dim: int, out_dim: int) -> Sequential:
    return Sequential(
        make_norm(spec.block.norm, spec.ndim, in_dim),
        make_activation(spec.block.activation),
        make_conv(spec.ndim, in_dim, out_dim, spec.block),
    )
