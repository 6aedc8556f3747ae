"""The regularizers of latents: each term by hand, and what each one claims."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, PartialState
from torch import nn

from tests.helpers import random_video, tiny
from wanvae import WanVAE
from wanvae.train import losses as losses_module
from wanvae.train.losses import LossConfig, VideoLosses
from wanvae.train.regularizers import (
    AlignmentConfig,
    ChannelDropoutConfig,
    EquivarianceConfig,
    Turn,
    alignment_loss,
    draw_kept,
    draw_turn,
    drop_channels,
)
from wanvae.train.run import main
from wanvae.train.trainee import Trainee, TrainingOutput
from wanvae.video import write_video

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"dim_mult": (1, 2), "temporal_downsample": (True,)}
ALIGNED = AlignmentConfig(weight=1.0, network="stand-in", cosine_margin=0, distance_margin=0)
ALL = LossConfig(
    l1_reduction="mean",
    equivariance=EquivarianceConfig(weight=1.0),
    channel_dropout=ChannelDropoutConfig(weight=1.0),
    alignment=ALIGNED,
)


class Colours(nn.Module):
    """Stands for a frozen network: colours of patches and how they differ along the axes."""

    channels = 7

    def __init__(self, folder: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mix", torch.randn(7, 9, generator=generator))

    def forward(self, video: torch.Tensor, height: int, width: int) -> torch.Tensor:
        pooled = F.adaptive_avg_pool3d(video.float(), (video.shape[2], height, width))
        edges = [pooled - pooled.roll(1, axis) for axis in (3, 4)]
        return torch.einsum("dc,bcthw->bdthw", self.mix, torch.cat([pooled, *edges], 1))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "FrozenFeatures", Colours)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state()
    PartialState._reset_state()


def make_trainee(config: LossConfig, **changes: object) -> Trainee:
    torch.manual_seed(0)
    vae = tiny(**{**SMALL, **changes}).float()
    return Trainee(vae, config, feature_channels=7 if config.alignment.weight else 0)


def terms_of(
    trainee: Trainee, video: torch.Tensor, output: TrainingOutput | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    losses = VideoLosses(trainee.loss, "cpu")
    output = trainee(video) if output is None else output
    return losses.regularizers(output, video, last_layer=trainee.vae.conv1.weight)


def waves(clips: int, frames: int = 5, side: int = 16) -> torch.Tensor:
    """Smooth clips with edges, of which no two are alike and no turn is like another."""
    generator = torch.Generator().manual_seed(3)
    t, y, x = torch.meshgrid(*map(torch.arange, (frames, side, side)), indexing="ij")
    phase = torch.rand(4, clips, 3, 1, 1, 1, generator=generator)
    angle = (phase[0] - 0.3) * x + 0.7 * phase[1] * y + 0.2 * phase[2] * t + 6 * phase[3]
    return 0.8 * torch.sin(angle)


def test_a_turn_scales_then_rotates_latents_and_videos_alike():
    x = torch.arange(24.0).view(1, 1, 1, 4, 6)
    assert torch.equal(Turn(4, 6, 0).apply(x), x)
    assert torch.equal(Turn(4, 6, 1).apply(x), torch.rot90(x, 1, (3, 4)))
    video = random_video(3, 16, 24, batch=2)
    turned = Turn(2, 3, 3).apply(video, 4)
    assert turned.shape == (2, 3, 3, 12, 8) and turned.dtype == torch.float64
    for clip, frame in ((0, 2), (1, 0)):
        alone = F.interpolate(video[clip, :, frame][None], (8, 12), mode="bilinear", antialias=True)
        torch.testing.assert_close(turned[clip, :, frame], torch.rot90(alone[0], 3, (1, 2)))
    half = torch.full((2, 3, 1, 4, 4), 0.5, dtype=torch.bfloat16)
    torch.testing.assert_close(Turn(2, 1, 2).apply(half), torch.full((2, 3, 1, 2, 1), 0.5))


def test_turns_are_drawn_from_the_whole_range():
    torch.manual_seed(0)
    config = EquivarianceConfig(weight=1.0, smallest_scale=0.25)
    turns = [draw_turn(config, 16, 32) for _ in range(300)]
    assert {turn.quarters for turn in turns} == {0, 1, 2, 3}
    assert {turn.height for turn in turns} == set(range(4, 17))
    assert all(abs(turn.width - 2 * turn.height) <= 1 for turn in turns)
    assert {draw_turn(replace(config, rotate=False), 16, 16).quarters for _ in range(20)} == {0}
    bounded = [draw_turn(config, 16, 3, smallest=5) for _ in range(100)]
    assert {turn.width for turn in bounded} == {3} and min(turn.height for turn in bounded) == 5
    torch.manual_seed(0)
    assert [draw_turn(config, 16, 32) for _ in range(300)] == turns


def test_channels_are_dropped_alone_or_from_the_last_on():
    torch.manual_seed(0)
    kept = draw_kept(ChannelDropoutConfig(weight=1.0, probability=0.25), 2000, 8)
    torch.testing.assert_close(kept.float().mean(0), torch.full((8,), 0.75), atol=0.05, rtol=0)
    last = draw_kept(ChannelDropoutConfig(weight=1.0, probability=0.5, order="last"), 2000, 8)
    counts = last.sum(1)
    assert torch.equal(last, torch.arange(8) < counts[:, None])  # the first ones, without gaps
    assert set(counts.tolist()) == set(range(1, 9))
    # Half of the clips are whole, and an eighth of the others.
    assert (counts == 8).float().mean().item() == pytest.approx(0.5 + 0.5 / 8, abs=0.04)


def test_a_missing_channel_is_its_mean():
    latents = random_video(2, 2, 2, batch=2, channels=3)
    kept = torch.tensor([[True, False, True], [False, True, True]])
    found = drop_channels(latents, kept, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(found[0, ::2], latents[0, ::2]) and (found[0, 1] == 2).all()
    assert torch.equal(found[1, 1:], latents[1, 1:]) and (found[1, 0] == 1).all()
    trainee = make_trainee(LossConfig(), latents_mean=(3.0, -1.0), latents_std=(1.0, 2.0))
    assert trainee.fill.tolist() == [3, -1]


def test_the_alignment_by_hand():
    # Two positions: latents at right angles, features alike, projections half wrong.
    latents = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 1, 2)
    features = torch.tensor([[2.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 1, 2)
    config = replace(ALIGNED, cosine_margin=0.25, distance_margin=0.5)
    # Cosine similarities of projections: 1 and 0. Of pairs: 1 apart in two of four.
    found = alignment_loss(latents, latents, features, config)
    assert found.item() == pytest.approx((0 + 0.75) / 2 + 2 * 0.5 / 4)
    assert alignment_loss(features, features, features, config).item() == 0


def test_all_is_off_by_default_and_costs_nothing_random():
    trainee, video = make_trainee(LossConfig()), random_video(5, batch=2).float()
    trainee.train()
    assert trainee.projection is None
    torch.manual_seed(1)
    output = trainee(video)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(output.reconstruction.video, trainee.vae(video).video)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (output.decoded, output.projected) == ({}, None)
    assert terms_of(trainee, video) == ({}, {})


def test_each_term_has_its_name_and_reaches_what_it_is_to_change():
    trainee, video = make_trainee(ALL), random_video(5, batch=2).float()
    terms, figures = terms_of(trainee, video)
    assert terms.keys() == {"equivariance", "channel_dropout", "alignment"}
    assert figures.keys() == {"similarity"} and abs(figures["similarity"]) <= 1
    assert {term.dtype for term in terms.values()} == {torch.float32}
    vae = trainee.vae
    for name, term in terms.items():
        wanted = [vae.conv1.weight, vae.conv2.weight]
        gradients = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True)
        assert gradients[0].any()
        assert (gradients[1] is None) == (name == "alignment")
    assert torch.autograd.grad(terms["alignment"], trainee.projection.weight)[0].any()


@pytest.mark.parametrize("changes", [{"ndim": 2}, {"patch_size": 2}])
def test_other_kinds_of_models_have_the_terms_too(changes):
    trainee, video = make_trainee(ALL, **changes), random_video(5, 16, 24, batch=2).float()
    terms, _ = terms_of(trainee, video)
    assert all(term.isfinite() for term in terms.values())


def test_the_weight_of_the_alignment_adapts_to_the_reconstruction():
    trainee, video = make_trainee(replace(ALL, equivariance=EquivarianceConfig())), waves(2)
    last = trainee.vae.conv1.weight
    output = trainee(video)
    losses = VideoLosses(trainee.loss, "cpu")
    terms, _ = losses.regularizers(output, video, last_layer=last)
    compared = losses.compare(output.reconstruction.video, video)["l1"]
    norms = [
        torch.autograd.grad(term, last, retain_graph=True)[0].norm().item()
        for term in (terms["alignment"], compared)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_a_batch_has_the_mean_of_its_halves():
    config = replace(ALL, alignment=replace(ALIGNED, adaptive=False))
    trainee, video = make_trainee(config), random_video(5, batch=4).float()

    def terms(part: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.manual_seed(4)  # the same turn
        output = trainee(part)
        lacking = trainee.decode(drop_channels(output.latents, kept(part), trainee.fill), False)
        dropped = replace(output.decoded["channel_dropout"], video=lacking)
        decoded = {**output.decoded, "channel_dropout": dropped}
        return terms_of(trainee, part, replace(output, decoded=decoded))[0]

    def kept(part: torch.Tensor) -> torch.Tensor:
        return torch.tensor([True, False]).expand(len(part), 2)

    whole, halves = terms(video), (terms(video[:2]), terms(video[2:]))
    for name, term in whole.items():
        torch.testing.assert_close(term, (halves[0][name] + halves[1][name]) / 2)


@pytest.mark.parametrize("recompute", [True, False])
def test_low_precision_gives_float32_terms_and_gradients(recompute):
    trainee, video = make_trainee(ALL), random_video(5, batch=2).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = trainee(video, recompute=recompute)
    terms, _ = terms_of(trainee, video, output)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    sum(terms.values()).backward()
    gradients = [p.grad for p in trainee.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_checkpointing_gives_the_same_terms_and_gradients():
    trainee, video = make_trainee(ALL), random_video(5, batch=2).float()
    found = []
    for recompute in (True, False):
        trainee.zero_grad()
        torch.manual_seed(0)
        terms, _ = terms_of(trainee, video, trainee(video, recompute=recompute))
        sum(terms.values()).backward()
        found.append([*terms.values(), *(p.grad for p in trainee.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_lpips_never_sees_frames_that_are_too_small():
    config = replace(ALL, equivariance=EquivarianceConfig(weight=1.0, smallest_scale=0.01))
    vae = tiny(**SMALL).float()
    trainee, video = Trainee(vae, config, smallest_side=7), random_video(1, 12, 16).float()
    sizes = {trainee(video).decoded["equivariance"].video.shape[3:] for _ in range(30)}
    assert min(min(size) for size in sizes) == 8  # whole latents of 2 pixels


@pytest.mark.parametrize(
    ("config", "values", "said"),
    [
        (EquivarianceConfig, {"weight": -1.0}, "^equivariance.weight must be at least 0"),
        (EquivarianceConfig, {"smallest_scale": 0.0}, "^equivariance.smallest_scale must be above"),
        (
            EquivarianceConfig,
            {"weight": 1.0, "smallest_scale": 1.0, "rotate": False},
            "neither scales nor rotates",
        ),
        (ChannelDropoutConfig, {"weight": -1.0}, "^channel_dropout.weight must be at least 0"),
        (ChannelDropoutConfig, {"probability": 0.0}, "^channel_dropout.probability must be above"),
        (ChannelDropoutConfig, {"probability": 1.0}, "probability must be below 1"),
        (ChannelDropoutConfig, {"order": "first"}, "order must be any or last"),
        (AlignmentConfig, {"weight": -1.0}, "^alignment.weight must be at least 0"),
        (AlignmentConfig, {"cosine_margin": -1.0}, "cosine_margin must be at least 0"),
        (AlignmentConfig, {"weight": 1.0}, "there is no network"),
    ],
)
def test_impossible_settings_are_refused(config, values, said):
    with pytest.raises(ValueError, match=said):
        config(**values)


# What each one claims, on a model that learns a few clips.


def learn(config: LossConfig, steps: int, **changes: object) -> Trainee:
    """A small model after some steps on clips of waves."""
    trainee = make_trainee(config, z_dim=4, dim=8, **SMALL, **changes)
    trainee.train()
    losses, video = VideoLosses(config, "cpu"), waves(8)
    optimizer = torch.optim.Adam(trainee.parameters(), 5e-3)
    for step in range(steps):
        torch.manual_seed(step)
        output = trainee(video)
        terms = losses.generator(
            output.reconstruction, video, discriminator=None, last_layer=video, step=step
        )
        regularizers, _ = losses.regularizers(output, video, last_layer=trainee.vae.conv1.weight)
        optimizer.zero_grad()
        sum([*terms.values(), *regularizers.values()]).backward()
        optimizer.step()
    return trainee.eval()


PLAIN = LossConfig(l1_reduction="mean", kl=1e-6)
STEPS = 150


@pytest.fixture(scope="module")
def plain() -> Trainee:
    return learn(PLAIN, STEPS)


@torch.no_grad()
def decoding_error(trainee: Trainee, change, target: torch.Tensor) -> float:
    latents, _ = trainee.vae.encode_for_training(waves(8))
    return (trainee.decode(change(latents), False) - target).abs().mean().item()


@pytest.mark.slow
def test_equivariance_falls(plain):
    trained = learn(replace(PLAIN, equivariance=EquivarianceConfig(weight=1.0)), STEPS)
    for turn in (Turn(8, 8, 1), Turn(8, 8, 2), Turn(4, 4, 0), Turn(6, 6, 3)):
        target = turn.apply(waves(8), 2)
        errors = [decoding_error(each, turn.apply, target) for each in (trained, plain)]
        assert errors[0] < 0.7 * errors[1]


def error_of_missing(trainee: Trainee, masks: list[torch.Tensor]) -> float:
    """How much the error of pixels grows, in the mean, when channels are missing."""
    whole = decoding_error(trainee, lambda latents: latents, waves(8))
    missing = [
        decoding_error(trainee, partial(drop_channels, kept=mask, fill=trainee.fill), waves(8))
        for mask in masks
    ]
    return sum(missing) / len(missing) - whole


@pytest.mark.slow
@pytest.mark.parametrize("order", ["any", "last"])
def test_a_decoder_trained_without_some_channels_loses_less_when_they_are_missing(plain, order):
    dropout = ChannelDropoutConfig(weight=1.0, probability=0.5, order=order)
    trained = learn(replace(PLAIN, channel_dropout=dropout), STEPS)
    masks = [torch.arange(4)[None] != i for i in ((3,) if order == "last" else range(4))]
    lost = [error_of_missing(each, masks) for each in (trained, plain)]
    assert lost[0] < 0.6 * lost[1]


@pytest.mark.slow
def test_alignment_rises(plain):
    trained = learn(replace(PLAIN, alignment=replace(ALIGNED, weight=0.5)), STEPS)
    video = waves(8)
    with torch.no_grad():
        features = Colours("")(video[:, :, ::2], 8, 8)
        latents = [each.vae.encode_for_training(video)[0] for each in (trained, plain)]
        start = make_trainee(trained.loss, z_dim=4, dim=8, **SMALL)
        cosines = [
            F.cosine_similarity(each.project(each.vae.encode_for_training(video)[0]), features)
            for each in (trained, start)
        ]
        # Without any projection: alike where features are alike.
        distances = [alignment_loss(x, features, features, ALIGNED).item() for x in latents]
    assert cosines[0].mean() > cosines[1].mean() + 0.5
    assert distances[0] < 0.7 * distances[1]


# Runs.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "waves.mp4", waves(1, 12, 48)[0], Fraction(25))
    return folder


def options(folder: Path, run: Path, steps: int, network: str) -> list[str]:
    return [
        f"--config={CONFIGS / 'video' / 'tiny.yaml'}",
        f"--data.folder={folder}",
        "--data.size=16",
        "--model.dim=4",
        "--model.dim_mult=[1,2]",
        "--model.temporal_downsample=[true]",
        f"--trainer.run={run}",
        f"--trainer.steps={steps}",
        "--trainer.batch_size=2",
        "--trainer.checkpoint_every=1",
        "--trainer.log_every=1",
        "--trainer.workers=0",
        "--trainer.tracker=none",
        "--loss.equivariance.weight=1",
        "--loss.channel_dropout.weight=1",
        "--loss.alignment.weight=0.5",
        f"--loss.alignment.network={network}",
    ]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return WanVAE.from_pretrained(run / "model.safetensors").state_dict()


def test_a_run_with_all_of_them_resumes_bit_for_bit(folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = ["--trainer.accumulate=2", "--trainer.ema_decay=0.9", "--loss.gan.weight=0.5"]
    changes += ["--loss.gan.dim=8", "--loss.gan.layers=2", "--gradient_checkpointing=true"]
    assert main([*options(folder, whole, 2, "stand-in"), *changes]) == 0
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    logged = {"equivariance", "channel_dropout", "alignment", "similarity", "psnr", "gan"}
    assert all(logged <= line.keys() for line in lines if "loss" in line)
    shutil.copytree(whole / "checkpoints", cut / "checkpoints")
    shutil.rmtree(cut / "checkpoints" / "step-00000002")
    assert main([*options(folder, cut, 2, "stand-in"), *changes]) == 0
    expected, found = tensors_of(whole), tensors_of(cut)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    files = [
        run / "checkpoints" / "step-00000002" / "companion.safetensors" for run in (whole, cut)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_frozen_encoder_cannot_be_aligned(folder, tmp_path, capsys):
    arguments = options(folder, tmp_path / "run", 1, "stand-in")
    with pytest.raises(SystemExit):
        main([*arguments, "--weights=vae.safetensors", "--freeze_encoder=true"])
    assert "nothing can align them" in capsys.readouterr().err
