"""Plans keep what they promise: measured on real runs, not on the meta device."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import WAN22, random_video, tensors_in, tiny
from wanvae import WanVAEConfig, model
from wanvae.execution import budget as planning
from wanvae.execution.budget import Job, MemoryMeter, TooLittleMemory, parse_memory, show_memory
from wanvae.execution.flow import join
from wanvae.execution.tiling import Coding, Plan, default_plan, make_tiles
from wanvae.nn.kernels import pointwise, winograd
from wanvae.nn.kernels.dispatch import IN_PLACE, TABLE, Observer

SIDES = 32, 48
KB = 2**10


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """No overhead, small tiles, and Winograd even for few channels."""
    monkeypatch.setattr(planning, "OVERHEAD", 0)
    monkeypatch.setattr(planning, "PLANNING_MEMORY", 0)
    monkeypatch.setattr(planning, "SMALLEST_TILE", 16)
    monkeypatch.setattr(planning, "show_memory", lambda size: f"{size}B")
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(pointwise, "CPU_BLOCK", KB)
    model.plan_within.cache_clear()
    yield
    model.plan_within.cache_clear()


class Case:
    """A tiny network, a job for it and its planner."""

    def __init__(self, decoding, latents=3, sides=SIDES, **variant):
        self.vae = tiny(**variant)
        self.network = self.vae.decoder_network() if decoding else self.vae.encoder_network()
        config = self.vae.config
        self.planner = model.make_planner(config, decoding=decoding, dtype=torch.float64)
        self.sides = sides
        self.channels = 2 if decoding else 3
        self.job = self.of(latents)
        self.run = self.decode if decoding else self.encode

    def of(self, latents):
        return Job(1, self.channels, latents, *self.sides, torch.float64)

    def input(self):
        frames = 1 + (self.job.latents - 1) * self.network.group
        height, width = (side // self.network.pixels_per_input for side in self.sides)
        return random_video(frames, height, width)[:, : self.channels]

    def encode(self, x, **options):
        return self.vae.encode(x, **options).mean

    def decode(self, x, **options):
        return self.vae.decode(x, clamp=False, **options)

    @torch.no_grad()
    def measured(self, plan):
        """The peak of a real run."""
        x = self.input()
        tiles = make_tiles(self.network, *self.sides, plan)
        coding = Coding(self.network, plan, tiles, self.job.latents)
        with MemoryMeter([x, *nn.ModuleList(self.network.layers).parameters()]) as meter:
            join(coding.push([x]), self.network.frames_made(x.shape[2], starts=True))
        return meter.peak


PLANS = [Plan(None, 2), Plan(None, 1), Plan((16, 16), 2), Plan((32, 16), 1)]
SPLIT = Plan((16, 16), 2, split_core=True)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("700MB", 700 * 2**20),
        ("4.5 GB", 9 * 2**29),
        (" 2kb ", 2048),
        ("17", 17),
        ("17 B", 17),
        ("1tb", 2**40),
    ],
)
def test_memory_is_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "MB", "four GB", "-1GB", "1e9", "4G B", "4 GiB", "1.GB"])
def test_what_is_no_memory_is_named(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_memory(text)


@given(size=st.integers(0, 2**45))
def test_memory_that_is_shown_is_enough(size):
    assert 0 <= parse_memory(show_memory(size)) - size < 2**20


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize(
    ("variant", "latents"),
    [({}, 1), ({}, 3), ({"attn_scales": (0.25,)}, 3), (WAN22, 3)],
    ids=str,
)
def test_the_expected_memory_is_that_of_a_real_run(decoding, variant, latents):
    case = Case(decoding, latents, **variant)
    for plan in (*PLANS, SPLIT):
        measured = case.measured(plan)
        assert case.planner.memory(case.job, plan) == pytest.approx(measured, rel=0.15), plan


def test_a_model_for_whole_clips_takes_what_a_real_run_takes():
    case = Case(True, norm="group")
    plan = default_plan(case.network, *SIDES, None)
    expected = case.planner.memory(case.job, plan)
    assert expected == pytest.approx(case.measured(plan), rel=0.05)


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize("plan", [PLANS[0], PLANS[3]], ids=str)
def test_long_clips_are_extrapolated(monkeypatch, decoding, plan):
    case = Case(decoding)
    expected = case.planner.memory(case.of(14), plan)
    monkeypatch.setattr(planning, "extrapolated", lambda cost, latents, plan: cost(latents))
    assert expected == pytest.approx(case.planner.memory(case.of(14), plan), rel=0.03)


@pytest.mark.parametrize("decoding", [False, True])
@pytest.mark.parametrize(
    "variant", [{}, {"attn_scales": (0.25,)}, {"block": "dense"}, WAN22], ids=str
)
@torch.no_grad()
def test_multiply_adds_are_those_that_are_computed(monkeypatch, decoding, variant):
    for device in ("cpu", "meta"):
        monkeypatch.setitem(TABLE[Observer.NOBODY], device, IN_PLACE)
    case, plan = Case(decoding, **variant), PLANS[0]
    with FlopCounterMode(display=False) as counter:
        for _ in Coding(case.network, plan, [None]).push([case.input()]):
            pass
    expected = case.planner.multiply_adds(case.job, plan)
    assert expected == pytest.approx(counter.get_total_flops() / 2, rel=0.02)
    in_tiles = case.planner.multiply_adds(case.job, PLANS[2])
    assert case.planner.multiply_adds(case.job, SPLIT) > in_tiles > expected


@pytest.mark.parametrize("decoding", [False, True])
def test_a_budget_is_kept_and_changes_nothing(monkeypatch, decoding):
    case = Case(decoding)
    x = case.input()
    expected, whole = case.run(x), case.planner.memory(case.job, Plan(None, 2))
    smallest = smallest_of(case.planner, case.job)
    chosen = []
    coding = model.Coding

    def spy(network, plan, tiles, *arguments, **options):
        chosen.append((plan, tiles))
        return coding(network, plan, tiles, *arguments, **options)

    monkeypatch.setattr(model, "Coding", spy)
    # The smallest that is named is possible.
    for budget in (smallest, (smallest + whole) // 2, whole):
        plan = case.planner.plan_for(case.job, budget)
        assert plan.lean
        assert case.planner.memory(case.job, plan) <= budget
        assert case.measured(plan) <= 1.15 * budget
        torch.testing.assert_close(case.run(x, max_memory=budget), expected, rtol=0, atol=1e-9)
        assert chosen.pop() == (plan, case.planner.tiles(case.job, plan))
    with pytest.raises(ValueError, match="too little"):
        case.run(x, max_memory=smallest - 1)


def test_plenty_is_the_default_plan():
    case = Case(True)
    whole = default_plan(case.network, *SIDES, None)
    assert case.planner.plan_for(case.job, 2**40) == Plan(None, whole.frames, lean=True)


@pytest.mark.parametrize("decoding", [False, True])
def test_a_stream_needs_the_states_of_all_its_tiles(decoding):
    case, plan = Case(decoding), PLANS[2]
    x = case.input()
    tiles = make_tiles(case.network, *SIDES, plan)
    coding = Coding(case.network, plan, tiles)
    with torch.no_grad():
        for _ in coding.push([x]):
            pass
    states = sum(t.nbytes for t in tensors_in(coding.state))
    stream = case.planner.memory(case.of(None), plan)
    assert stream >= states
    assert case.planner.memory(case.of(None), replace(plan, offload=True)) < stream - states / 2


@pytest.mark.parametrize("decoding", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_large_frames_split_the_core_and_offload_states(monkeypatch, decoding):
    # Fewer sizes to try, and fewer operations on the meta device.
    monkeypatch.setattr(planning, "SMALLEST_TILE", 256)
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1000)
    planner = model.make_planner(WanVAEConfig(), decoding=decoding, dtype=torch.bfloat16)
    clip = Job(1, 16 if decoding else 3, 2, 2160, 3840, torch.bfloat16)
    unsplit, _ = next(planner._plans(clip))
    _, least = planner._look(clip, unsplit, 0)
    plan = planner.plan_for(clip, least - 1)
    assert plan.split_core and planner.memory(clip, plan) < least

    stream = replace(clip, latents=None, offloads=True)
    least = smallest_of(planner, replace(stream, offloads=False))
    assert planner.plan_for(stream, least - 1).offload
    assert smallest_of(planner, stream) < least / 10
    # There is no use for other memory in a clip, whose tiles have a state one at a time.
    assert smallest_of(planner, replace(clip, offloads=True)) == smallest_of(planner, clip)


def smallest_of(planner, job):
    """The least memory for a job, as the error tells it."""
    with pytest.raises(TooLittleMemory, match="at least") as error:
        planner.plan_for(job, 1)
    return int(re.search(r"at least (\d+)B", str(error.value))[1])


def test_a_stream_keeps_a_budget():
    case = Case(True)
    x, stream = case.input(), case.of(None)
    smallest = smallest_of(case.planner, stream)
    session = case.vae.stream_decode(clamp=False, max_memory=smallest)
    made = [session.push(piece) for piece in x.split(1, dim=2)]
    assert case.planner.memory(stream, session.plan) <= smallest
    torch.testing.assert_close(torch.cat(made, dim=2), case.decode(x), rtol=0, atol=1e-9)


def test_the_meter_counts_what_lives_at_once():
    given = torch.zeros(100)
    with MemoryMeter([given]) as meter:
        first = given + 1
        view = first[10:]
        given.add_(1)
        del first
        second = view * 2
        del view
        third = second.double()
    # The view keeps all 400 bytes of the first; then 360 of the second and 720 of the third.
    assert meter.peak == third.nbytes + second.nbytes == 1080
