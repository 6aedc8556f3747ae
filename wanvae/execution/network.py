"""The layers of an encoder or a decoder, and which of them can run on tiles."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import chain, groupby
from typing import Concatenate, ParamSpec, TypeVar

from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn import Streaming, needs_whole_frames, unstreamable_layers
from wanvae.nn.sequential import count_output, space_factor
from wanvae.nn.streaming import require_streaming

P = ParamSpec("P")
R = TypeVar("R")
# The number of results that are remembered for each function.
REMEMBERED = 64


@dataclass(frozen=True)
class Part:
    """Layers in a row that all run on whole frames, or all run on tiles.

    Attributes:
        layers: in the order they run.
        whole: whether the layers run on whole frames, and not on tiles.
        scale: pixels of the video along each side for each position of the output.
    """

    layers: tuple[Streaming, ...]
    whole: bool
    scale: int


@dataclass(frozen=True)
class Network:
    """The layers of an encoder or a decoder.

    Attributes:
        core: layers that run on whole frames, unless they are split.
        shell: layers that can run on tiles.
        core_first: True in a decoder.
        out_channels: channels of the output.
        spatial_factor: pixels per latent along height and width.
        temporal_factor: frames per latent after the first.
        lookahead: frames after the frames of a latent that an encoder also reads for it.
        architecture: a value that is equal for networks whose layers differ only in weights and
            dtype.
    """

    core: tuple[Streaming, ...]
    shell: tuple[Streaming, ...]
    core_first: bool
    out_channels: int
    spatial_factor: int
    temporal_factor: int
    architecture: Hashable = field(repr=False)
    lookahead: int = 0

    @property
    def layers(self) -> tuple[Streaming, ...]:
        """All layers in the order they run."""
        return self.core + self.shell if self.core_first else self.shell + self.core

    @property
    def group(self) -> int:
        """Frames of input for one latent, after the first frame; 1 in a decoder."""
        return 1 if self.core_first else self.temporal_factor

    @property
    def first(self) -> int:
        """Frames of input for the first latent."""
        return 1 + self.lookahead

    @property
    def pixels_per_input(self) -> int:
        """Pixels of the video along each side for each position of the input."""
        return self.spatial_factor if self.core_first else 1

    def parts(self, *, split_core: bool) -> list[Part]:
        """Returns the layers, cut into parts for whole frames and parts for tiles."""
        whole = needs_whole_frames if split_core else self.core.__contains__
        parts, scale = [], self.pixels_per_input
        for on_whole_frames, run in groupby(self.layers, whole):
            layers = tuple(run)
            scale = int(scale / space_factor(layers))
            parts.append(Part(layers, on_whole_frames, scale))
        return parts

    def count_output_frames(self, pushed: int, *, starts: bool) -> int:
        """Returns the frames of output for ``pushed`` frames of input, which are whole groups."""
        return count_output(self.layers, pushed, starts=starts)

    def count_input(self, latents: int) -> int:
        """Returns the frames of input for a clip of so many latents, those ahead included."""
        return self.first + (latents - 1) * self.group

    def count_latents(self, frames: int) -> int:
        """Returns the number of latents of a clip of ``frames`` frames."""
        return 1 + (frames - 1) // self.group

    def frames_ahead(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns what stands for the frames after the end of a clip: its last frame, repeated.

        Empty for a network that does not look ahead.
        """
        return (x[:, :, -1:].expand(-1, -1, self.lookahead, -1, -1),) if self.lookahead else ()

    def twin(self) -> Network:
        """Returns the same layers on the meta device, in evaluation mode: shapes without values."""
        tensors = chain.from_iterable((*m.parameters(), *m.buffers()) for m in self.layers)
        # deepcopy does not copy what is in this dictionary, so no weight is copied.
        copied = {id(tensor): copy_to_meta(tensor) for tensor in tensors}
        core, shell = copy.deepcopy((self.core, self.shell), copied)
        for layer in core + shell:
            layer.eval()
        return replace(self, core=core, shell=shell)

    def require_streamable(self) -> None:
        """Raises UserError if the layers can only process whole clips."""
        layers = unstreamable_layers(nn.ModuleList(self.layers))
        if layers:
            raise UserError(
                f"this model cannot stream, because {len(layers)} of its layers look across all of "
                f"time (the first: {layers[0]}); use encode and decode on whole clips"
            )


def make_network(
    core: Sequence[nn.Module],
    shell: Sequence[nn.Module],
    *,
    core_first: bool,
    out_channels: int,
    spatial_factor: int,
    temporal_factor: int,
    architecture: Hashable,
    lookahead: int = 0,
) -> Network:
    """Returns a network; layers of the shell that look across whole frames move to the core.

    Raises:
        TypeError: a layer is not ``Streaming``.
    """
    core, shell = require_streaming(core), require_streaming(shell)
    across = [index for index, layer in enumerate(shell) if needs_whole_frames(layer)]
    if across and core_first:
        cut = across[-1] + 1
        core, shell = core + shell[:cut], shell[cut:]
    elif across:
        cut = across[0]
        core, shell = shell[cut:] + core, shell[:cut]
    return Network(
        core=core,
        shell=shell,
        core_first=core_first,
        out_channels=out_channels,
        spatial_factor=spatial_factor,
        temporal_factor=temporal_factor,
        architecture=architecture,
        lookahead=lookahead,
    )


def copy_to_meta(tensor: Tensor) -> Tensor:
    """Returns a tensor or parameter like ``tensor`` on the meta device."""
    copied = tensor.detach().to("meta")
    return (
        nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    )


def remember_by_architecture(
    function: Callable[Concatenate[Network, P], R],
) -> Callable[Concatenate[Network, P], R]:
    """Returns ``function`` with a memory of its results, by the architecture of the network.

    The memory keeps no weights. The other arguments must be hashable, and a result must not hold
    the network.
    """
    results: OrderedDict[Hashable, R] = OrderedDict()

    @wraps(function)
    def remembering(network: Network, *arguments: P.args, **options: P.kwargs) -> R:
        named = tuple(sorted(options.items()))
        key = network.architecture, network.core_first, arguments, named
        if key not in results:
            results[key] = function(network, *arguments, **options)
            while len(results) > REMEMBERED:
                results.popitem(last=False)
        return results[key]

    return remembering
