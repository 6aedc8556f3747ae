"""A linear codec as the start of a model, and its training along shortcuts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.scenes import scene
from wanvae import WanVAE, WanVAEConfig
from wanvae.errors import UserError
from wanvae.metrics.images import psnr
from wanvae.nn import AttentionBlock, CausalConv, ResidualBlock
from wanvae.train.least_squares import find_components, solve
from wanvae.train.linear_start import check_linear, start_linear
from wanvae.train.shortcuts import Shortcuts, train_shortcuts

CONFIG = WanVAEConfig(
    dim=8, z_dim=8, dim_mult=(1, 2), temporal_downsample=(True,), num_res_blocks=1
)


def colourful(seed: int, frames: int) -> Tensor:
    """A clip ``(1, 3, T, 32, 32)`` of soft spots that move, others in each channel."""
    return torch.stack([scene(3 * seed + i, frames, 32, 32)[0] for i in range(3)])[None]


# Clips of 5 frames and images.
CLIPS = [colourful(seed, 5) for seed in range(8)] + [colourful(seed, 1) for seed in range(8, 11)]
HELD_OUT = [colourful(seed, 9) for seed in range(50, 53)]


def new(config: WanVAEConfig = CONFIG) -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(config).eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def started(config: WanVAEConfig = CONFIG, clips: list[Tensor] | None = None) -> WanVAE:
    vae = new(config)
    start_linear(vae, clips or CLIPS, generator())
    return vae


@torch.no_grad()
def quality(vae: WanVAE) -> float:
    """The mean PSNR of clips that nothing was fitted to, in dB."""
    decoded = [vae.decode(vae.encode(clip).mode()) for clip in HELD_OUT]
    return psnr(torch.cat(decoded), torch.cat(HELD_OUT))


# Changes of the config, and the least PSNR of the codec in dB. New weights have less than 15.
LINEAR = {
    "tiny": ({}, 31),
    "patches": ({"patch_size": 2}, 23),
    "space before time": (
        {"dim_mult": (1, 2, 2), "temporal_downsample": (False, True), "z_dim": 16},
        28,
    ),
    "narrower stages, attention": ({"dim": 5, "dim_mult": (4, 2), "attn_scales": (1.0,)}, 29),
    "another decoder": ({"decoder_dim": 4, "decoder_res_blocks": 1}, 26),
    "no smaller latents": ({"dim_mult": (1,), "temporal_downsample": ()}, 38),
    "no time": ({"temporal_downsample": (False,)}, 32),
    "as few channels as possible": ({"dim": 4, "dim_mult": (1, 1)}, 16),
    "more latents than channels": ({"z_dim": 24}, 31),
}


@pytest.mark.parametrize(("changes", "least"), LINEAR.values(), ids=LINEAR)
def test_a_linear_codec_reconstructs_what_it_was_not_fitted_to(changes, least) -> None:
    config = replace(CONFIG, **changes)
    assert quality(new(config)) < 15
    assert quality(started(config)) > least


def test_residual_branches_are_zero_and_shortcuts_are_the_model() -> None:
    vae = started(replace(CONFIG, attn_scales=(1.0,)))
    blocks = [m for m in vae.modules() if isinstance(m, (ResidualBlock, AttentionBlock))]
    assert {type(block) for block in blocks} == {ResidualBlock, AttentionBlock}
    for block in blocks:
        branch = block.body_step(torch.randn(1, block_width(block), 2, 4, 4), None)[0]
        assert not branch.any()
    video = HELD_OUT[0]
    # A model in training has the same noise.
    torch.manual_seed(0)
    expected = vae.train()(video).video
    torch.testing.assert_close(Shortcuts(vae)(video, generator()), expected, rtol=0, atol=1e-3)


def block_width(block: ResidualBlock | AttentionBlock) -> int:
    """The channels that a block reads."""
    norm = block.norm if isinstance(block, AttentionBlock) else block.body[0]
    return len(norm.gamma)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again = started().state_dict(), started().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = new()
    start_linear(other, CLIPS, torch.Generator().manual_seed(1))
    assert not torch.equal(other.decoder.conv1.weight, first["decoder.conv1.weight"])


def test_the_result_is_a_checkpoint_of_the_config(tmp_path) -> None:
    vae = started()
    vae.save_pretrained(tmp_path / "start.safetensors")
    loaded = WanVAE.from_pretrained(tmp_path / "start.safetensors")
    assert loaded.config == CONFIG
    assert quality(loaded) == pytest.approx(quality(vae), abs=1e-3)


def test_training_improves_the_shortcuts_alone() -> None:
    vae = started()
    before, bodies = quality(vae), dict(vae.named_parameters())
    kept = {name: p.clone() for name, p in bodies.items() if ".residual." in name}
    batches = (CLIPS[step % 8] for step in range(30))
    train_shortcuts(vae, batches, 30, 1e-3, generator())
    assert quality(vae) > before + 0.3
    assert kept and all(torch.equal(bodies[name], p) for name, p in kept.items())


def test_a_rate_that_is_too_high_is_told() -> None:
    with pytest.raises(UserError, match="lower the learning rate"):
        train_shortcuts(started(), (CLIPS[0] for _ in range(20)), 20, 1e30, generator())


REFUSED = {
    "an image model": ({"ndim": 2}, "model.ndim must be 3"),
    "shortcuts of stages": ({"stage_shortcuts": True}, "model.stage_shortcuts must be False"),
    "other blocks": ({"block": "standard"}, "model.block must be residual"),
    "other norms": ({"norm": "layer"}, "model.norm must be rms"),
    "other activations": ({"activation": "relu"}, "model.activation must be silu"),
    "upscaling": ({"upscale_factor": 2}, "model.upscale_factor must be 1"),
    "two decoders": (
        {"alpha_decoder": True, "in_channels": 4, "out_channels": 4},
        "a pair of decoders",
    ),
    "half a model": ({"half": "encoder"}, "has the decoder too"),
    "hardly any channels": ({"dim": 3}, "model.dim must be at least 4"),
    "a decoder of hardly any": ({"decoder_dim": 2}, "model.decoder_dim must be at least 4"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_linear_is_refused(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        check_linear(replace(CONFIG, **changes))


def test_images_alone_do_not_teach_time() -> None:
    with pytest.raises(UserError, match="take crops of 3 or more"):
        started(clips=CLIPS[8:])
    assert quality(started(replace(CONFIG, temporal_downsample=(False,)), CLIPS[8:])) > 20


def test_transparent_clips() -> None:
    config = replace(CONFIG, in_channels=4, out_channels=4)
    clips = [torch.cat([clip, clip[:, :1]], dim=1) for clip in CLIPS]
    vae = started(config, clips)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(clips[0]).mode())
    assert psnr(decoded, clips[0]) > 20


def test_least_squares_finds_a_convolution() -> None:
    torch.manual_seed(0)
    videos = [torch.randn(2, 3, 4, 6, 5), torch.randn(1, 3, 1, 8, 8)]
    for conv in (CausalConv(3, 3, 4, 3), CausalConv(3, 3, 2, 1)):
        with torch.no_grad():
            goals = [conv(x) for x in videos]
        kernel, bias = solve(conv, videos, goals, generator())
        torch.testing.assert_close(kernel, conv.weight, atol=2e-3, rtol=0)
        torch.testing.assert_close(bias, conv.bias, atol=2e-3, rtol=0)
    conv = CausalConv(2, 3, 4, 3)
    with torch.no_grad():
        goals = [conv(x.transpose(1, 2).flatten(0, 1)) for x in videos]
    goals = [
        y.unflatten(0, x.shape[::2][:2]).transpose(1, 2) for x, y in zip(videos, goals, strict=True)
    ]
    kernel, _ = solve(conv, videos, goals, generator())
    torch.testing.assert_close(kernel, conv.weight, atol=2e-3, rtol=0)


def test_components_are_of_unit_length_the_largest_first() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 2, 50, 50) * torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1, 1)
    rows, squares = find_components([x[:, :, :1], x[:, :, 1:]], 2)
    torch.testing.assert_close(rows.abs(), torch.eye(3)[[1, 2]], atol=0.1, rtol=0)
    torch.testing.assert_close(squares, torch.tensor([9.0, 4.0]), rtol=0.1, atol=0)
