"""Models whose decoder has another depth than published ones."""

from pathlib import Path

import pytest
import torch

from tests.helpers import WAN22, random_video, tiny
from wanvae import WanVAE
from wanvae.checkpoints.formats import save_diffusers, save_wan
from wanvae.engine.checkpoint import CheckpointError
from wanvae.errors import UserError


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", [{}, {"attn_scales": (0.5,)}, {"decoder_dim": 6}])
def test_the_depth_of_a_decoder_is_kept_in_every_file(
    tmp_path: Path, blocks: int, variant: dict
) -> None:
    vae = tiny(num_res_blocks=2, decoder_res_blocks=blocks, **variant)
    assert vae.config.blocks_of_decoder == blocks
    latents = random_video(2, 4, 4, channels=2)
    native, official = tmp_path / "native.safetensors", tmp_path / "official.safetensors"
    vae.save_pretrained(native)
    save_wan(official, vae.config, vae.state_dict())
    for path in (native, official):
        read = WanVAE.from_pretrained(path, latent_statistics="none")
        assert read.config.blocks_of_decoder == blocks
        assert read.config.num_res_blocks == 2
        assert torch.equal(read.decode(latents), vae.decode(latents))
    if blocks != 3 and "attn_scales" not in variant:
        with pytest.raises(CheckpointError, match=f"no decoder_res_blocks {blocks}"):
            save_diffusers(tmp_path / "diffusers", vae.config, vae.state_dict())
        with pytest.raises(UserError, match="decoder_res_blocks"):
            vae.as_diffusers()


@pytest.mark.parametrize("variant", [{}, WAN22])
def test_more_blocks_are_more_layers(variant: dict) -> None:
    counts = [
        sum(p.numel() for p in tiny(decoder_res_blocks=blocks, **variant).decoder.parameters())
        for blocks in (None, 1, 2, 3)
    ]
    assert counts[0] == counts[2] and counts[1] < counts[2] < counts[3]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_decoder_alone_has_its_depth(tmp_path: Path, blocks: int) -> None:
    vae = tiny(num_res_blocks=2, decoder_res_blocks=blocks)
    config = vae.config.only("decoder")
    assert config.blocks_of_decoder == blocks
    assert vae.config.only("encoder").decoder_res_blocks is None
    names = {n: t for n, t in vae.state_dict().items() if n.startswith(("decoder.", "conv2."))}
    alone = WanVAE(config)
    alone.load_state_dict(names)
    path = tmp_path / "decoder.safetensors"
    save_wan(path, config, alone.state_dict())
    read = WanVAE.from_pretrained(path, latent_statistics="none")
    assert read.config.blocks_of_decoder == blocks
    latents = random_video(2, 4, 4, channels=2)
    torch.testing.assert_close(read.double().decode(latents), vae.decode(latents))


def test_a_decoder_has_a_block() -> None:
    with pytest.raises(UserError, match="decoder_res_blocks must be at least 1"):
        tiny(decoder_res_blocks=0)
