"""Tiles: exactly the result of the whole, without ever making the whole at full resolution."""

import io
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import WAN22, random_video, tensors_in, tiny
from wanvae import WanVAE
from wanvae.execution.flow import make_stages
from wanvae.execution.limits import Limits
from wanvae.execution.plan import Plan, cut_into_spans, find_regions, make_default_plan, make_tiles
from wanvae.execution.run import Runner
from wanvae.execution.sessions import StreamDecoder
from wanvae.execution.tiling import cut_stages
from wanvae.nn import AttentionBlock
from wanvae.nn.region import Span
from wanvae.nn.sequential import count_output

VARIANTS = [
    {},
    {"attn_scales": (0.5,)},
    {"attn_scales": (0.25,)},
    {"block": "dense"},
    {"block": "bottleneck", "norm": "layer"},
    {"temporal_downsample": (True, False, True), "activation": "relu"},
    {"temporal_downsample": (False, False, False), "block": "standard", "norm": "batch"},
    {"dim_mult": (1, 2), "temporal_downsample": (True,)},
    WAN22,
    {**WAN22, "temporal_downsample": (True, True, False), "dropout": 0.1},
    {"upscale_factor": 2},
]
MODELS = [tiny(**variant) for variant in VARIANTS]
IDS = [str(variant) for variant in VARIANTS]

side = st.integers(1, 5).map(lambda latents: 8 * latents)
tile = st.integers(1, 6).map(lambda latents: 8 * latents)


