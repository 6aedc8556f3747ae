"""The discriminator: any size of clip, each patch for itself, and its file."""

import pytest
import torch
import torch.nn.functional as F

from wanvae.engine.checkpoint import load_tensors, read_tensors, write_tensors
from wanvae.train.discriminator import AVERAGE_KEPT, PatchDiscriminator3D


def discriminator(layers: int = 3) -> PatchDiscriminator3D:
    torch.manual_seed(0)
    return PatchDiscriminator3D(3, 4, layers)


def video(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "size", [(1, 8, 8), (1, 4000, 8), (1, 8, 4000), (5, 16, 24), (17, 8, 40), (13, 9, 1)]
)
def test_any_clip_has_logits(layers, size):
    frames, height, width = size
    clip = video(2, 3, *size).requires_grad_()
    logits = discriminator(layers)(clip).fake
    space, time = 2**layers, min(2**layers, 4)
    assert logits.shape == (2, 1, -(-frames // time), -(-height // space), -(-width // space))
    logits.sum().backward()
    assert clip.grad.isfinite().all()


def test_logits_do_not_depend_on_the_rest_of_the_batch():
    model, fake, real = discriminator(), video(3, 3, 5, 16, 16), 5 * video(3, 3, 5, 16, 16)
    together = model(fake, real)
    alone = [model(clip[None]).fake for clip in (*fake, *real)]
    torch.testing.assert_close(torch.cat([together.fake, together.real]), torch.cat(alone))


def test_a_logit_depends_on_its_patch_alone():
    model, clip = discriminator(), video(1, 3, 1, 8, 160).requires_grad_()
    (gradient,) = torch.autograd.grad(model(clip).fake[0, 0, 0, 0, 10], clip)
    (columns,) = gradient.abs().sum((0, 1, 2, 3)).nonzero(as_tuple=True)
    # 54 pixels around the 8 of this logit, as the config says.
    assert (columns.min().item(), columns.max().item()) == (84 - 27, 84 + 26)


def test_verdicts_without_originals_have_no_real_logits():
    verdict = discriminator()(video(2, 3, 1, 8, 8))
    assert len(verdict.fake) == 2
    assert len(verdict.real) == 0


def test_averages_move_towards_the_logits_while_training_on_both():
    model, fake, real = discriminator(), video(2, 3, 5, 16, 16), 3 * video(2, 3, 5, 16, 16)
    verdict = model(fake, real)
    for average, logits in (
        (verdict.fake_average, verdict.fake),
        (verdict.real_average, verdict.real),
    ):
        torch.testing.assert_close(average, (1 - AVERAGE_KEPT) * logits.mean())
        assert not average.requires_grad
    model(fake)
    model.eval()(fake, real)
    assert torch.equal(model.fake_average, verdict.fake_average)
    assert torch.equal(model.real_average, verdict.real_average)


def test_its_file_keeps_weights_and_averages(tmp_path):
    model, clip = discriminator(), video(1, 3, 5, 16, 16)
    model(clip, -clip)
    path = tmp_path / "discriminator.safetensors"
    write_tensors(path, model.state_dict(), {})
    again = PatchDiscriminator3D(3, 4, 3)
    load_tensors(again, read_tensors(path).tensors, path)
    before, after = model.eval()(clip, -clip), again.eval()(clip, -clip)
    torch.testing.assert_close(after.fake, before.fake)
    assert after.real_average != 0
    assert torch.equal(after.real_average, before.real_average)
    assert torch.equal(after.fake_average, before.fake_average)


@pytest.mark.parametrize("size", [(1, 7, 9), (4, 8, 8), (6, 9, 15)])
def test_edges_are_repeated_to_whole_patches(size: tuple[int, int, int]) -> None:
    discriminator = PatchDiscriminator3D(3, 4, layers=3)
    clip = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    time, space = discriminator.factors
    frames, height, width = size
    padding = (0, -width % space, 0, -height % space, -frames % time, 0)
    filled, expected = discriminator.fill_patches(clip), F.pad(clip, padding, mode="replicate")
    assert torch.equal(filled, expected)
    weights = torch.randn_like(filled)
    found, wanted = (torch.autograd.grad((y * weights).sum(), clip) for y in (filled, expected))
    torch.testing.assert_close(found, wanted)
