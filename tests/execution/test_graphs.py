"""Recorded steps: the same results as without, in any order, and nothing that is overwritten."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import QWEN21, WAN22, random_video, tensors_in, tiny, tiny_autoencoder
from tests.rerunning import Rerunner
from wanvae import CUDAGraphs, TinyVAE, WanVAE
from wanvae.errors import UserError
from wanvae.execution.compilation import Compilation, compiled_step
from wanvae.nn import CausalConv
from wanvae.nn.streaming import Streaming

MODELS: dict[str, Callable[[], WanVAE | TinyVAE]] = {
    "Wan2.1": tiny,
    "Wan2.2": lambda: tiny(**WAN22),
    "attention": lambda: tiny(attn_scales=(0.5,)),
    "Qwen-Image 2.1": lambda: tiny(**QWEN21),
    "tiny": tiny_autoencoder,
}


class Recorded:
    """Graphs of a stand-in that runs steps again."""

    def __init__(self, limit: int = 64) -> None:
        self.recorder = Rerunner()
        self.graphs = CUDAGraphs(limit, recorder=self.recorder)


def random_latents(vae: WanVAE | TinyVAE, count: int, width: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, vae.config.z_dim, count, 2, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_whole_clips_are_those_of_the_model(name: str) -> None:
    vae, recorded = MODELS[name](), Recorded()
    video = random_video(9, channels=vae.config.in_channels)
    for _ in range(3):
        found = vae.encode(video, graphs=recorded.graphs)
        torch.testing.assert_close(found.mean, vae.encode(video).mean)
        torch.testing.assert_close(found.logvar, vae.encode(video).logvar)
        decoded = vae.decode(found.mean, graphs=recorded.graphs)
        torch.testing.assert_close(decoded, vae.decode(found.mean))
    assert recorded.recorder.replayed > recorded.recorder.recorded == len(recorded.graphs) > 0


pushes = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@settings(max_examples=8)
@given(lengths=pushes, width=st.integers(1, 3))
def test_any_pushes_decode_to_the_whole(lengths: list[int], width: int) -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, sum(lengths), width)
    for _ in range(2):
        session = vae.stream_decode(graphs=recorded.graphs)
        pieces = [session.push(piece) for piece in latents.split(lengths, dim=2)]
        torch.testing.assert_close(torch.cat(pieces, dim=2), vae.decode(latents))


@settings(max_examples=8)
@given(lengths=pushes)
def test_any_pushes_encode_to_the_whole(lengths: list[int]) -> None:
    vae, recorded = tiny(), Recorded()
    video = random_video(1 + 4 * sum(lengths))
    pieces = video.split([1, *(4 * length for length in lengths)], dim=2)
    for _ in range(2):
        session = vae.stream_encode(graphs=recorded.graphs)
        means = [posterior.mean for piece in pieces if (posterior := session.push(piece))]
        torch.testing.assert_close(torch.cat(means, dim=2), vae.encode(video).mean)


@settings(max_examples=8)
@given(turns=st.lists(st.integers(0, 2), min_size=1, max_size=16))
def test_sessions_in_turns_do_not_mix(turns: list[int]) -> None:
    """Two of one model, and one of another model with the same shapes."""
    models, recorded = [tiny()] * 2 + [tiny(dim=6)], Recorded()
    streams = [random_latents(vae, 24, seed=seed) for seed, vae in enumerate(models)]
    sessions = [vae.stream_decode(graphs=recorded.graphs) for vae in models]
    pieces: list[list[Tensor]] = [[], [], []]
    for turn in turns:
        start = len(pieces[turn])
        pieces[turn].append(sessions[turn].push(streams[turn][:, :, start : start + 1]))
    for vae, latents, found in zip(models, streams, pieces, strict=True):
        if found:
            expected = vae.decode(latents[:, :, : len(found)])
            torch.testing.assert_close(torch.cat(found, dim=2), expected)


def test_what_came_out_never_changes() -> None:
    vae, recorded = tiny(), Recorded()
    session, held, copies = vae.stream_decode(graphs=recorded.graphs), [], []
    for latent in random_latents(vae, 12).split(1, dim=2):
        frames = session.push(latent)
        held += [frames, *tensors_in(session.state)]
        copies += [x.clone() for x in held[len(copies) :]]
    assert recorded.recorder.replayed > 20
    assert all(map(torch.equal, held, copies))


def test_what_came_out_shares_no_memory_with_graphs() -> None:
    vae, recorded = tiny(), Recorded()
    session = vae.stream_decode(graphs=recorded.graphs)
    frames = [session.push(latent) for latent in random_latents(vae, 6).split(1, dim=2)]
    ours = {
        x.untyped_storage().data_ptr()
        for graph in recorded.graphs._graphs.values()
        for x in tensors_in((graph.given, graph.results))
    }
    theirs = {x.untyped_storage().data_ptr() for x in [*frames, *tensors_in(session.state)]}
    assert ours and not ours & theirs


@pytest.mark.parametrize("graphs_first", [True, False])
def test_a_saved_state_goes_on_with_and_without_graphs(graphs_first: bool) -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 12)
    first, second = (recorded.graphs, None) if graphs_first else (None, recorded.graphs)
    session = vae.stream_decode(graphs=first)
    pieces = [session.push(latent) for latent in latents[:, :, :6].split(1, dim=2)]
    file = io.BytesIO()
    torch.save(session.state, file)
    session.push(latents[:, :, :3])  # the saved state does not see what comes after it
    file.seek(0)
    session = vae.stream_decode(torch.load(file, weights_only=True), graphs=second)
    pieces += [session.push(latent) for latent in latents[:, :, 6:].split(1, dim=2)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), vae.decode(latents))
    assert recorded.recorder.replayed


def test_a_step_is_recorded_when_its_shapes_come_the_second_time() -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 1)
    numbers = []
    for _ in range(3):
        vae.decode(latents, graphs=recorded.graphs)
        numbers.append((recorded.recorder.recorded, recorded.recorder.replayed))
    stages = numbers[1][0]
    assert stages > 1
    assert numbers == [(0, 0), (stages, stages), (stages, 2 * stages)]
    vae.decode(random_latents(vae, 1, width=4), graphs=recorded.graphs)
    vae.float().decode(latents.float(), graphs=recorded.graphs)
    assert recorded.recorder.recorded == stages  # another width, another dtype


def test_other_weights_are_seen() -> None:
    """Weights that change in place, and weights that move."""
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 2, width=1)

    def agrees() -> bool:
        found = [vae.decode(latents, graphs=recorded.graphs) for _ in range(3)]
        return all(torch.allclose(x, vae.decode(latents)) for x in found)

    assert agrees()
    before = recorded.recorder.recorded
    for parameter in vae.parameters():
        parameter.data.mul_(1.1)
    assert agrees() and recorded.recorder.recorded == before
    for parameter in vae.parameters():
        parameter.data = parameter.data * 1.1
    assert agrees() and recorded.recorder.recorded == 2 * before
    vae.float().double()
    assert agrees()
    layer = next(m for m in vae.decoder.modules() if isinstance(m, CausalConv))
    layer.weight = nn.Parameter(layer.weight * 2)
    assert agrees()


def test_weights_that_move_in_the_middle_of_a_session_are_seen() -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 12)
    session = vae.stream_decode(graphs=recorded.graphs)
    pieces = []
    for index, latent in enumerate(latents.split(1, dim=2)):
        if index == 6:
            assert recorded.recorder.replayed
            for parameter in vae.parameters():
                parameter.data = parameter.data.clone()
        pieces.append(session.push(latent))
    torch.testing.assert_close(torch.cat(pieces, dim=2), vae.decode(latents))


def test_no_more_graphs_than_the_limit_are_kept() -> None:
    vae, recorded = tiny(), Recorded(limit=3)
    for width in (1, 2, 1):
        latents = random_latents(vae, 4, width)
        for _ in range(2):
            found = vae.decode(latents, graphs=recorded.graphs)
            torch.testing.assert_close(found, vae.decode(latents))
            assert len(recorded.graphs) <= 3
    assert recorded.recorder.recorded > 3
    with pytest.raises(UserError, match="limit must be positive, not 0"):
        CUDAGraphs(0)


def test_graphs_work_inside_and_outside_of_inference_mode() -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 6)
    expected = vae.decode(latents)
    for inference in (True, True, False, True):
        with torch.inference_mode(inference):
            found = vae.decode(latents, graphs=recorded.graphs)
            torch.testing.assert_close(found, expected)
    assert recorded.recorder.replayed


def test_autocast_records_nothing() -> None:
    vae, recorded = tiny().float(), Recorded()
    latents = random_latents(vae, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = vae.decode(latents)
        for _ in range(3):
            assert torch.equal(vae.decode(latents, graphs=recorded.graphs), expected)
    assert recorded.recorder.recorded == 0


def test_tiles_run_without_graphs_and_the_core_with_them() -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 8, width=4)
    for _ in range(3):
        tiled = vae.decode(latents, tile_size=16, graphs=recorded.graphs)
        torch.testing.assert_close(tiled, vae.decode(latents))
    core = {id(layer) for layer in vae.decoder_network().core}
    kept = [layer for graph in recorded.graphs._graphs.values() for layer in graph.kept[0]]
    assert kept and {id(layer) for layer in kept} <= core


def test_what_graphs_cannot_do_is_refused() -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 1)
    with pytest.raises(UserError, match="need a model on a CUDA device, not on cpu"):
        vae.stream_decode(graphs=CUDAGraphs())
    with pytest.raises(UserError, match="max_memory or graphs, not both"):
        vae.decode(latents, max_memory="1GB", graphs=recorded.graphs)
    vae.compile(backend="eager")
    with pytest.raises(UserError, match=r'vae.compile\(mode="reduce-overhead"\)'):
        vae.decode(latents, graphs=recorded.graphs)


def test_a_model_is_not_kept_by_steps_that_were_only_seen() -> None:
    vae, recorded = tiny(), Recorded()
    vae.decode(random_latents(vae, 1), graphs=recorded.graphs)
    layer = next(iter(vae.decoder.modules()))
    del vae
    import gc

    gc.collect()
    assert not [x for x in gc.get_referrers(layer) if x is recorded.graphs._seen]


class Passing(Streaming):
    """Gives a view of its input, its old state as output, and a state that it only passes on."""

    def step(self, x: Tensor, state: Any, region: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            return x, (x[:, :, -1:], torch.zeros_like(x))
        past, same = state
        return torch.cat([past, x[:, :, 1:]], dim=2) + same, (x[:, :, -1:], same)


@pytest.mark.usefixtures("no_gradients")
def test_results_that_share_memory_with_inputs_are_copied() -> None:
    recorded, layer = Recorded(), Passing()
    runs = []
    for step in (recorded.graphs.start(), lambda layers, x, states: plainly(layer, x, states)):
        states, outputs = None, []
        for index in range(6):
            x = torch.full((1, 1, 2, 1, 1), float(index))
            y, states = step((layer,), x, states)
            outputs.append(y)
        runs.append(torch.cat(outputs, dim=2))
    assert recorded.recorder.replayed
    assert torch.equal(*runs)


def plainly(layer: Passing, x: Tensor, states: Any) -> tuple[Tensor, Any]:
    y, state = layer.step(x, None if states is None else states[0])
    return y, (state,)


@pytest.fixture
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_memory_that_nobody_keeps_is_found() -> None:
    """That the stand-in would see a mistake."""

    class Constant(nn.Module):
        def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            return x + x.new_tensor([1.0]), ()

    layer, recorder = Constant(), Rerunner()
    x = torch.zeros(1)
    with torch.no_grad(), pytest.raises(AssertionError, match="freed"):
        recorder.record(x.device, lambda: layer.step(x, None))
    place = [torch.zeros(1)]
    with torch.no_grad():
        _, replay = recorder.record(x.device, lambda: (x + place[0],))
        place[0] = torch.ones(1)
        with pytest.raises(AssertionError, match="would not"):
            replay()


def test_results_of_compiled_graphs_belong_to_the_caller() -> None:
    """As "reduce-overhead" does, this backend overwrites what it gave before."""

    def backend(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Callable[..., Any]:
        places: list[Tensor] = []

        def run(*values: Any) -> Any:
            results = graph.forward(*values)
            if not places:
                places.extend(x.clone() for x in results)
            for place, result in zip(places, results, strict=True):
                place.copy_(result)
            return tuple(places)

        return run

    options = {"backend": backend, "mode": "reduce-overhead"}
    assert Compilation.from_options({"mode": "max-autotune"}).records_graphs
    assert Compilation.from_options({"options": {"triton.cudagraphs": True}}).records_graphs
    assert not Compilation.from_options({"backend": backend}).records_graphs
    step = compiled_step(Compilation.from_options(options))
    layers = (CausalConv(3, 2, 2, 3).double(),)
    video = random_video(8, 4, 4, channels=2)
    states, outputs = None, []
    with torch.no_grad():
        for piece in video.split(2, dim=2):
            y, states = step(layers, piece, states)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, dim=2), layers[0](video))


def test_models_with_graphs_can_still_be_copied() -> None:
    vae, recorded = tiny(), Recorded()
    latents = random_latents(vae, 3)
    for _ in range(2):
        vae.decode(latents, graphs=recorded.graphs)
    torch.testing.assert_close(copy.deepcopy(vae).decode(latents), vae.decode(latents))
