"""Stream sessions: any pushes, saved and restored, side by side, in constant memory."""

import gc
import io
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import WAN22, random_video, tensors_in, tiny
from wanvae.errors import UserError


def groups(video):
    """The pieces that make one latent each."""
    return video.split([1] + [4] * ((video.shape[2] - 1) // 4), dim=2)


def push_all(session, pieces):
    """Push pieces; returns what came out of each, where something did."""
    return [out for out in map(session.push, pieces) if out is not None]


variants = st.sampled_from([{}, WAN22])
pushes = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@settings(max_examples=20)
@given(lengths=pushes, variant=variants)
def test_any_pushes_encode_to_the_whole(lengths, variant):
    vae, frames = tiny(**variant), sum(lengths)
    video = random_video(frames)
    session = vae.stream_encode()
    posteriors = push_all(session, video.split(lengths, dim=2))
    end = session.finish()
    if end.posterior is not None:
        posteriors.append(end.posterior)
    padding = -(frames - 1) % 4
    assert end.padded_frames == padding
    padded = torch.cat([video, video[:, :, -1:].expand(-1, -1, padding, -1, -1)], dim=2)
    whole = vae.encode(padded)
    torch.testing.assert_close(torch.cat([p.mean for p in posteriors], dim=2), whole.mean)
    torch.testing.assert_close(torch.cat([p.logvar for p in posteriors], dim=2), whole.logvar)


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=4), variant=variants)
def test_any_pushes_decode_to_the_whole(lengths, variant):
    vae = tiny(**variant)
    latents = torch.randn(1, 2, sum(lengths), 2, 3, dtype=torch.float64)
    decoded = torch.cat(push_all(vae.stream_decode(), latents.split(lengths, dim=2)), dim=2)
    torch.testing.assert_close(decoded, vae.decode(latents))


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_restored_session_goes_on_as_if_never_stopped(cut):
    vae, video = tiny(), random_video(13)
    first = vae.stream_encode()
    posteriors = push_all(first, [video[:, :, :cut]])
    second = vae.stream_encode(state=saved_and_loaded(first.state))
    posteriors += push_all(second, [video[:, :, cut:]])
    latents = torch.cat([p.mean for p in posteriors], dim=2)
    torch.testing.assert_close(latents, vae.encode(video).mean)
    first = vae.stream_decode()
    decoded = [first.push(latents[:, :, :2])]
    second = vae.stream_decode(state=saved_and_loaded(first.state))
    decoded.append(second.push(latents[:, :, 2:]))
    torch.testing.assert_close(torch.cat(decoded, dim=2), vae.decode(latents))


def test_interleaved_streams_do_not_mix():
    vae = tiny()
    videos = [random_video(9), -random_video(9)]
    sessions = [vae.stream_encode(), vae.stream_encode()]
    means = [[], []]
    for chunk in range(3):
        for session, video, mean in zip(sessions, videos, means, strict=True):
            piece = groups(video)[chunk]
            mean.append(session.push(piece).mean)
    for video, mean in zip(videos, means, strict=True):
        torch.testing.assert_close(torch.cat(mean, dim=2), vae.encode(video).mean)


def test_state_does_not_grow():
    vae = tiny()
    encoder, decoder = vae.stream_encode(), vae.stream_decode()
    sizes = []
    for chunk in groups(random_video(33)):
        decoder.push(encoder.push(chunk).mean)
        states = [*tensors_in(encoder.state), *tensors_in(decoder.state)]
        sizes.append(sum(t.untyped_storage().nbytes() for t in states))
    # The frames of zeros before the first one are not kept.
    assert sizes[0] < sizes[1] == max(sizes) == min(sizes[1:])


def test_nothing_needs_gradients():
    vae = tiny()
    encoder = vae.stream_encode()
    latents = encoder.push(random_video(5)).mean
    assert not latents.requires_grad
    assert not any(t.requires_grad for t in tensors_in(encoder.state))


def test_finish_on_an_empty_stream_gives_nothing():
    end = tiny().stream_encode().finish()
    assert end.posterior is None
    assert end.padded_frames == 0


