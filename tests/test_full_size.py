"""The full-size model against diffusers' implementation, all parameters random."""

import warnings
from pathlib import Path

import pytest
import torch

from wanvae import WanVAE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers says on import is not ours
    from diffusers import AutoencoderKLWan


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[AutoencoderKLWan, Path]:
    """Diffusers' model and the directory it was saved in."""
    torch.manual_seed(0)
    model = AutoencoderKLWan().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Attention starts at a zero projection, which would hide a wrong one.
            parameter += 0.02 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("diffusers")
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 3, 9, 64, 48), (2, 3, 1, 32, 64)])
def test_equals_diffusers(reference, shape):
    theirs, folder = reference
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
