"""Stream sessions: any pushes, saved and restored, side by side, in constant memory."""

import gc
import io
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import WAN22, random_video, tensors_in, tiny


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