@pytest.mark.parametrize("pushed", [1, 3])
def test_a_stream_keeps_its_size(pushed):
    vae = tiny()
    encoder, decoder = vae.stream_encode(), vae.stream_decode()
    latents = encoder.push(random_video(pushed)).mean
    decoder.push(latents)
    with pytest.raises(ValueError, match=r"keeps its shape.*\(1, 3, 1, 24, 16\)"):
        encoder.push(random_video(1, 24))
    with pytest.raises(ValueError, match=r"keeps its shape.*\(2, 2, 1, 2, 2\)"):
        decoder.push(latents.repeat(2, 1, 1, 1, 1))


def test_the_memory_of_a_stream_goes_with_its_session():
    session = tiny().stream_decode()
    session.push(torch.randn(1, 2, 2, 2, 3, dtype=torch.float64))
    states = [weakref.ref(tensor) for tensor in tensors_in(session.state)]
    gc.collect()
    gc.disable()
    try:
        del session
        assert states
        assert not any(state() is not None for state in states)
    finally:
        gc.enable()


class Interrupted(Exception):
    """Something that has nothing to do with us: out of memory, Ctrl-C."""


def interrupt(*_, **__):
    raise Interrupted


@pytest.mark.parametrize("tile_size", [None, 8])
def test_a_broken_session_refuses_to_go_on(monkeypatch, tile_size):
    vae = tiny()
    encoder, decoder = (
        vae.stream_encode(tile_size=tile_size),
        vae.stream_decode(tile_size=tile_size),
    )
    video = random_video(9)
    first = encoder.push(video[:, :, :5]).mean
    decoder.push(first)
    saved = encoder.state, decoder.state
    for session, layer, piece in (
        (encoder, vae.encoder.middle[1], video[:, :, 5:]),
        (decoder, vae.decoder.head, first),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(layer, "step", interrupt)
            with pytest.raises(Interrupted):
                session.push(piece)
        for go_on in (lambda: session.push(piece), lambda: session.state):  # noqa: B023
            with pytest.raises(UserError, match=r"stream is broken.*start a new stream"):
                go_on()
    with pytest.raises(UserError, match="stream is broken"):
        encoder.finish()
    # A state that was saved before is as good as ever.
    restored = vae.stream_encode(saved[0], tile_size=tile_size)
    mean = torch.cat([first, restored.push(video[:, :, 5:]).mean], dim=2)
    torch.testing.assert_close(mean, vae.encode(video).mean)


def test_a_piece_that_is_refused_breaks_nothing():
    vae, video = tiny(), random_video(5)
    session = vae.stream_encode()
    first = session.push(video[:, :, :1]).mean
    with pytest.raises(UserError, match="keeps its shape"):
        session.push(random_video(4, 24))
    mean = torch.cat([first, session.push(video[:, :, 1:]).mean], dim=2)
    torch.testing.assert_close(mean, vae.encode(video).mean)


@pytest.mark.parametrize("pushed", [1, 3])
def test_a_finished_stream_takes_nothing_more(pushed):
    session = tiny().stream_encode()
    session.push(random_video(pushed))
    assert session.finish().padded_frames == -(pushed - 1) % 4
    with pytest.raises(UserError, match="finished"):
        session.push(random_video(4))
    with pytest.raises(UserError, match="finished"):
        _ = session.state
    again = session.finish()
    assert again.posterior is None
    assert again.padded_frames == 0


class Rank:
    """A process of several."""

    process_index, num_processes = 1, 2


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda vae: vae.stream_decode, "the decoder of model .* but this session is the encoder"),
        (lambda vae: tiny(dim=8).stream_encode, "the encoder of model .* but this session is"),
        (lambda vae: tiny().float().stream_encode, "in float32, but .* in float64"),
    ],
)
def test_a_state_of_something_else_is_told(found, message):
    vae = tiny()
    session = found(vae)()
    session.push(random_video(1)[:, :2] if "decoder of" in message else random_video(1))
    with pytest.raises(UserError, match=message):
        vae.stream_encode(state=saved_and_loaded(session.state))


def test_a_state_of_another_process_is_told():
    vae = tiny()
    session = vae.stream_encode()
    session.push(random_video(1))
    with pytest.raises(UserError, match=r"float64, but .* process 1 of 2"):
        vae.stream_encode(session.state, shard=Rank())


@pytest.mark.parametrize("state", [(), ((1, 3, 16, 16), (None,)), [1, 2], torch.zeros(2)], ids=str)
def test_what_is_no_state_is_told(state):
    with pytest.raises(UserError, match=r"session\.state"):
        tiny().stream_encode(state=state)
