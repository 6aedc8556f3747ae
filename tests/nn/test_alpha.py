"""A decoder of colour and alpha gives what two models give, however it runs."""

import copy
import dataclasses

import pytest
import torch

from tests.helpers import WAN22, WAN_ALPHA, tiny
from wanvae import WanVAE, WanVAEConfig
from wanvae.errors import UserError

KINDS = {"wan21": {}, "wan22": WAN22, "attention": {"attn_scales": (0.25,)}}


def split(pair: WanVAE) -> tuple[WanVAE, WanVAE]:
    """The two models that a pair has the decoders of."""
    config = dataclasses.replace(pair.config, alpha_decoder=False, out_channels=3)
    tensors, inner = pair.state_dict(), "decoder.alpha."
    colour = {name: tensor for name, tensor in tensors.items() if not name.startswith(inner)}
    alpha = {f"decoder.{n.removeprefix(inner)}": t for n, t in tensors.items() if inner in n}
    models = []
    for own in (colour, colour | alpha):
        model = WanVAE(config).double().eval()
        model.load_state_dict(own)
        models.append(model)
    return models[0], models[1]


def latents(pair: WanVAE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (2, pair.config.z_dim, 3, 8, 12)
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(params=list(KINDS))
def pair(request) -> WanVAE:
    return tiny(**KINDS[request.param], **WAN_ALPHA)


@torch.no_grad()
def test_a_pair_decodes_what_its_two_models_decode(pair):
    z = latents(pair)
    colour, alpha = split(pair)
    # Wan-Alpha limits each channel of the second model, and takes the mean.
    expected = torch.cat([colour.decode(z), alpha.decode(z).mean(1, keepdim=True)], dim=1)
    unlimited = alpha.decode(z, clamp=False)
    assert (unlimited.abs() > 1).any() and (unlimited.abs() < 1).any()
    torch.testing.assert_close(pair.decode(z), expected, atol=1e-10, rtol=0)
    assert torch.equal(
        pair.encode(torch.zeros(1, 3, 5, 32, 32)).mean,
        colour.encode(torch.zeros(1, 3, 5, 32, 32)).mean,
    )


@torch.no_grad()
def test_a_pair_runs_in_tiles_steps_and_streams(pair):
    z = latents(pair)
    whole = pair.decode(z, clamp=False)
    side = 4 * pair.config.spatial_factor
    for limits in ({"tile_size": side}, {"max_memory": "300MB"}):
        limited = pair.decode(z, clamp=False, **limits)
        torch.testing.assert_close(limited, whole, atol=1e-10, rtol=0)
    session = pair.stream_decode(clamp=False, tile_size=side)
    first = session.push(z[:, :, :1])
    again = pair.stream_decode(session.state, clamp=False, tile_size=side)
    streamed = torch.cat([first, again.push(z[:, :, 1:])], dim=2)
    torch.testing.assert_close(streamed, whole, atol=1e-10, rtol=0)
    torch.testing.assert_close(pair.decode_step(z, None)[0], whole, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_copy_of_a_pair_stands_alone(pair):
    z = latents(pair)
    before, copied = pair.decode(z), copy.deepcopy(pair)
    torch.nn.init.zeros_(copied.decoder.alpha.head[2].weight)
    assert not torch.equal(copied.decode(z), before)
    assert torch.equal(pair.decode(z), before)


def test_a_pair_decodes_colour_and_alpha():
    with pytest.raises(UserError, match="out_channels must be 2 or more with alpha_decoder"):
        WanVAEConfig(alpha_decoder=True, out_channels=1)
