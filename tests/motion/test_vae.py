"""The VAE of motion: its latents, its losses, and streams that give the numbers of the whole."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motion import RVQVAE, MotionVAE, RVQVAEConfig
from motion.config import ResnetConfig, WanConfig
from motion.features.statistics import FeatureStatistics
from tests.helpers import randomize
from tests.motion.small_tokenizers import tiny_tokenizer, tiny_vae
from wanvae.engine.checkpoint import CheckpointError
from wanvae.errors import UserError
from wanvae.posterior import Posterior

BASE = RVQVAEConfig(
    channels=3,
    code_dim=4,
    bottleneck="gaussian",
    resnet=ResnetConfig(width=8, depth=2, dropout=0.0, causal=True),
)
CONFIGS = {
    "resnet": BASE,
    "attention": replace(
        BASE, resnet=replace(BASE.resnet, attention=True, attention_window=3, depth=1)
    ),
    "wan": replace(BASE, network="wan", wan=WanConfig(dim=4, attention_window=3)),
}


def make(config: RVQVAEConfig) -> MotionVAE:
    torch.manual_seed(0)
    model = MotionVAE(config)
    randomize(model)
    model.normalizer.set(FeatureStatistics(torch.randn(3), torch.rand(3) + 0.5))
    return model.double().eval()


def example(frames: int, clips: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(clips, frames, 3, generator=generator, dtype=torch.float64)


MODELS = {name: make(config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_any_chunks_give_the_latents_and_motion_of_the_whole(name, sizes):
    model = MODELS[name]
    motion = example(sum(sizes))
    whole = model.encode(motion)
    encoder = model.stream_encode()
    pieces = [encoder.push(piece) for piece in motion.split(sizes, dim=1)]
    end = encoder.finish()
    pieces = [piece for piece in [*pieces, end.indices] if piece is not None]
    for part in ("mean", "logvar"):
        joined = torch.cat([getattr(piece, part) for piece in pieces], dim=1)
        torch.testing.assert_close(joined, getattr(whole, part))
    decoder = model.stream_decode()
    decoded = torch.cat([decoder.push(piece.mode()) for piece in pieces], dim=1)
    torch.testing.assert_close(decoded, model.decode(whole.mode()))
    assert sum(sizes) + end.padded_frames == decoded.shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_clips_of_a_batch_are_as_alone(name):
    model = MODELS[name]
    motion, lengths = example(11), [6, 11]
    together = model.encode(motion, lengths)
    alone = model.encode(motion[:1, :6])
    count = alone.mean.shape[1]
    torch.testing.assert_close(together.mean[:1, :count], alone.mean)
    torch.testing.assert_close(together.logvar[:1, :count], alone.logvar)
    assert not together.mean[0, count:].any() and not together.logvar[0, count:].any()
    decoded = model.decode(together.mode(), lengths)
    torch.testing.assert_close(decoded[:1, :6], model.decode(alone.mode(), 6))
    assert not decoded[0, 6:].any()


def test_latents_are_a_distribution():
    model = MODELS["resnet"]
    posterior = model.encode(example(9))
    assert isinstance(posterior, Posterior)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 3, 4)
    assert torch.equal(posterior.mode(), posterior.mean)
    samples = torch.stack([posterior.sample() for _ in range(2000)])
    torch.testing.assert_close(samples.mean(0), posterior.mean, atol=0.4, rtol=0.2)
    torch.testing.assert_close(
        samples.var(0).log(), posterior.logvar.clamp(-30, 20), atol=0.3, rtol=0.1
    )


@pytest.mark.parametrize("lengths", [None, [5, 12]])
def test_a_training_step_has_the_divergence_of_what_is_there(lengths):
    model = make(BASE).train()
    result = model(example(12), lengths)
    assert result.output.shape == result.target.shape == (2, 12, 3)
    posterior = model.encode(example(12), lengths)
    counts = [3, 3] if lengths is None else [2, 3]
    terms = posterior.mean.square() + posterior.logvar.exp() - 1 - posterior.logvar
    total = sum(terms[clip, :count].sum() for clip, count in enumerate(counts)) / 2
    torch.testing.assert_close(result.kl, total / (4 * sum(counts)))
    (result.kl + result.output.square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_training_decodes_samples_and_evaluation_the_means():
    model = make(BASE)
    motion = example(12)
    first, second = model(motion), model(motion)
    assert torch.equal(first.output, second.output)
    decoded = model.normalize(model.decode(model.encode(motion).mode()))
    torch.testing.assert_close(first.output, decoded)
    model.train()
    assert not torch.equal(model(motion).output, model(motion).output)


def test_a_saved_model_is_the_same(tmp_path: Path):
    model = tiny_vae()
    model.save_pretrained(tmp_path / "vae.safetensors")
    again = MotionVAE.from_pretrained(tmp_path / "vae.safetensors")
    assert again.config == model.config and not again.training
    motion = torch.randn(1, 9, 330)
    assert torch.equal(again.encode(motion).mean, model.encode(motion).mean)
    half = MotionVAE.from_pretrained(tmp_path / "vae.safetensors", torch.float64)
    assert half.encode(motion).mean.dtype == torch.float64


def test_another_kind_of_model_is_named(tmp_path: Path):
    tiny_vae().save_pretrained(tmp_path / "vae.safetensors")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match=r"vae.safetensors: this is a VAE, a MotionVAE"):
        RVQVAE.from_pretrained(tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"this is a tokenizer, an RVQVAE .*not a VAE"):
        MotionVAE.from_pretrained(tmp_path / "tokenizer.safetensors")
    with pytest.raises(UserError, match="not a VAE, a MotionVAE"):
        MotionVAE(RVQVAEConfig())


def test_wrong_latents_are_refused():
    model = MODELS["resnet"]
    right = torch.zeros(2, 3, 4)
    for wrong, message in (
        (right[0], r"must be \(B, n, 4\)"),
        (right[:, :, :3], r"must be \(B, n, 4\)"),
        (right[:, :0], "none of them 0"),
        (right + torch.nan, "must be finite"),
    ):
        with pytest.raises(UserError, match=message):
            model.decode(wrong)
        with pytest.raises(UserError, match=message):
            model.stream_decode().push(wrong)
    with pytest.raises(UserError, match="from 1 to 12 frames"):
        model.decode(right, 13)
