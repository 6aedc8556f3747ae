"""Streams: any chunks give the tokens and the motion of the whole, in constant memory."""

from dataclasses import replace
from io import BytesIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motion import RVQVAE, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig, SmoothingConfig, WanConfig
from motion.features.statistics import FeatureStatistics
from tests.helpers import randomize, tensors_in
from wanvae.errors import UserError
from wanvae.nn import CausalConv

BASE = RVQVAEConfig(
    channels=3,
    code_dim=4,
    resnet=ResnetConfig(width=8, depth=2, dropout=0.0, causal=True),
    quantizer=QuantizerConfig(num_quantizers=2, codebook_size=16),
)
CONFIGS = {
    "resnet": BASE,
    "norm": replace(BASE, resnet=replace(BASE.resnet, norm="LN", dilation_growth_rate=(2,))),
    "batch norm": replace(BASE, resnet=replace(BASE.resnet, norm="BN")),
    "attention": replace(
        BASE, resnet=replace(BASE.resnet, attention=True, attention_window=3, depth=1)
    ),
    "wan": replace(BASE, network="wan", wan=WanConfig(dim=4, attention_window=3)),
    "smoothed": replace(BASE, smoothing=SmoothingConfig(before=2, after=2)),
    # The first token has one frame, so it gives none.
    "wan smoothed": replace(
        BASE,
        network="wan",
        wan=WanConfig(dim=4, attention_window=3),
        smoothing=SmoothingConfig(before=1, after=6, learned=True),
    ),
}


def make(config: RVQVAEConfig) -> RVQVAE:
    torch.manual_seed(0)
    model = RVQVAE(config)
    randomize(model)
    model.normalizer.set(FeatureStatistics(torch.randn(3), torch.rand(3) + 0.5))
    model.eval().quantizer.train()
    model(example(200).float())
    return model.double().eval()


def example(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames, 3, generator=generator, dtype=torch.float64)


MODELS = {name: make(config) for name, config in CONFIGS.items()}


def ended(decoder) -> list[torch.Tensor]:
    """What is still to come."""
    rest = decoder.finish()
    assert (rest is None) == (decoder.delay == 0)
    return [] if rest is None else [rest]


def pushed(session, pieces) -> list[torch.Tensor]:
    return [result for piece in pieces if (result := session.push(piece)) is not None]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_any_chunks_give_the_tokens_and_motion_of_the_whole(name, sizes):
    model = MODELS[name]
    motion = example(sum(sizes))
    whole = model.encode(motion)
    encoder = model.stream_encode()
    tokens = pushed(encoder, motion.split(sizes, dim=1))
    end = encoder.finish()
    tokens += [] if end.indices is None else [end.indices]
    assert torch.equal(torch.cat(tokens, dim=1), whole)
    assert sum(sizes) + end.padded_frames == model.config.frames_of(whole.shape[1])
    decoder = model.stream_decode()
    decoded = torch.cat([*pushed(decoder, tokens), *ended(decoder)], dim=1)
    torch.testing.assert_close(decoded, model.decode(whole))


@pytest.mark.parametrize("name", MODELS)
def test_memory_does_not_grow_and_states_can_be_saved(name):
    model = MODELS[name]
    motion = example(200)
    whole = model.encode(motion)
    encoder, decoder = model.stream_encode(), model.stream_decode(layers=1)
    tokens, decoded, sizes = [], [], []
    for piece in motion.split(10, dim=1):
        indices = encoder.push(piece)
        tokens.append(indices)
        decoded.append(decoder.push(indices))
        states = encoder.state, decoder.state
        sizes.append(sum(t.numel() for t in tensors_in(states)))
        assert all(t._base is None for t in tensors_in(encoder.state[0]))
        saved = BytesIO()
        torch.save(states, saved)
        saved.seek(0)
        encoder_state, decoder_state = torch.load(saved, weights_only=True)
        encoder = model.stream_encode(encoder_state)
        decoder = model.stream_decode(decoder_state, layers=1)
    decoded += ended(decoder)
    assert len(set(sizes[2:])) <= 2  # with and without frames that wait
    assert torch.equal(torch.cat(tokens, 1), whole[:, : len(torch.cat(tokens, 1)[0])])
    expected = model.decode(torch.cat(tokens, 1), layers=1)
    torch.testing.assert_close(torch.cat(decoded, 1), expected)


@pytest.mark.parametrize(
    "changes",
    [{"causal": False}, {"norm": "GN"}, {"attention": True}],
    ids=["not causal", "group norm", "attention without a window"],
)
def test_models_that_look_ahead_say_that_they_cannot_stream(changes):
    model = make(replace(BASE, resnet=replace(BASE.resnet, **changes)))
    for start in (model.stream_encode, model.stream_decode):
        with pytest.raises(ValueError, match=r"cannot stream: .* of its layers"):
            start()


