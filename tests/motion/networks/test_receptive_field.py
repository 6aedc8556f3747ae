"""Receptive fields, against gradients and the seed's table."""

from dataclasses import replace

import pytest
import torch

from motion import RVQVAEConfig
from motion.config import ResnetConfig, WanConfig
from motion.networks.build import make_networks
from motion.networks.receptive import effective_kernel, effective_kernels, receptive_field

BASE = RVQVAEConfig(channels=2, code_dim=2)
TOKENS, TOKEN = 60, 30


def resnet(**changes: object) -> RVQVAEConfig:
    return replace(BASE, resnet=ResnetConfig(**{"width": 4, "dropout": 0.0, **changes}))


def wan(**changes: object) -> RVQVAEConfig:
    return replace(BASE, network="wan", wan=WanConfig(**{"dim": 4, **changes}))


CONFIGS = {
    "published": resnet(),
    "seed": resnet(dilation_growth_rate=(3, 9), depth=2),
    "forward": resnet(dilation_growth_rate=(4,), reverse_dilation=False, depth=2, norm="LN"),
    "causal": resnet(causal=True),
    "one block": resnet(depth=1, dilation_growth_rate=(1, 1, 1)),
    "window": resnet(causal=True, attention=True, attention_window=5, depth=1),
    "attention": resnet(attention=True),
    "group norm": resnet(norm="GN"),
    "causal attention": resnet(attention=True, causal=True),
    "wan": wan(),
    "wan with a window": wan(attention_window=4, num_res_blocks=1),
    "wan of dense blocks": wan(block="dense", attention_window=2, dim_mult=(1, 2)),
}


def positive_networks(config: RVQVAEConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    """With weights and norms by which every input that can matter does."""
    torch.manual_seed(0)
    networks = tuple(network.double().eval() for network in make_networks(config))
    for network in networks:
        for parameter in network.parameters():
            parameter.data = parameter.data.abs() + 0.05
    return networks


def seen(network: torch.nn.Module, inputs: int, first: int, last: int) -> tuple[int, int]:
    """First and last of the positions that outputs from ``first`` to ``last`` depend on."""
    x = torch.rand(1, 2, inputs, dtype=torch.float64, requires_grad=True)
    network(x)[:, :, first : last + 1].sum().backward()
    positions = x.grad[0].abs().sum(0).nonzero()
    return int(positions[0]), int(positions[-1])


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_what_gradients_tell(name):
    config = CONFIGS[name]
    field = receptive_field(config)
    encoder, decoder = positive_networks(config)
    frames = config.frames_of(TOKENS)
    first, last = config.frames_of(TOKEN), config.frames_of(TOKEN + 1) - 1

    def extent(count: int | None, most: int) -> int:
        return most if count is None else min(count, most)

    before, after = seen(encoder, frames, TOKEN, TOKEN)
    assert first - before == extent(field.frames_before, first)
    assert after - last == extent(field.frames_after, frames - 1 - last)
    before, after = seen(decoder, TOKENS, first, last)
    assert TOKEN - before == extent(field.tokens_before, TOKEN)
    assert after - TOKEN == extent(field.tokens_after, TOKENS - 1 - TOKEN)


def test_effective_kernels_are_those_of_the_seed():
    assert [effective_kernel(3, dilation) for dilation in (1, 3, 9)] == [3, 7, 19]
    assert effective_kernels(RVQVAEConfig()) == ((19, 7, 3), (19, 7, 3))
    literal = replace(BASE, resnet=ResnetConfig(dilation_growth_rate=(3, 9)))
    assert effective_kernels(literal) == ((19, 7, 3), (163, 19, 3))
    with pytest.raises(ValueError, match="wan network"):
        effective_kernels(wan())


def test_known_figures():
    field = receptive_field(RVQVAEConfig())
    assert field.frames == 4 + 2 * field.frames_before == 4 + 2 * field.frames_after
    causal = receptive_field(resnet(causal=True))
    assert (causal.frames_after, causal.tokens_after, causal.lookahead) == (0, 0, 3)
    assert receptive_field(resnet(attention=True)).lookahead is None
