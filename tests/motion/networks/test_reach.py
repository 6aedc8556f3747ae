"""Taps that training windows never reach, and models without them on whole files."""

import pytest
import torch
import yaml

from motion import RVQVAE, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig, WanConfig
from motion.models import make_model
from motion.networks.reach import find_convolutions, find_unreached_taps
from motion.networks.receptive import receptive_field
from tests.motion.test_motion_configs import CONFIGS, load

# Windows of 32 frames have 8 positions of latents, fewer than the dilation 9.
FAR = RVQVAEConfig(
    channels=3,
    code_dim=4,
    resnet=ResnetConfig(width=8, depth=2, dilation_growth_rate=(1, 9), dropout=0.0),
    quantizer=QuantizerConfig(num_quantizers=1, codebook_size=8),
)
NEAR = ResnetConfig(width=8, depth=2, dilation_growth_rate=(1, 1), dropout=0.0)


def unreached(model, window):
    return find_unreached_taps(model.config, model.encoder, model.decoder, window)


def make(**resnet):
    torch.manual_seed(0)
    config = RVQVAEConfig(
        channels=3,
        code_dim=4,
        resnet=ResnetConfig(**{"width": 8, "depth": 2, "dropout": 0.0, **resnet}),
        quantizer=QuantizerConfig(num_quantizers=1, codebook_size=8),
    )
    return RVQVAE(config)


@pytest.mark.parametrize(("window", "count"), [(36, 2), (37, 0), (400, 0)])
def test_taps_beyond_the_window_are_found(window, count):
    """In encoder and decoder: the dilation 9 needs 10 positions, so 37 frames, which become 40."""
    found = unreached(make(dilation_growth_rate=(1, 9)), window)
    assert len(found) == count
    for taps in found:
        assert taps.convolution.dilation == (9,)
        assert (taps.taps, taps.frames) == ((0, 2), 40)


def test_the_past_of_causal_convolutions_is_twice_as_far():
    found = unreached(make(dilation_growth_rate=(1, 9), causal=True), 40)
    assert [(taps.taps, taps.frames) for taps in found] == [((0,), 76)] * 2


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("growth", [(3, 9), (9,), (2, 2, 5)])
@pytest.mark.parametrize("frames", [8, 24, 40, 120])
def test_they_are_the_taps_without_a_gradient(growth, frames, causal):
    model = make(dilation_growth_rate=growth, causal=causal, activation="silu", depth=3)
    window = model.config.frames_of(model.config.tokens_of(frames))
    latents = model.encoder(torch.randn(8, 3, window))
    (model.decoder(torch.randn_like(latents)).sum() + latents.sum()).backward()
    expected = {id(taps.convolution): taps.taps for taps in unreached(model, frames)}
    for network in (model.encoder, model.decoder):
        for convolution, _ in find_convolutions([network], 8):
            gradient = convolution.weight.grad.abs().amax(dim=(0, 1))
            without = tuple(gradient.eq(0).nonzero().flatten().tolist())
            assert without == expected.get(id(convolution), ())


def test_wan_has_none_in_windows_of_a_few_tokens():
    config = RVQVAEConfig(channels=3, network="wan", wan=WanConfig(dim=4), code_dim=4)
    assert unreached(RVQVAE(config), 17) == []


@pytest.mark.parametrize("name", [path.name for path in CONFIGS.glob("*.yaml")])
def test_configs_reach_their_windows_or_say_that_they_do_not(name):
    content = yaml.safe_load((CONFIGS / name).read_text())
    with torch.device("meta"):
        model = make_model(load(name))
    found = unreached(model, content.get("data", {}).get("window", 64))
    # The dilation 81 of 32 positions, in encoder and decoder.
    far = name.startswith("beat2") and model.config.resnet.dilation_growth_rate == (3, 9)
    assert [taps.frames for taps in found] == ([328, 328] if far else [])


def test_zeroed_taps_make_a_whole_file_the_windows_of_its_receptive_field():
    torch.manual_seed(0)
    far, near = RVQVAE(FAR), RVQVAEConfig(channels=3, code_dim=4, resnet=NEAR)
    field = receptive_field(near)
    # As far as a model whose dilation is 1 sees; the block of dilation 9 sees one position.
    before, after = field.frames_before, field.frames_after
    motion = torch.randn(1, 400, 3)
    token = 50
    first, last = 4 * token - before, 4 * token + 4 + after
    first, last = first // 4 * 4, -(-last // 4) * 4

    def is_local():
        whole = far.encoder(motion.mT)[0, :, token]
        window = far.encoder(motion[:, first:last].mT)[0, :, token - first // 4]
        return torch.allclose(whole, window, atol=1e-6)

    assert not is_local()
    for taps in unreached(far, 32):
        taps.zero()
        assert not taps.weights.any()
    assert is_local()
