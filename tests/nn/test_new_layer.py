"""A layer that only this file knows plans, tiles, streams and masks; a silent one is named."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from wanvae.execution.budget import Planner
from wanvae.execution.cost import Workload
from wanvae.execution.flow import make_stages
from wanvae.execution.network import make_network
from wanvae.execution.plan import Plan, make_tiles
from wanvae.execution.tiling import Coding, LocalTiles
from wanvae.nn import CausalConv, Sequential, Streaming
from wanvae.nn.interval import Interval
from wanvae.nn.masking import zero_padding
from wanvae.nn.region import Span, crop, repeated
from wanvae.nn.sequential import (
    forward_masked,
    input_interval,
    input_region,
    multiply_adds,
    space_factor,
    step_through,
    time_factor,
)

SIDE = 16


class Pool(Streaming):
    """Means of 2x2 positions of a frame and of the frame before."""

    def step(self, x, state, region=None):
        (past,) = (torch.zeros_like(x[:, :, :1]),) if state is None else state
        joined = torch.cat([past, x], dim=2)
        y = nn.functional.avg_pool3d(joined, (2, 2, 2), (1, 2, 2))
        return y, (x[:, :, -1:].clone(),)

    def forward_masked(self, x, lengths):
        return self(x), lengths

    def input_region(self, region):
        return repeated(region, 2)

    def input_interval(self, interval):
        return Interval(interval.first - 1, interval.last)

    def time_factor(self):
        return Fraction(1)

    def space_factor(self):
        return Fraction(1, 2)

    def multiply_adds(self, positions, frames):
        return 8 * positions * frames


class Ahead(Streaming):
    """The sum of each frame and the next one; it sees the future."""

    def step(self, x, state, region=None):
        self.refuse_to_continue(state)
        return x + nn.functional.pad(x[:, :, 1:], (0, 1)), ()

    def forward_masked(self, x, lengths):
        return self(zero_padding(x, lengths)), lengths

    def input_interval(self, interval):
        return Interval(interval.first, interval.last + 1)

    def time_factor(self):
        return Fraction(1)

    def looks_across_time(self):
        return True


class Silent(Streaming):
    """A layer that answers nothing."""


class Foreign(nn.Module):
    """A layer of nobody."""

    def forward(self, x):
        return x


def pooling(device="cpu"):
    """An encoder of frames of half the sides."""
    torch.manual_seed(0)
    with torch.device(device):
        shell = CausalConv(3, 3, 4, 3), Pool(), CausalConv(3, 4, 4, 3)
        core = (CausalConv(3, 4, 2, 3),)
    modules = nn.ModuleList([*shell, *core]).double()
    assert len(modules) == 4
    return make_network(
        core,
        shell,
        core_first=False,
        out_channels=2,
        spatial_factor=2,
        temporal_factor=1,
        architecture="pooling",
    )


def whole(network, x):
    return step_through(network.layers, x, None)[0]


@torch.no_grad()
@pytest.mark.parametrize("plan", [Plan(None, 2), Plan((6, 10), 1), Plan((4, 4), 2)], ids=str)
def test_it_tiles_and_streams(plan):
    network = pooling()
    x = torch.randn(1, 3, 5, SIDE, SIDE, dtype=torch.float64)
    coding = Coding(network, plan, LocalTiles(make_tiles(network, SIDE, SIDE, plan)))
    y = torch.cat([coding.run(piece) for piece in x.split([1, 3, 1], dim=2)], dim=2)
    torch.testing.assert_close(y, whole(network, x), rtol=0, atol=1e-12)


def test_it_ends_a_stage():
    network = pooling()
    assert [len(stage.layers) for stage in make_stages(network.layers, 2, 1)] == [2, 2]


def test_it_is_planned_for():
    planner = Planner(pooling("meta"))
    workload = Workload(1, 3, 5, SIDE, SIDE, torch.float64)
    # Multiply-adds of the convolutions with one slice of their kernel for the first frame.
    frames, pixels = 3 * 5 - 2, SIDE**2
    convolutions = 9 * frames * (3 * 4 * pixels + (4 * 4 + 4 * 2) * pixels // 4)
    pooled = 8 * 5 * pixels // 4
    assert planner.costs.multiply_adds(workload, Plan(None, 2)) == convolutions + pooled
    assert planner.costs.multiply_adds(workload, Plan((4, 4), 2)) > convolutions + pooled
    assert planner.plan_for(workload, 2**40).tile_size is None


@torch.no_grad()
def test_it_is_masked():
    layers = Sequential(CausalConv(1, 2, 3, 3), nn.SiLU(), Ahead()).double()
    x = torch.randn(2, 2, 7, dtype=torch.float64)
    y, lengths = layers.forward_masked(x, torch.tensor([4, 7]))
    assert lengths.tolist() == [4, 7]
    torch.testing.assert_close(y[:1, :, :4], layers(x[:1, :, :4]))
    torch.testing.assert_close(y[1:], layers(x[1:]))
    assert layers.input_interval(Interval(5, 5)) == Interval(3, 6)


REGION = Span(0, 4, 8), Span(0, 4, 8)
QUESTIONS = {
    "step": lambda layers: step_through(layers, torch.zeros(1, 1, 1), None),
    "forward_masked": lambda layers: forward_masked(
        layers, torch.zeros(1, 1, 1), torch.tensor([1])
    ),
    "input_region": lambda layers: input_region(layers, REGION),
    "input_interval": lambda layers: input_interval(layers, Interval(0, 0)),
    "time_factor": time_factor,
    "space_factor": space_factor,
    "multiply_adds": lambda layers: multiply_adds(layers, 1, 1),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_layer_without_an_answer_is_named(question):
    with pytest.raises(NotImplementedError, match=f"Silent has no {question}"):
        QUESTIONS[question]([nn.ReLU(), Silent()])


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_layer_that_is_not_known_is_not_taken_for_pointwise(question):
    with pytest.raises(TypeError, match="Foreign does not say what it sees"):
        QUESTIONS[question]([nn.ReLU(), Foreign()])


def test_a_region_of_a_new_layer_is_a_part_of_the_whole():
    pool, x = Pool(), torch.randn(1, 1, 3, 8, 8)
    region = Span(1, 3, 4), Span(2, 4, 4)
    given = pool.input_region(region)
    part, _ = pool.step(crop(x, (Span(0, 8, 8), Span(0, 8, 8)), given), None, region)
    torch.testing.assert_close(part, pool(x)[..., 1:3, 2:4])
