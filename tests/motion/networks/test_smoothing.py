"""The filter after the decoder: what it computes, and in pieces as in a whole."""

import pytest
import torch

from motion import RVQVAE, RVQVAEConfig
from motion.checkpoints.formats import CheckpointError, save_momask
from motion.config import QuantizerConfig, ResnetConfig, SmoothingConfig
from motion.networks.receptive import receptive_field
from motion.networks.smoothing import Smoother

SPANS = [(2, 2), (0, 3), (3, 0), (1, 4)]


def written_out(x, before, after, weights):
    """The weighted mean, with the first and the last frame beyond the ends."""
    frames = len(x)
    return torch.stack(
        [
            sum(
                weight * x[min(max(t - before + k, 0), frames - 1)]
                for k, weight in enumerate(weights)
            )
            for t in range(frames)
        ]
    )


def test_weights_are_binomial():
    smoother = Smoother(SmoothingConfig(before=2, after=2))
    assert smoother.weights.tolist() == [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    assert not smoother.weights.requires_grad
    assert Smoother(SmoothingConfig(before=1, learned=True)).weights.requires_grad


@pytest.mark.parametrize(("before", "after"), SPANS)
@pytest.mark.parametrize("frames", [1, 3, 20])
def test_it_is_a_weighted_mean(before, after, frames):
    smoother = Smoother(SmoothingConfig(before=before, after=after)).double()
    x = torch.randn(2, frames, 3, dtype=torch.float64)
    for clip, found in zip(x, smoother(x), strict=True):
        torch.testing.assert_close(found, written_out(clip, before, after, smoother.weights))


def test_constant_motion_stays():
    smoother = Smoother(SmoothingConfig(before=2, after=1, learned=True))
    with torch.no_grad():
        smoother.weights.copy_(torch.tensor([0.3, 0.9, 0.1, 0.4]))
    x = torch.full((1, 9, 2), 3.0)
    torch.testing.assert_close(smoother(x), x)


@pytest.mark.parametrize(("before", "after"), SPANS)
@pytest.mark.parametrize("sizes", [(1,) * 12, (12,), (5, 1, 6), (1, 11)])
def test_pieces_are_the_whole_bit_for_bit(before, after, sizes):
    smoother = Smoother(SmoothingConfig(before=before, after=after))
    x = torch.randn(2, 12, 3)
    state, pieces = None, []
    for piece in x.split(sizes, dim=1):
        found, state = smoother.step(piece, state)
        pieces.append(found)
    pieces.append(smoother.finish(state))
    assert torch.equal(torch.cat(pieces, dim=1), smoother(x))


@pytest.mark.parametrize(("before", "after"), SPANS)
def test_a_padded_clip_is_the_clip_alone(before, after):
    smoother = Smoother(SmoothingConfig(before=before, after=after))
    x = torch.randn(3, 10, 2)
    lengths = torch.tensor([10, 4, 1])
    found = smoother(x, lengths)
    for clip, length, whole in zip(x, lengths.tolist(), found, strict=True):
        assert torch.equal(whole[:length], smoother(clip[None, :length])[0])


def make(**changes):
    config = RVQVAEConfig(
        channels=5,
        code_dim=4,
        resnet=ResnetConfig(width=8, depth=1, dropout=0.0),
        quantizer=QuantizerConfig(num_quantizers=2, codebook_size=16),
        **changes,
    )
    torch.manual_seed(0)
    model = RVQVAE(config)
    model(torch.randn(2, 64, 5))
    return model.eval()


def test_a_model_smooths_what_it_decodes():
    plain, smoothed = make(), make(smoothing=SmoothingConfig(before=2, after=2))
    missing = smoothed.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["smoother.weights"]
    motion = torch.randn(1, 40, 5)
    indices = plain.encode(motion)
    expected = smoothed.smoother(plain.decode(indices))
    torch.testing.assert_close(smoothed.decode(indices), expected)
    torch.testing.assert_close(smoothed(motion).output, smoothed.smoother(plain(motion).output))
    jerks = [model.decode(indices).diff(n=3, dim=1).abs().mean() for model in (plain, smoothed)]
    assert jerks[1] < 0.5 * jerks[0]


def test_clips_of_a_batch_are_smoothed_as_alone():
    model = make(smoothing=SmoothingConfig(before=2, after=3))
    indices = model.encode(torch.randn(2, 40, 5))
    found = model.decode(indices, [40, 17])
    torch.testing.assert_close(found[1:, :17], model.decode(indices[1:, :5], 17))
    assert found[1, 17:].eq(0).all()


def test_it_is_part_of_the_checkpoint(tmp_path):
    model = make(smoothing=SmoothingConfig(before=1, after=2, learned=True))
    with torch.no_grad():
        model.smoother.weights.add_(torch.rand(4))
    model.save_pretrained(tmp_path / "model.safetensors")
    again = RVQVAE.from_pretrained(tmp_path / "model.safetensors")
    indices = model.encode(torch.randn(1, 20, 5))
    assert torch.equal(again.decode(indices), model.decode(indices))
    half = RVQVAE.from_pretrained(tmp_path / "model.safetensors", "bfloat16")
    assert half.smoother.weights.dtype == torch.float32
    assert half.decode(indices).dtype == torch.float32
    with pytest.raises(CheckpointError, match="no filter after the decoder"):
        save_momask(tmp_path / "model.tar", model.config, model.state_dict())


def test_a_learned_filter_learns_and_a_fixed_one_does_not():
    for learned in (True, False):
        model = make(smoothing=SmoothingConfig(before=1, after=1, learned=learned)).train()
        model(torch.randn(1, 20, 5)).output.square().mean().backward()
        assert (model.smoother.weights.grad is not None) == learned


def test_frames_depend_on_the_tokens_of_their_neighbors():
    plain, smoothed = (
        receptive_field(make(**changes).config)
        for changes in ({}, {"smoothing": SmoothingConfig(before=4, after=8)})
    )
    assert smoothed.tokens_before == plain.tokens_before + 1
    assert smoothed.tokens_after == plain.tokens_after + 2
    assert smoothed.frames == plain.frames