@pytest.mark.parametrize("frames", [3, 4, 9])
def test_wrong_pieces_are_refused(frames):
    encoder, decoder = MODELS["resnet"].stream_encode(), MODELS["resnet"].stream_decode()
    with pytest.raises(ValueError, match=r"must be \(B, T, 3\)"):
        encoder.push(torch.zeros(2, frames, 5))
    encoder.push(torch.zeros(2, frames, 3))
    decoder.push(torch.zeros(2, 1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"a piece of \(3, .* follows pieces of 2 clips"):
        encoder.push(torch.zeros(3, frames, 3))
    with pytest.raises(ValueError, match=r"a piece of \(1, .* follows pieces of 2 clips"):
        decoder.push(torch.zeros(1, 1, 2, dtype=torch.long))


def test_what_waits_is_a_copy():
    model, motion = MODELS["resnet"], example(8)
    encoder, buffer = model.stream_encode(), torch.empty_like(motion[:, :2])
    tokens = []
    for piece in motion.split(2, dim=1):
        buffer.copy_(piece)
        tokens += pushed(encoder, [buffer])
    assert torch.equal(torch.cat(tokens, dim=1), model.encode(motion))


@pytest.mark.parametrize("name", MODELS)
def test_a_push_that_failed_changes_nothing(name, monkeypatch):
    model, motion = MODELS[name], example(24)
    encoder, decoder = model.stream_encode(), model.stream_decode()
    tokens, decoded = [], []
    middle = {"encoder": list(model.encoder.modules()), "decoder": list(model.decoder.modules())}
    broken = {
        kind: next(m for m in reversed(layers) if isinstance(m, CausalConv))
        for kind, layers in middle.items()
    }

    def failing(session, layer, piece):
        """A push that runs out of memory in the last convolution, and the same push again."""
        with monkeypatch.context() as patched, pytest.raises(MemoryError):
            patched.setattr(layer, "begin", out_of_memory)
            session.push(piece)
        return session.push(piece)

    for piece in motion.split(8, dim=1):
        tokens.append(failing(encoder, broken["encoder"], piece))
        decoded.append(failing(decoder, broken["decoder"], tokens[-1]))
    decoded += ended(decoder)
    whole = model.encode(motion)[:, : torch.cat(tokens, 1).shape[1]]
    assert torch.equal(torch.cat(tokens, dim=1), whole)
    torch.testing.assert_close(torch.cat(decoded, dim=1), model.decode(whole))


def out_of_memory(*_):
    raise MemoryError


@pytest.mark.parametrize("frames", [3, 8])
def test_nothing_follows_the_end(frames):
    encoder, motion = MODELS["resnet"].stream_encode(), example(frames)
    encoder.push(motion)
    assert encoder.finish().padded_frames == -frames % 4
    for refused in (
        lambda: encoder.push(motion),
        encoder.finish,
        lambda: encoder.state,
    ):
        with pytest.raises(UserError, match="has ended"):
            refused()


@pytest.mark.parametrize("name", MODELS)
def test_a_state_of_something_else_is_named(name):
    model, other = MODELS[name], MODELS["resnet" if "wan" in name else "wan"]

    def states(model):
        encoder, decoder = model.stream_encode(), model.stream_decode()
        decoder.push(encoder.push(example(10)))
        return encoder.state, decoder.state

    encoder_state, decoder_state = states(model)
    for start, mine, wrong, found in (
        (model.stream_encode, encoder_state, decoder_state, "a decoder session"),
        (model.stream_decode, decoder_state, encoder_state, "an encoder session"),
        (model.stream_encode, encoder_state, states(other)[0], "another model"),
        (model.stream_decode, decoder_state, states(other)[1], "another model"),
        (model.stream_encode, encoder_state, torch.zeros(2), "another model"),
    ):
        start(mine)
        with pytest.raises(UserError, match=f"the state of {found}, not of an? .* of this model"):
            start(wrong)


@pytest.mark.parametrize("pieces", [(1, 1, 1), (2, 1), (3,)])
def test_a_smoothed_stream_is_late_by_its_delay(pieces):
    model = MODELS["smoothed"]
    indices = model.encode(example(12))
    decoder = model.stream_decode()
    assert decoder.delay == 2
    came = 0
    for count, piece in zip(pieces, indices.split(pieces, dim=1), strict=True):
        came += 4 * count
        motion = decoder.push(piece)
        assert motion.shape[1] == 4 * count - (2 if came == 4 * count else 0)
    assert decoder.finish().shape[1] == 2
    for refused in (decoder.finish, lambda: decoder.push(indices), lambda: decoder.state):
        with pytest.raises(UserError, match="finish\\(\\) returned its last frames"):
            refused()


def test_a_stream_without_tokens_has_no_end():
    assert MODELS["smoothed"].stream_decode().finish() is None


def test_the_state_of_an_unsmoothed_model_is_refused():
    model, other = MODELS["smoothed"], MODELS["resnet"]
    tokens = model.encode(example(4))
    for one, another in ((model, other), (other, model)):
        decoder = one.stream_decode()
        decoder.push(tokens)
        with pytest.raises(UserError, match="the state of another model"):
            another.stream_decode(decoder.state)


def test_frames_that_wait_are_checked():
    encoder = MODELS["resnet"].stream_encode()
    encoder.push(example(3))
    layers, waiting = encoder.state
    MODELS["resnet"].stream_encode((layers, waiting))
    with pytest.raises(UserError, match=r"wait in this state are \(2, 3, 2\), not \(B, T, 3\)"):
        MODELS["resnet"].stream_encode((layers, waiting[:, :, :2]))


@pytest.mark.parametrize("name", MODELS)
def test_steps_keep_gradients_and_sessions_keep_none(name):
    model = MODELS[name]
    motion = example(model.config.frames_of(3))
    indices, state = model.encode_step(motion, None)
    assert not indices.is_floating_point()
    assert any(tensor.requires_grad for tensor in tensors_in(state))
    decoded, _ = model.decode_step(indices, None)
    (gradient,) = torch.autograd.grad(decoded.sum(), [next(model.decoder.parameters())])
    assert gradient.any()
    encoder, decoder = model.stream_encode(), model.stream_decode()
    pushed_motion = decoder.push(encoder.push(motion))
    states = tensors_in((encoder.state, decoder.state))
    assert not any(tensor.requires_grad for tensor in (pushed_motion, *states))
