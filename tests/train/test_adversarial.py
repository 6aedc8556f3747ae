"""The GAN: each term by hand, both players learning, and several processes as one."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import random_video, tiny
from wanvae import Posterior, Reconstruction, WanVAE
from wanvae.train.adversarial import (
    SMALLEST_NORM,
    GanConfig,
    adaptive_weight,
    generator_loss,
    hinge_loss,
    lecam_penalty,
    r1_penalty,
)
from wanvae.train.discriminator import PatchDiscriminator3D, Verdict
from wanvae.train.losses import LossConfig, VideoLosses

GAN = GanConfig(weight=0.5, r1=0.1, lecam=0.1, dim=4, layers=2)
CONFIG = LossConfig(l1_reduction="mean", kl=1e-4, gan=GAN)


class Linear(nn.Module):
    """A logit linear in the video, as often as there are patches."""

    def __init__(self, shape: tuple[int, ...], patches: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.patches = patches

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> Verdict:
        logits = [
            (x * self.weight)
            .flatten(1)
            .sum(1)
            .view(-1, 1, 1, 1, 1)
            .repeat(1, 1, 1, 1, self.patches)
            for x in (fake, fake[:0] if real is None else real)
        ]
        return Verdict(*(x.expand(-1, 1, 1, 1, self.patches) for x in logits), *torch.zeros(2))


@dataclass
class Game:
    """A tiny model and a discriminator, with what they play on."""

    vae: WanVAE
    discriminator: PatchDiscriminator3D
    video: torch.Tensor

    def reconstruct(self) -> Reconstruction:
        return self.vae(self.video)

    def terms(self, losses: VideoLosses, step: int = 0) -> dict[str, torch.Tensor]:
        return losses.generator(
            self.reconstruct(),
            self.video,
            discriminator=self.discriminator,
            last_layer=self.vae.decoder.head[-1].weight,
            step=step,
        )


@pytest.fixture
def game() -> Game:
    return make_game()


def make_game(clips: int = 2) -> Game:
    torch.manual_seed(0)
    vae = tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float()
    discriminator = PatchDiscriminator3D(3, GAN.dim, GAN.layers)
    return Game(vae, discriminator, random_video(5, 16, 16, batch=clips).float())


def verdict(fake: list[float], real: list[float], averages: tuple[float, float]) -> Verdict:
    logits = (torch.tensor(values).view(2, 1, 1, 1, -1) for values in (fake, real))
    return Verdict(*logits, *(torch.tensor(average) for average in averages))


def learn(parameters, loss, steps: int) -> list[float]:
    """Minimize ``loss()``; returns its values."""
    optimizer = torch.optim.Adam(parameters, 2e-3, (0.5, 0.9))
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_hinge_is_a_mean_over_patches_and_clips():
    value = hinge_loss(verdict([-3.0, 0.0, 1.0, -1.0], [2.0, 0.5, -1.0, 1.0], (0, 0)))
    assert value.item() == pytest.approx(0.5 * ((0 + 0.5 + 2 + 0) / 4 + (0 + 1 + 2 + 0) / 4))


def test_lecam_is_the_squared_distance_from_the_other_side():
    value = lecam_penalty(verdict([-3.0, 0.0, 1.0, -1.0], [2.0, 0.5, -1.0, 1.0], (-1.0, 2.0)))
    real = (3**2 + 1.5**2 + 0 + 2**2) / 4
    assert value.item() == pytest.approx(real + (5**2 + 2**2 + 1 + 3**2) / 4)


@pytest.mark.parametrize("patches", [1, 3])
def test_r1_of_a_linear_discriminator_is_half_its_squared_weight(patches):
    real = torch.randn(4, 3, 1, 8, 8, requires_grad=True)
    model = Linear(real.shape[1:], patches)
    penalty = r1_penalty(model(real.detach(), real), real)
    expected = 0.5 * model.weight.square().sum() * patches
    torch.testing.assert_close(penalty, expected)
    (gradient,) = torch.autograd.grad(penalty, model.weight)
    torch.testing.assert_close(gradient, model.weight.detach() * patches)


def test_r1_is_that_of_one_patch_for_any_number_of_them_apart():
    conv = nn.Conv3d(3, 1, (1, 4, 4), (1, 4, 4))
    for size in ((1, 4, 4), (5, 8, 16)):
        real = torch.randn(2, 3, *size, requires_grad=True)
        logits = conv(real)
        penalty = r1_penalty(Verdict(logits[:0], logits, *torch.zeros(2)), real)
        torch.testing.assert_close(penalty, 0.5 * conv.weight.square().sum())


def test_the_loss_of_the_generator_has_the_gradient_of_minus_the_mean_logit(game):
    output = game.reconstruct().video
    loss = generator_loss(game.discriminator, output)
    expected = -game.discriminator(output).fake.mean()
    torch.testing.assert_close(loss, expected)
    parameters = list(game.vae.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))


def test_the_discriminator_gets_no_gradients_from_the_generator(game):
    total(game.terms(VideoLosses(CONFIG, "cpu"))).backward()
    assert all(parameter.grad is None for parameter in game.discriminator.parameters())
    assert all(parameter.grad is not None for parameter in game.vae.decoder.parameters())


def test_no_gradients_reach_the_generator_from_the_discriminator(game):
    output = game.reconstruct().video
    terms, _ = VideoLosses(CONFIG, "cpu").discriminator(game.discriminator, output, game.video, 0)
    total(terms).backward()
    assert all(parameter.grad is None for parameter in game.vae.parameters())
    assert all(parameter.grad is not None for parameter in game.discriminator.parameters())


def test_the_adaptive_weight_is_the_ratio_of_the_norms():
    layer = torch.randn(5, requires_grad=True)
    first, second = torch.randn(2, 5)
    weight = adaptive_weight((layer * first).sum(), (layer * second).sum(), layer)
    torch.testing.assert_close(weight, first.norm() / (second.norm() + SMALLEST_NORM))
    assert not weight.requires_grad
    assert adaptive_weight((layer * 1e9).sum(), (layer * 0).sum(), layer) == 1e4


def test_the_adaptive_weight_makes_gradients_of_one_size(game):
    terms = game.terms(VideoLosses(CONFIG, "cpu"))
    last = game.vae.decoder.head[-1].weight
    norms = {
        name: torch.autograd.grad(terms[name], last, retain_graph=True)[0].norm().item()
        for name in ("l1", "gan")
    }
    assert norms["gan"] == pytest.approx(GAN.weight * norms["l1"], rel=1e-2)
    fixed = replace(CONFIG, gan=replace(GAN, adaptive=False))
    gan = game.terms(VideoLosses(fixed, "cpu"))["gan"]
    expected = -GAN.weight * game.discriminator(game.reconstruct().video).fake.mean()
    torch.testing.assert_close(gan, expected)


def test_nothing_is_adversarial_before_the_start(game):
    losses = VideoLosses(replace(CONFIG, gan=replace(GAN, start_step=3)), "cpu")
    fake = game.reconstruct().video
    for step in range(3):
        assert set(game.terms(losses, step)) == {"l1", "kl"}
        assert losses.discriminator(game.discriminator, fake, game.video, step) == ({}, {})
    assert set(game.terms(losses, 3)) == {"l1", "kl", "gan"}
    terms, figures = losses.discriminator(game.discriminator, fake, game.video, 3)
    assert set(terms) == {"hinge", "r1", "lecam"}
    assert set(figures) == {"real_logit", "fake_logit"}


def test_a_missing_discriminator_is_told(game):
    with pytest.raises(ValueError, match=r"gan.weight is 0.5 and there is no discriminator"):
        VideoLosses(CONFIG, "cpu").generator(
            game.reconstruct(), game.video, discriminator=None, last_layer=game.video, step=0
        )


def test_low_precision_is_reduced_in_float32(game):
    losses = VideoLosses(CONFIG, "cpu")
    output = game.reconstruct()
    low = Reconstruction(output.video.bfloat16(), output.posterior)
    with torch.autocast("cpu", torch.bfloat16):
        last = game.vae.decoder.head[-1].weight
        terms = losses.generator(
            low, game.video, discriminator=game.discriminator, last_layer=last, step=0
        )
        others, figures = losses.discriminator(game.discriminator, low.video, game.video, 0)
    scalars = [*terms.values(), *others.values(), *figures.values()]
    assert {scalar.dtype for scalar in scalars} == {torch.float32}
    for term in (total(terms), total(others)):
        term.backward()
    # In bfloat16 the sum of what these lack, 1 and 2**-8, would be 1.
    logits = verdict([-1.0] * 4, [0.0, 1 - 2**-8, 1.0, 1.0], (0, 0))
    rounded = Verdict(logits.fake.bfloat16(), logits.real.bfloat16(), *torch.zeros(2))
    assert hinge_loss(rounded).item() == 0.5 * (1 + 2**-8) / 4


def teach_discriminator(game: Game, losses: VideoLosses) -> list[float]:
    """Train it alone for some steps; returns its losses."""
    fake = game.reconstruct().video
    return learn(
        game.discriminator.parameters(),
        lambda: total(losses.discriminator(game.discriminator, fake, game.video, 0)[0]),
        30,
    )


def test_a_discriminator_alone_learns_to_tell_them_apart(game):
    values = teach_discriminator(game, VideoLosses(CONFIG, "cpu"))
    assert values[-1] < 0.5 * values[0]
    verdict = game.discriminator(game.reconstruct().video, game.video)
    assert verdict.real.mean() > verdict.fake.mean() + 1


def test_a_generator_learns_to_please_a_fixed_discriminator(game):
    # One that has learnt something: a fresh one says about the same of any video.
    losses = VideoLosses(CONFIG, "cpu")
    teach_discriminator(game, losses)
    before = {name: x.clone() for name, x in game.discriminator.state_dict().items()}
    seen: list[float] = []

    def loss() -> torch.Tensor:
        terms = game.terms(losses)
        seen.append(-game.discriminator(game.reconstruct().video).fake.mean().item())
        return terms["gan"]

    learn(game.vae.parameters(), loss, 30)
    assert seen[-1] < seen[0] - 0.5
    after = game.discriminator.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.parametrize("adaptive", [True, False])
def test_playing_in_turns_keeps_reconstruction_and_verdict_improving(game, adaptive):
    losses = VideoLosses(replace(CONFIG, gan=replace(GAN, weight=0.1, adaptive=adaptive)), "cpu")
    game.vae.train()
    players = [
        torch.optim.Adam(module.parameters(), 3e-3, (0.5, 0.9))
        for module in (game.vae, game.discriminator)
    ]
    history = []
    for step in range(40):
        output = game.reconstruct()
        last = game.vae.decoder.head[-1].weight
        terms = losses.generator(
            output, game.video, discriminator=game.discriminator, last_layer=last, step=step
        )
        others, _ = losses.discriminator(game.discriminator, output.video, game.video, step)
        for player, loss in zip(players, (total(terms), total(others)), strict=True):
            player.zero_grad()
            loss.backward()
            player.step()
        history.append((terms["l1"].item(), others["hinge"].item()))
    assert history[-1][0] < 0.9 * history[0][0]
    assert history[-1][1] < 0.9 * history[0][1]


@pytest.mark.parametrize("frames", [1, 5])
def test_images_and_clips_are_played_on(game, frames):
    game.video = random_video(frames, 8, 24).float()
    losses = VideoLosses(CONFIG, "cpu")
    terms = [game.terms(losses)]
    fake = game.reconstruct().video
    terms.append(losses.discriminator(game.discriminator, fake, game.video, 0)[0])
    for loss in map(total, terms):
        loss.backward()
    for module in (game.vae, game.discriminator):
        assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_processes_have_the_gradients_of_one_with_all_clips(tmp_path):
    one = play(make_game(4), lambda module: module)
    torch.multiprocessing.spawn(play_a_part, (tmp_path,), nprocs=2)
    several = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for values in several:
        assert values.keys() == one.keys()
        for name, value in values.items():
            torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6, msg=name)


def play_a_part(rank: int, folder: Path) -> None:
    """Play on two of the four clips, as process ``rank`` of 2; writes what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    game = make_game(4)
    game.video = game.video[2 * rank : 2 * rank + 2]
    torch.save(play(game, DistributedDataParallel), folder / f"{rank}.pt")
    dist.destroy_process_group()


