"""Running a network within limits: a whole clip, or a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeAlias

import torch
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.execution.budget import choose_plan, estimate_memory
from wanvae.execution.compilation import Compilation
from wanvae.execution.cost import Costs, Workload
from wanvae.execution.flow import StepOfLayer, first_parameter, run_step
from wanvae.execution.graphs import CUDAGraphs
from wanvae.execution.limits import Limits
from wanvae.execution.network import Network
from wanvae.execution.plan import Plan, make_tiles
from wanvae.execution.progress import Progress, TellingSteps
from wanvae.execution.sharding import SharedTiles, share_out
from wanvae.execution.tiling import Coding, CodingState, LocalTiles
from wanvae.nn.kernels.dispatch import find_rehearsal

# Role, hash of the shapes of the weights, dtype, process and number of processes.
Identity: TypeAlias = "tuple[str, str, str, int, int]"


@dataclass(frozen=True)
class Runner:
    """A network, the limits of its runs, and how its steps run.

    Raises:
        UserError: ``graphs`` are given for a network that is not on a GPU, with a memory limit, or
            for a compiled model.

    >>> from wanvae import WanVAE, WanVAEConfig
    >>> import torch
    >>> vae = WanVAE(WanVAEConfig(dim=4, z_dim=2, num_res_blocks=1))
    >>> runner = Runner(vae.decoder_network(), Limits(plan=Plan((16, 16), 2)))
    >>> with torch.no_grad():
    ...     runner.run(torch.zeros(1, 2, 2, 4, 4)).shape
    torch.Size([1, 3, 5, 32, 32])
    """

    network: Network
    limits: Limits = field(default_factory=Limits)
    compilation: Compilation | None = None
    graphs: CUDAGraphs | None = None

    def __post_init__(self) -> None:
        if self.graphs is None:
            return
        if self.limits.max_memory is not None:
            raise UserError(
                "CUDA graphs keep memory that no plan counts: give max_memory or graphs, not both"
            )
        if self.compilation is not None:
            raise UserError(
                "this model is compiled: leave graphs out, and let PyTorch record graphs with "
                'vae.compile(mode="reduce-overhead")'
            )
        self.graphs.check_device(first_parameter(self.network.layers).device)

    def run(
        self,
        x: Tensor,
        progress: Progress | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Returns the result of a whole clip ``(B, C, T, H, W)``.

        Args:
            progress: is told the share of the work that is done, after the step of each layer and
                at the end. Compiled steps tell nothing. What it raises ends the run.
            device: of the result; None is the device of the network.

        Raises:
            UserError: the limits cannot be kept.
        """
        latents = self.network.count_latents(x.shape[2])
        plan = self.choose_plan(x.shape, latents)
        step = run_step
        if progress is not None:
            work = Costs(self.network).multiply_adds(self._workload(x.shape, latents), plan)
            step = TellingSteps(progress, work)
        coding = self.start(x.shape, plan, latents, step=step)
        result = coding.run(x, *self.network.frames_ahead(x), device=device)
        if progress is not None:
            progress(1.0)
        return result

    def choose_plan(self, shape: Sequence[int], latents: int | None) -> Plan:
        """Returns the plan for an input ``(B, C, T, H, W)``; ``latents`` is None for a stream."""
        return choose_plan(self.network, self._workload(shape, latents), self.limits)

    def estimate_memory(self, shape: Sequence[int], device: torch.device | None = None) -> int:
        """Returns the expected peak of memory for a clip ``(B, C, T, H, W)``, in bytes.

        The model and the clip are not counted.

        Args:
            device: where the network will run; None is where it is now.

        Raises:
            UserError: the limits cannot be kept.
        """
        latents = self.network.count_latents(shape[2])
        workload = self._workload(shape, latents, device)
        plan = choose_plan(self.network, workload, self.limits)
        return estimate_memory(self.network, workload, plan)

    def start(
        self,
        shape: Sequence[int],
        plan: Plan,
        latents: int | None = None,
        state: CodingState | None = None,
        step: StepOfLayer = run_step,
    ) -> Coding:
        """Returns a coding of inputs of ``shape`` ``(B, C, T, H, W)`` by a plan.

        Args:
            latents: the length of the clip in latents; None is a stream.
            state: the state of an earlier coding of the same size and plan, to continue from.
            step: runs the step of a layer, layer by layer.
        """
        network, limits = self.network, self.limits
        height, width = self._pixels(shape)
        if limits.processes == 1:
            exchange = LocalTiles(make_tiles(network, height, width, plan))
        else:
            network.require_streamable()
            shares = share_out(network, plan, height, width, limits.processes)
            exchange = SharedTiles(shares, limits.rank)
        options = self.compilation, self.graphs, step
        return Coding(network, plan, exchange, latents, state, *options)

    @property
    def identity(self) -> Identity:
        """The identity of this runner. A state continues only with the same identity."""
        network, limits = self.network, self.limits
        shapes = [
            (name, tuple(parameter.shape))
            for name, parameter in nn.ModuleList(network.layers).named_parameters()
        ]
        return (
            "decoder" if network.core_first else "encoder",
            sha256(repr(shapes).encode()).hexdigest()[:8],
            str(first_parameter(network.layers).dtype).removeprefix("torch."),
            limits.rank,
            limits.processes,
        )

    def _workload(
        self, shape: Sequence[int], latents: int | None, device: torch.device | None = None
    ) -> Workload:
        """Returns what there is to do for an input ``(B, C, T, H, W)``, as ``estimate_memory``."""
        height, width = self._pixels(shape)
        like = first_parameter(self.network.layers)
        rehearsal = find_rehearsal(like.device if device is None else device)
        return Workload(
            shape[0],
            shape[1],
            latents,
            height,
            width,
            like.dtype,
            offloads=rehearsal != "cpu",
            rehearsal=rehearsal,
        )

    def _pixels(self, shape: Sequence[int]) -> tuple[int, int]:
        """Returns height and width of the frames in pixels."""
        height, width = (side * self.network.pixels_per_input for side in shape[-2:])
        return height, width
