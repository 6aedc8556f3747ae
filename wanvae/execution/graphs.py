"""CUDA graphs: a step is recorded once, and then replayed by one launch.

A step of a stage launches hundreds of kernels. With small frames a GPU waits for these launches. A
graph has no such waits, but it always reads and writes the same memory. So inputs and states are
copied into memory of the graph, and results are copied out. Outside of this file a graph is a
function from input and states to output and states, and nothing that others hold is overwritten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from wanvae.errors import UserError
from wanvae.execution.compilation import StepOfStage
from wanvae.execution.meter import allocate, find_order
from wanvae.execution.nested import copy_tensors, map_nested, write_tensors
from wanvae.nn import State, Streaming
from wanvae.nn.sequential import step_through

R = TypeVar("R")
# A decoder has four resolutions, and at each of them a first, a second and a later step. So these
# are the graphs to encode and to decode frames of two sizes.
LIMIT = 64
# Steps that are remembered, for each graph that is kept.
REMEMBERED = 16
# How often work runs before it is recorded, so that libraries have chosen their kernels.
WARM_UPS = 2

# Output and next states.
Results: TypeAlias = "tuple[Tensor, tuple[State, ...]]"


class Recorder(Protocol):
    """Records work on a device, and replays it."""

    def check_device(self, device: torch.device) -> None:
        """Raises UserError if work on ``device`` cannot be recorded."""
        ...

    def record(self, device: torch.device, work: Callable[[], R]) -> tuple[R, Callable[[], object]]:
        """Records ``work``, which reads memory that stays where it is.

        Returns:
            Results of ``work``, and a function that replays the work: it writes new values to the
            memory of these results. Each replay may also overwrite the results of other work.
        """
        ...


class CUDARecorder:
    """Records CUDA graphs. All graphs share one pool of memory, because they run in turns."""

    def __init__(self) -> None:
        self._pool: Any = None
        # Graphs share memory only if they are recorded on one stream.
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def check_device(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise UserError(
                f"CUDA graphs need a model on a CUDA device, not on {device}: move the model, or "
                "leave graphs out"
            )

    def record(self, device: torch.device, work: Callable[[], R]) -> tuple[R, Callable[[], object]]:
        pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            stream = self._streams.setdefault(device, torch.cuda.Stream())
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads may copy frames to the host meanwhile.
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                results = work()
        self._pool = pool

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return results, replay


@dataclass(frozen=True)
class StepGraph:
    """A recorded step of a stage.

    Attributes:
        given: the memory that the graph reads: an input, and states or None.
        results: the memory that it writes: output and next states.
        replay: runs the step.
        kept: what the graph also reads, and what must not be freed before it.
    """

    given: tuple[Tensor, tuple[State, ...] | None]
    results: Results
    replay: Callable[[], object]
    kept: object

    def run(self, x: Tensor, states: tuple[State, ...] | None) -> Results:
        """Returns the output and the next states, which belong to the caller."""
        write_tensors(self.given, (x, states))
        self.replay()
        return copy_tensors(self.results)


class CUDAGraphs:
    """CUDA graphs of the steps of encoders and decoders.

    A step is recorded when an input and states of the same shapes come the second time: in a
    stream, and in later calls. Any number of models, clips and sessions share these graphs, in any
    order and from any thread, but all on one CUDA stream. This object keeps the graphs, their
    memory and the layers of their models.

    Steps in tiles and under autocast are not recorded. A graph keeps settings of PyTorch, like
    whether TF32 is allowed, as they were when it was recorded. Weights that change in place need no
    new graph.

    Args:
        limit: the most graphs that are kept. The graph that was not used for the longest time goes
            first. One size of frames needs about 12 graphs to decode, and 12 to encode.
        recorder: what records and replays.

    Raises:
        UserError: ``limit`` is not positive.
    """

    def __init__(self, limit: int = LIMIT, *, recorder: Recorder | None = None) -> None:
        if limit < 1:
            raise UserError(f"limit must be positive, not {limit}")
        self._limit = limit
        self._recorder = CUDARecorder() if recorder is None else recorder
        self._graphs: OrderedDict[Hashable, StepGraph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Returns the number of graphs that are kept."""
        return len(self._graphs)

    def check_device(self, device: torch.device) -> None:
        """Raises UserError if steps on ``device`` cannot be recorded."""
        self._recorder.check_device(device)

    def start(self) -> StepOfStage:
        """Returns a function that runs the steps of one clip or session."""
        parameters: dict[tuple[Streaming, ...], list[Tensor]] = {}

        def step(
            layers: Sequence[Streaming], x: Tensor, states: tuple[State, ...] | None
        ) -> Results:
            layers = tuple(layers)
            if layers not in parameters:
                parameters[layers] = list_parameters(layers)
            return self._step(layers, parameters[layers], x, states)

        return step

    def _step(
        self,
        layers: tuple[Streaming, ...],
        parameters: Sequence[Tensor],
        x: Tensor,
        states: tuple[State, ...] | None,
    ) -> Results:
        # Autocast keeps converted weights, and frees them at its end.
        if torch.is_autocast_enabled(x.device.type):
            return step_through(layers, x, states)
        # A graph keeps its layers and parameters, so nothing else can be where they were.
        places = *map(id, layers), *(parameter.data_ptr() for parameter in parameters)
        training = any(layer.training for layer in layers)
        key = places, training, x.device, map_nested(find_form, (x, states))
        with self._lock:
            if key in self._graphs:
                self._graphs.move_to_end(key)
                return self._graphs[key].run(x, states)
            if key in self._seen:
                graph = self._graphs[key] = self._record(layers, parameters, x, states)
                drop_oldest(self._graphs, self._limit)
                return graph.run(x, states)
            self._seen[key] = None
            drop_oldest(self._seen, self._limit * REMEMBERED)
        return step_through(layers, x, states)

    # Memory of a graph must be writable outside of inference mode too, so it is allocated there.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _record(
        self,
        layers: tuple[Streaming, ...],
        parameters: Sequence[Tensor],
        x: Tensor,
        states: tuple[State, ...] | None,
    ) -> StepGraph:
        given = map_nested(lambda tensor: allocate(tensor.shape, tensor), (x, states))
        write_tensors(given, (x, states))
        results, replay = self._recorder.record(x.device, lambda: step_through(layers, *given))
        kept = layers, [parameter.detach() for parameter in parameters]
        return StepGraph(given, results, replay, kept)


def list_parameters(layers: Sequence[Streaming]) -> list[Tensor]:
    """Returns the parameters and buffers of some layers."""
    return list(chain.from_iterable((*layer.parameters(), *layer.buffers()) for layer in layers))


def find_form(x: Tensor) -> Hashable:
    """Returns what a graph depends on: shape, order of the axes in memory, and dtype."""
    return tuple(x.shape), find_order(x), x.dtype


def drop_oldest(entries: OrderedDict[Any, Any], limit: int) -> None:
    """Drops the first entries until there are no more than ``limit``."""
    while len(entries) > limit:
        entries.popitem(last=False)
