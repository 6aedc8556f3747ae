"""The full-size model against diffusers' implementation, all parameters random."""

import warnings
from pathlib import Path

import pytest
import torch

from wanvae import WanVAE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers says on import is not ours
    from diffusers import AutoencoderKLWan


# What diffusers calls the architecture of Wan2.2.
WAN22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[AutoencoderKLWan, Path]:
    return make_reference(tmp_path_factory.mktemp("diffusers"))


def make_reference(folder: Path, **config: object) -> tuple[AutoencoderKLWan, Path]:
    """Diffusers' model and the directory it was saved in."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Attention starts at a zero projection, which would hide a wrong one.
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("shape", [(1, 3, 9, 64, 48), (2, 3, 1, 32, 64)])
def test_equals_diffusers(reference, shape):
    assert_equal(*reference, shape)


@pytest.mark.slow
def test_wan22_equals_diffusers(tmp_path):
    assert_equal(*make_reference(tmp_path, **WAN22), (1, 3, 5, 64, 64))


@torch.no_grad()
def assert_equal(theirs: AutoencoderKLWan, folder: Path, shape: tuple[int, ...]) -> None:
    """Videos of this shape are encoded and decoded as diffusers does it."""
    ours = WanVAE.from_pretrained(folder)
    video = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = theirs.encode(video).latent_dist
    posterior = ours.encode(video)
    torch.testing.assert_close(posterior.mean, expected.mean, atol=1e-4, rtol=0)
    clamped = posterior.logvar.clamp(-30, 20)
    torch.testing.assert_close(clamped, expected.logvar, atol=1e-4, rtol=0)
    latents = posterior.mode()
    decoded = theirs.decode(latents).sample
    assert (decoded.abs() < 1).float().mean() > 0.5  # clamping hides little
    torch.testing.assert_close(ours.decode(latents), decoded, atol=1e-4, rtol=0)