def fitting(sides, network):
    """Multiples of 8 as those of the spatial factor of a network, if that is more."""
    factor = max(1, network.spatial_factor // 8)
    return factor * sides if isinstance(sides, int) else tuple(factor * side for side in sides)


def exactly(dtype):
    return {"rtol": 0, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}


@contextmanager
def shell_only_in_tiles(vae):
    """Inside, a layer of a shell that makes whole frames is an error."""
    shells = {*vae.encoder_network().shell, *vae.decoder_network().shell}
    seen = set()

    def guarded(layer):
        step = layer.step

        def guarded_step(x, state, region=None):
            assert region is not None, f"{type(layer).__name__} makes whole frames"
            seen.add(layer)
            return step(x, state, region)

        return guarded_step

    with pytest.MonkeyPatch.context() as patch:
        for layer in shells:
            patch.setattr(layer, "step", guarded(layer))
        yield
    assert seen == {*vae.encoder_network().shell} or seen == {*vae.decoder_network().shell}


def latents_of(batch, length, height, width):
    generator = torch.Generator().manual_seed(2)
    shape = (batch, 2, length, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_guard_sees_whole_frames():
    vae = MODELS[0]
    with pytest.raises(AssertionError, match="makes whole frames"), shell_only_in_tiles(vae):
        vae.decode(latents_of(1, 1, 2, 2))


@pytest.mark.parametrize("index", range(len(MODELS)), ids=IDS)
@settings(max_examples=4)
@given(
    batch=st.integers(1, 2),
    latents=st.integers(1, 3),
    size=st.tuples(side, side),
    tile_size=st.one_of(tile, st.tuples(tile, tile)),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@example(batch=1, latents=3, size=(24, 40), tile_size=(24, 16), dtype=torch.float64)
def test_tiles_give_the_whole(index, batch, latents, size, tile_size, dtype):
    vae = tiny(**VARIANTS[index]).to(dtype) if dtype == torch.float32 else MODELS[index]
    frames = 1 + (latents - 1) * vae.config.temporal_factor
    size = fitting(size, vae.encoder_network())
    video = random_video(frames, *size, batch=batch)
    whole = vae.encode(video)
    with shell_only_in_tiles(vae):
        tiled = vae.encode(video, tile_size=fitting(tile_size, vae.encoder_network()))
    torch.testing.assert_close(tiled.mean, whole.mean, **exactly(dtype))
    torch.testing.assert_close(tiled.logvar, whole.logvar, **exactly(dtype))

    factor = vae.config.spatial_factor
    z = latents_of(batch, latents, *(n // factor for n in size))
    decoded = vae.decode(z, clamp=False)
    with shell_only_in_tiles(vae):
        tile_size = fitting(tile_size, vae.decoder_network())
        tiled = vae.decode(z, clamp=False, tile_size=tile_size)
    torch.testing.assert_close(tiled, decoded, **exactly(dtype))


class Sizes(TorchDispatchMode):
    """The largest image, in positions, that was made with more than three channels."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dim() > 3 and leaf.shape[1] > 3:
                self.largest = max(self.largest, leaf.shape[-2] * leaf.shape[-1])
        return result


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("variant", [{}, {"attn_scales": (0.25,)}], ids=str)
def test_no_features_cover_the_frame(variant, decoding):
    vae, (height, width) = tiny(**variant), (16, 320)
    video, z = random_video(5, height, width), latents_of(1, 2, 2, 40)
    largest = []
    for tile_size in (None, 16):
        with Sizes() as sizes:
            if decoding:
                vae.decode(z, tile_size=tile_size)
            else:
                vae.encode(video, tile_size=tile_size)
        largest.append(sizes.largest)
    assert largest[0] >= height * width
    assert largest[1] < height * width / 2


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_attention_always_runs_on_whole_frames(scale, decoding):
    vae = tiny(attn_scales=(scale,))
    network = vae.decoder_network() if decoding else vae.encoder_network()
    for part, has in ((network.shell, False), (network.core, True)):
        found = [m for layer in part for m in layer.modules() if isinstance(m, AttentionBlock)]
        assert bool(found) == has
    own = (vae.conv2, *vae.decoder.layers()) if decoding else (*vae.encoder.layers(), vae.conv1)
    assert network.layers == own


@pytest.mark.parametrize("index", range(len(MODELS)), ids=IDS)
@pytest.mark.parametrize("frames", [1, 9])
def test_a_split_core_gives_the_whole(index, frames):
    vae = MODELS[index]
    factor = vae.config.temporal_factor
    video, z = (
        random_video(1 + (frames - 1) // 8 * 2 * factor, 32, 48),
        latents_of(1, frames, 4, 6),
    )
    expected = vae.encode(video).mean, vae.decode(z, clamp=False)
    limits = Limits(plan=Plan((16, 32), 2, split_core=True))
    with torch.no_grad(), shell_only_in_tiles(vae):
        mean = Runner(vae.encoder_network(), limits).run(video)[:, :2]
    with torch.no_grad(), shell_only_in_tiles(vae):
        decoded = Runner(vae.decoder_network(), limits).run(z)
    torch.testing.assert_close((mean, decoded), expected, **exactly(torch.float64))


def test_a_split_core_has_only_attention_on_whole_frames():
    for network in (MODELS[0].encoder_network(), MODELS[0].decoder_network()):
        parts = network.parts(split_core=True)
        assert sum((part.layers for part in parts), ()) == network.layers
        assert [part.whole for part in parts] == [False, True, False]
        assert isinstance(parts[1].layers[0], AttentionBlock) and len(parts[1].layers) == 1


def devices_of(state):
    """The devices of all tensors of a state."""
    return {tensor.device.type for tensor in tensors_in(state)}


@pytest.mark.parametrize("split_core", [False, True])
def test_states_wait_on_the_host_while_other_tiles_run(split_core):
    """On tensors that have no values, and that tell of a GPU."""
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        vae = WanVAE(MODELS[0].config).eval()
        network = vae.decoder_network()
        plan = Plan((16, 32), 2, split_core=split_core, offload=True)
        coding = Runner(network).start((1, 2, 3, 4, 6), plan)
        flows = [flow for part, flows in coding.parts if not part.whole for _, flow in flows]
        assert len(flows) == 4 * (2 if split_core else 1)
        for _ in range(3):
            for piece in coding.push([torch.empty(1, 2, 1, 4, 6)]):
                assert piece.device.type == "cuda"
            assert all(devices_of(flow.state) == {"cpu"} for flow in flows)
            assert all(
                devices_of(flow.state) <= {"cuda"}  # attention has none
                for part, flows in coding.parts
                if part.whole
                for _, flow in flows
            )


@pytest.mark.parametrize("split_core", [False, True])
def test_a_stream_with_offloaded_states_gives_the_whole(split_core):
    vae, z = MODELS[0], latents_of(1, 3, 4, 6)
    runner = Runner(
        vae.decoder_network(),
        Limits(plan=Plan((16, 32), 2, split_core=split_core, offload=True)),
    )
    session = StreamDecoder(runner, vae.check_latents, clamp=False)
    decoded = [session.push(z[:, :, :1])]
    session = vae.stream_decode(saved_and_loaded(session.state), clamp=False)
    assert session.plan == runner.limits.plan
    decoded.append(session.push(z[:, :, 1:]))
    expected = vae.decode(z, clamp=False)
    torch.testing.assert_close(torch.cat(decoded, dim=2), expected, **exactly(torch.float64))


pushes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def push_restored(open_session, pieces, tile_size, saves):
    """Push pieces; sessions are saved and restored, without a word on tiles, where told."""
    session, results = open_session(None, tile_size=tile_size), []
    for piece, save in zip(pieces, saves, strict=False):
        results.append(session.push(piece))
        plan = session.plan
        assert plan.tile_size == tile_size
        if save:
            session = open_session(saved_and_loaded(session.state))
            assert session.plan == plan
    return [result for result in results if result is not None], session


@pytest.mark.parametrize("index", [0, 2, 5, 8], ids=[IDS[index] for index in (0, 2, 5, 8)])
@settings(max_examples=6)
@given(
    lengths=pushes,
    size=st.tuples(side, side),
    tile_size=st.tuples(tile, tile),
    saves=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_sessions_tile(index, lengths, size, tile_size, saves):
    vae = MODELS[index]
    size, tile_size = (fitting(sides, vae.encoder_network()) for sides in (size, tile_size))
    video = random_video(sum(lengths), *size)
    padding = -(sum(lengths) - 1) % vae.config.temporal_factor
    padded = torch.cat([video, video[:, :, -1:].expand(-1, -1, padding, -1, -1)], dim=2)
    whole = vae.encode(padded)
    z = latents_of(1, len(lengths), *(n // vae.config.spatial_factor for n in size))
    decoded = vae.decode(z, clamp=False)
    with shell_only_in_tiles(vae):
        pieces = video.split(lengths, dim=2)
        results, session = push_restored(vae.stream_encode, pieces, tile_size, saves)
        end = session.finish()
        results += [] if end.posterior is None else [end.posterior]
    mean = torch.cat([posterior.mean for posterior in results], dim=2)
    torch.testing.assert_close(mean, whole.mean, **exactly(torch.float64))

    def open_session(state, **options):
        return vae.stream_decode(state, clamp=False, **options)

    with shell_only_in_tiles(vae):
        results, _ = push_restored(open_session, z.split(1, dim=2), tile_size, saves)
    torch.testing.assert_close(torch.cat(results, dim=2), decoded, **exactly(torch.float64))


def test_a_restored_session_keeps_its_plan_whatever_is_asked():
    vae, z = MODELS[0], latents_of(1, 2, 3, 4)
    first = vae.stream_decode(clamp=False, tile_size=16)
    made = [first.push(z[:, :, :1])]
    second = vae.stream_decode(saved_and_loaded(first.state), clamp=False, tile_size=8)
    assert second.plan == first.plan == Plan((16, 16), first.plan.frames)
    made.append(second.push(z[:, :, 1:]))
    decoded = vae.decode(z, clamp=False)
    torch.testing.assert_close(torch.cat(made, dim=2), decoded, **exactly(torch.float64))


@given(size=st.integers(1, 60), largest=st.integers(1, 70), factor=st.sampled_from([1, 2, 8]))
def test_spans_cover_an_axis_once(size, largest, factor):
    size, largest = size * factor, largest * factor
    made = cut_into_spans(size, largest, factor)
    ends = [0, *(span.stop for span in made)]
    assert [span.start for span in made] == ends[:-1]
    assert ends[-1] == size
    lengths = [len(span) for span in made]
    assert max(lengths) <= largest
    assert max(lengths) - min(lengths) <= factor
    assert all(span.start % factor == 0 and span.size == size for span in made)
    assert len(made) == -(-size // largest)


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("variant", [{}, {"attn_scales": (0.25,)}], ids=str)
def test_tiles_cover_the_output_of_the_shell_once(variant, decoding):
    vae = tiny(**variant)
    network = vae.decoder_network() if decoding else vae.encoder_network()
    (shell,) = (part for part in network.parts(split_core=False) if not part.whole)
    tiles = find_regions(shell, make_tiles(network, 40, 72, Plan((16, 32), 2)))
    rows, columns = tiles[0]
    covered = torch.zeros(rows.size, columns.size)
    for rows, columns in tiles:
        covered[rows.start : rows.stop, columns.start : columns.stop] += 1
    assert torch.equal(covered, torch.ones_like(covered))
    assert len(tiles) == 9
    # An encoder that leaves its smallest resolutions to the core has a larger shell output.
    factor = 1 if decoding else 4 if variant else 8
    assert covered.shape == (40 // factor, 72 // factor)
    assert make_tiles(network, 40, 72, Plan(None, 2)) == [None]
    assert make_tiles(network, 40, 72, Plan((48, 80), 2)) == [(Span(0, 40, 40), Span(0, 72, 72))]


@given(count=st.integers(0, 40))
def test_stages_are_cut_between_any_layers(count):
    layers = MODELS[0].decoder_network().layers
    count = min(count, len(layers))
    before, after = cut_stages(make_stages(layers, 2, 1), count)
    assert sum((stage.layers for stage in before), ()) == layers[:count]
    assert sum((stage.layers for stage in after), ()) == layers[count:]
    assert all(stage.layers for stage in before + after)
    frames = 17
    for stage in before + after:
        # A stage knows how many frames of its input a clip of 17 latents has.
        assert frames == 1 + 16 * stage.group
        frames = count_output(stage.layers, frames, starts=True)
    assert frames == 65


BAD = [0, 12, -8, (16, 0), (16, 12), (-16, 16)]


@pytest.mark.parametrize("tile_size", BAD, ids=str)
def test_bad_tile_sizes_are_named(tile_size):
    vae, video = MODELS[0], random_video(1)
    pair = tile_size if isinstance(tile_size, tuple) else (tile_size, tile_size)
    message = rf"multiple of 8, not \({pair[0]}, {pair[1]}\)"
    with pytest.raises(ValueError, match=message):
        vae.encode(video, tile_size=tile_size)
    with pytest.raises(ValueError, match=message):
        vae.decode(latents_of(1, 1, 2, 2), tile_size=tile_size)
    with pytest.raises(ValueError, match=message):
        vae.stream_encode(tile_size=tile_size).push(video)
    with pytest.raises(ValueError, match=message):
        vae.stream_decode(tile_size=tile_size).push(latents_of(1, 1, 2, 2))


@pytest.mark.parametrize("tile_size", [(16,), (16, 16, 16)], ids=str)
def test_a_tile_has_two_sides(tile_size):
    with pytest.raises(ValueError, match="16"):
        MODELS[0].decode(latents_of(1, 1, 2, 2), tile_size=tile_size)


def test_models_that_need_whole_clips_refuse_tiles():
    vae = tiny(norm="group")
    video, z = random_video(5), latents_of(1, 2, 2, 2)
    with pytest.raises(ValueError, match="cannot be tiled"):
        vae.encode(video, tile_size=8)
    with pytest.raises(ValueError, match="cannot be tiled"):
        vae.decode(z, tile_size=8)
    assert make_default_plan(vae.decoder_network(), 16, 16, None) == Plan(None, None)
    expected = vae.decode_step(z, None)[0]
    torch.testing.assert_close(vae.decode(z, clamp=False), expected)


def test_tiles_and_a_budget_exclude_each_other():
    vae, video, z = MODELS[0], random_video(1), latents_of(1, 1, 2, 2)
    both = {"tile_size": 16, "max_memory": "1GB"}
    for run in (
        lambda: vae.encode(video, **both),
        lambda: vae.decode(z, **both),
        lambda: vae.stream_encode(**both).push(video),
        lambda: vae.stream_decode(**both).push(z),
    ):
        with pytest.raises(ValueError, match=r"max_memory.*tile_size"):
            run()
