"""Reconstructions agree with the models, and come a few frames at a time."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.helpers import tiny
from wanvae import WanVAE
from wanvae.evaluate import models, run
from wanvae.evaluate.models import Cost, Judged, in_lockstep, judge_diffusers, judge_stream
from wanvae.evaluate.settings import ModelFacts
from wanvae.evaluate.trials import Trial, make_trial
from wanvae.folders.manifest import Entry
from wanvae.frames import pad_to_multiple
from wanvae.video import Frame
from wanvae.video.reading.options import AS_STORED

FACTS = ModelFacts(
    name="a", checkpoint="", library="wanvae", encode_dtype="float32", decode_dtype="float32"
)
CPU = torch.device("cpu")


def model(seed: int = 0, **config: object) -> WanVAE:
    torch.manual_seed(seed)
    return tiny(**config).float()


def frames_of(video: Tensor) -> Iterator[Frame]:
    """Frames of ``(3, T, H, W)``, each in memory of its own."""
    for number, image in enumerate(video.unbind(1)):
        yield Frame(image.clone(), number / 25)


def clip(frames: int, height: int = 21, width: int = 30) -> Tensor:
    return torch.rand(3, frames, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def reconstruct(judged: Judged, video: Tensor) -> tuple[Tensor, Cost]:
    cost = Cost(CPU)
    return torch.stack(list(judged.reconstruct(frames_of(video), cost)), dim=1), cost


@pytest.mark.parametrize("frames", [1, 5, 7])
@pytest.mark.parametrize("kind", ["wanvae", "diffusers"])
def test_odd_sizes_and_lengths_are_padded_and_cropped(kind: str, frames: int) -> None:
    vae, video = model(), clip(frames)
    judged = (
        judge_stream(vae, FACTS, None, None) if kind == "wanvae" else judge_diffusers(vae, FACTS)
    )
    output, cost = reconstruct(judged, video)
    whole = torch.cat([video, video[:, -1:].expand(-1, -(frames - 1) % 4, -1, -1)], dim=1)
    posterior = vae.encode(pad_to_multiple(whole[None], 8))
    expected = vae.decode(posterior.mode())[0, :, :frames, :21, :30]
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    assert cost.values == posterior.mean.numel()
    assert cost.nats == pytest.approx(posterior.kl().item(), rel=1e-4)
    assert cost.encoding.seconds > cost.reading.seconds > 0 and cost.decoding.seconds > 0


def test_limits_do_not_change_the_result() -> None:
    vae, video = model(), clip(9, 32, 48)
    expected, _ = reconstruct(judge_stream(vae, FACTS, None, None), video)
    for limits in ((16, None), (None, 2**30)):
        output, _ = reconstruct(judge_stream(vae, FACTS, *limits), video)
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_models_that_cannot_be_judged_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="compares RGB, and this model encodes RGBA"):
        judge_diffusers(model(in_channels=4, out_channels=4), FACTS)
    with pytest.raises(ValueError, match="no original to compare with"):
        judge_stream(model(upscale_factor=2), FACTS)
    with pytest.raises(ValueError, match="no original to compare with"):
        judge_stream(model(in_channels=4), FACTS, None, None)
    with pytest.raises(ValueError, match="cannot stream"):
        judge_stream(model(norm="group", dim=8), FACTS, None, None)
    with pytest.raises(ValueError, match=r"diffusers has no such model .*attn_scales"):
        judge_diffusers(model(attn_scales=(0.5,)), FACTS)
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install diffusers"):
        judge_diffusers(model(), FACTS)


@pytest.mark.parametrize("frames", [1, 7])
def test_a_model_that_upscales_is_judged_at_the_size_of_the_frames(frames: int) -> None:
    vae, video = model(upscale_factor=2), clip(frames)

    def shrink(frame: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool3d(frame, (1, 2, 2))

    output, _ = reconstruct(judge_stream(vae, FACTS, scale_down=shrink), video)
    whole = torch.cat([video, video[:, -1:].expand(-1, -(frames - 1) % 4, -1, -1)], dim=1)
    small = shrink(pad_to_multiple(whole[None], 2))
    expected = vae.decode(vae.encode(pad_to_multiple(small, 8)).mode())[0, :, :frames, :21, :30]
    assert output.shape == video.shape
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_models_that_work_together_see_the_same_frames() -> None:
    judged = [judge_stream(model(seed), FACTS, None, None) for seed in (0, 1)]
    judged.append(judge_diffusers(model(2), FACTS))
    video = clip(7)
    output = list(in_lockstep(frames_of(video), judged, [Cost(CPU) for _ in judged]))
    assert torch.equal(torch.stack([frame.image for frame, _ in output], dim=1), video)
    for number, one in enumerate(judged):
        alone, _ = reconstruct(one, video)
        assert torch.equal(torch.stack([images[number] for _, images in output], dim=1), alone)


def live_frames(frames: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """The most frames of a clip that are in memory at once while it is judged."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def read(clips: list[object], *_: object, **__: object) -> Iterator[tuple[object, Frame]]:
        nonlocal most
        for frame in frames_of(clip(frames, 16, 16)):
            alive.add(frame.image)
            most = max(most, len(alive))
            yield clips[0], frame

    monkeypatch.setattr(run, "read_clips", read)
    judging = run.Judging(
        models=[judge_stream(model(seed), FACTS, None, None) for seed in (0, 1)],
        lpips=None,
        i3d=lambda window: window.float().mean().view(1),
        media_seconds=1.0,
        reading=AS_STORED,
        device=CPU,
    )
    entry = Entry(path="a.mp4", size=1, mtime=0, width=16, height=16, frames=frames, fps=25.0)
    trial = make_trial(entry, None, None, shown=True)
    assert isinstance(trial, Trial)
    run.run_trial(judging, trial, folder, folder / "trials", SimpleNamespace(update=lambda: None))
    return most


def test_memory_does_not_grow_with_the_length(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("wanvae.execution.cost.STEP_PIXELS", 8 * 16 * 16)
    counts = [live_frames(frames, monkeypatch, tmp_path) for frames in (40, 80)]
    assert counts[0] == counts[1] < 36