def play(game: Game, wrap) -> dict[str, torch.Tensor]:
    """Two rounds of plain gradient descent; returns the last gradients and the buffers."""
    losses = VideoLosses(CONFIG, "cpu")
    modules = {"vae": game.vae, "discriminator": game.discriminator}
    last = game.vae.decoder.head[-1].weight
    vae, discriminator = (wrap(module) for module in modules.values())
    optimizers = [torch.optim.SGD(module.parameters(), 1e-2) for module in modules.values()]
    for step in range(2):
        output = vae(game.video)
        terms = losses.generator(
            output, game.video, discriminator=discriminator, last_layer=last, step=step
        )
        others, _ = losses.discriminator(discriminator, output.video, game.video, step)
        for optimizer, loss in zip(optimizers, (total(terms), total(others)), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    result = {}
    for kind, module in modules.items():
        result |= {f"{kind}.{name}": p.grad for name, p in module.named_parameters()}
        result |= {f"{kind}.{name}": buffer for name, buffer in module.named_buffers()}
    return result


def test_a_batch_has_the_mean_of_its_halves(game):
    """Of terms with a weight that does not follow from the batch."""
    config = replace(CONFIG, gan=replace(GAN, adaptive=False))
    losses = VideoLosses(config, "cpu")
    game.discriminator.eval()
    mean, logvar = torch.randn(2, 2, 2, 2, 1, 1)
    fake = -game.video

    def terms(part: slice) -> dict[str, torch.Tensor]:
        output = Reconstruction(fake[part], Posterior(mean[part], logvar[part]))
        video = game.video[part]
        of_generator = losses.generator(
            output, video, discriminator=game.discriminator, last_layer=video, step=0
        )
        return of_generator | losses.discriminator(game.discriminator, fake[part], video, 0)[0]

    whole, halves = terms(slice(0, 2)), (terms(slice(0, 1)), terms(slice(1, 2)))
    for name, term in whole.items():
        torch.testing.assert_close(term, (halves[0][name] + halves[1][name]) / 2)
