"""How a stream is cut into pieces and stages, and what a flow through them keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.helpers import WAN22, tiny
from wanvae.errors import UserError
from wanvae.execution.flow import (
    FEWEST_FRAMES,
    STEP_PIXELS,
    Flow,
    choose_frames,
    count_latents_at_once,
    make_stages,
    regroup,
)
from wanvae.nn import Downsample, Upsample
from wanvae.nn.sequential import time_factor

lengths_of_pieces = st.lists(st.integers(1, 9), max_size=6)
VARIANTS = [
    {},
    {"temporal_downsample": (True, False, True)},
    {"temporal_downsample": (True, True, True)},
    {"temporal_downsample": (False, False, False)},
    {"dim_mult": (1, 2), "temporal_downsample": (True,)},
    {"attn_scales": (0.5,)},
    WAN22,
]


def modules(layers):
    """Some layers and all that is inside them."""
    return nn.ModuleList(layers).modules()


def numbered(frames):
    """Frames that tell their number."""
    return torch.arange(frames, dtype=torch.float64).view(1, 1, frames, 1, 1).expand(2, 3, -1, 1, 2)


@given(lengths=lengths_of_pieces, frames=st.integers(1, 8), starts=st.booleans())
def test_pieces_are_regrouped(lengths, frames, starts):
    video = numbered(sum(lengths))
    pieces = list(
        regroup(video.split(lengths, dim=2) if lengths else [], frames, 1 if starts else frames)
    )
    made = [piece.shape[2] for piece in pieces]
    assert sum(made) == sum(lengths)
    assert min(made, default=1) > 0
    if starts and made:
        assert made.pop(0) == 1
    assert all(length == frames for length in made[:-1])
    assert all(length <= frames for length in made[-1:])
    if lengths:
        assert torch.equal(torch.cat(pieces, dim=2), video)


def test_a_piece_is_ready_before_the_next_comes():
    taken = []
    source = (taken.append(piece) or piece for piece in numbered(9).split([1, 4, 4], dim=2))
    for count, piece in enumerate(regroup(source, 2, 1)):
        assert piece[0, 0, 0, 0, 0] == max(0, 2 * count - 1)
        assert len(taken) == 1 + -(-count // 2)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_default_frames_are_even_and_fit(height, width):
    frames = choose_frames(height, width)
    assert frames % 2 == 0
    assert frames >= FEWEST_FRAMES == 2
    assert frames == 2 or frames * height * width <= STEP_PIXELS
    assert (frames + 2) * height * width > STEP_PIXELS


frames_at_once = st.one_of(st.just(1), st.integers(1, 20).map(lambda pairs: 2 * pairs))


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=15)
@given(frames=frames_at_once)
def test_stages_take_lengths_that_suit_their_layers(variant, decoding, frames):
    vae = tiny(**variant)
    network = vae.decoder_network() if decoding else vae.encoder_network()
    stages = make_stages(network.layers, frames, network.group)
    assert sum((stage.layers for stage in stages), ()) == network.layers
    group = network.group
    most = count_latents_at_once(frames)
    for stage in stages:
        assert stage.group == group
        # A whole number of groups of what comes later, and no more latents than at once.
        assert 1 <= stage.frames <= max(2, most * group)
        factor = time_factor(stage.layers)
        assert stage.frames * factor == int(stage.frames * factor)
        group = int(group * factor)
        assert not any(isinstance(module, Upsample) for module in modules(stage.layers[1:]))
        assert not any(isinstance(module, Downsample) for module in modules(stage.layers[:-1]))
    assert group == (vae.config.temporal_factor if decoding else 1)
    # What is made at full resolution at once is what was asked for.
    ends = stages[-1 if decoding else 0]
    doubled = time_factor(ends.layers) == 2
    halves = any(isinstance(module, Downsample) for module in modules(ends.layers))
    least = 2 if doubled or halves else 1
    assert ends.frames * (2 if doubled else 1) <= max(frames, least)


@pytest.mark.parametrize("decoding", [False, True])
def test_no_frames_is_one_stage(decoding):
    vae = tiny()
    network = vae.decoder_network() if decoding else vae.encoder_network()
    (stage,) = make_stages(network.layers, None, network.group)
    assert stage.layers == network.layers
    assert stage.frames is None


class Stepped:
    """Flows of a tiny model, and its result in one step."""

    def __init__(self, decoding, variant):
        vae = tiny(**variant)
        self.network = vae.decoder_network() if decoding else vae.encoder_network()
        self.step = vae.decode_step if decoding else vae.encode_step
        self.channels = 2 if decoding else 3
        self.side = 16 // self.network.pixels_per_input

    def input(self, latents):
        frames = 1 + (latents - 1) * self.network.group
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.channels, frames, self.side, self.side)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def flow(self, frames, latents=None, state=None):
        stages = make_stages(self.network.layers, frames, self.network.group)
        return Flow(stages, latents=latents, state=state)


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("variant", VARIANTS[:4], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 6])
@torch.no_grad()
def test_a_flow_gives_the_whole_and_drops_states_at_the_end(variant, decoding, frames):
    stepped, latents = Stepped(decoding, variant), 4
    x = stepped.input(latents)
    expected, _ = stepped.step(x, None)
    for known in (None, latents, latents + 1):
        flow = stepped.flow(frames, known)
        assert not flow.started
        y = torch.cat(list(flow.push([x])), dim=2)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
        assert flow.started == (known != latents)
        states = [state is None for state in flow.state]
        assert all(states) if known == latents else not any(states)


@pytest.mark.parametrize("decoding", [False, True])
@torch.no_grad()
def test_states_go_layer_by_layer_as_soon_as_the_end_has_passed(decoding):
    stepped = Stepped(decoding, {})
    flow = stepped.flow(2, 3)
    for _ in flow.push([stepped.input(3)]):
        first, last = flow.state[0], flow.state[-1]
    # When the last piece comes out, the states of the first layers have long been dropped.
    assert first is None
    assert last is None


@pytest.mark.parametrize("decoding", [False, True])
@settings(max_examples=8)
@given(frames=frames_at_once, lengths=st.lists(st.integers(1, 2), min_size=1, max_size=3))
@torch.no_grad()
def test_a_flow_goes_on_from_a_state(decoding, frames, lengths):
    stepped = Stepped(decoding, {})
    x = stepped.input(sum(lengths))
    expected, _ = stepped.step(x, None)
    group = stepped.network.group
    sizes = [length * group for length in lengths]
    sizes[0] -= group - 1
    state, made = None, []
    for piece in x.split(sizes, dim=2):
        flow = stepped.flow(frames, state=state)
        made += flow.push([piece])
        state = flow.state
    torch.testing.assert_close(torch.cat(made, dim=2), expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_flow_moves_pieces_to_the_dtype_of_its_layers():
    stepped = Stepped(False, {})
    nn.ModuleList(stepped.network.layers).float()
    (y,) = stepped.flow(None).push([stepped.input(1)])
    assert y.dtype == torch.float32


@torch.no_grad()
def test_a_flow_that_was_left_half_way_refuses_to_go_on():
    stepped = Stepped(True, {})
    flow = stepped.flow(1)
    next(flow.push([stepped.input(3)]))
    with pytest.raises(UserError, match="broken"):
        next(flow.push([stepped.input(1)]))
