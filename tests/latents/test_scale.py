"""Raw or normalized: measured where the values tell it, refused where they do not."""

import pytest
import torch
from torch import Tensor

from tests.latents.caches import natural, raw
from wanvae.checkpoints.latent_statistics import WAN21_MEAN, WAN21_STD, WAN22_MEAN, WAN22_STD
from wanvae.errors import UserError
from wanvae.latents.scale import choose_scale, find_scale, measure

MODELS = {"wan2.1": (WAN21_MEAN, WAN21_STD), "wan2.2": (WAN22_MEAN, WAN22_STD)}


@pytest.mark.parametrize("contrast", [0.7, 1.0, 1.2])
@pytest.mark.parametrize("model", MODELS)
def test_the_values_tell_the_scale(model: str, contrast: float) -> None:
    statistics = MODELS[model]
    latents = contrast * natural(len(statistics[0]))
    assert find_scale(measure([latents]), *statistics) in ("normalized", None)
    assert find_scale(measure([raw(latents, *statistics)]), *statistics) in ("raw", None)
    if model == "wan2.1":
        assert find_scale(measure([latents]), *statistics) == "normalized"
        assert find_scale(measure([raw(latents, *statistics)]), *statistics) == "raw"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("model", MODELS)
def test_no_contrast_gives_the_wrong_scale(model: str, seed: int) -> None:
    """A clip of little or much contrast may not tell its scale, but does not tell a wrong one."""
    statistics = MODELS[model]
    generator = torch.Generator().manual_seed(seed)
    channels = len(statistics[0])
    base = torch.randn(channels, 2, 8, 8, generator=generator)
    offsets = 0.5 * torch.randn(channels, 1, 1, 1, generator=generator)
    ripple = torch.exp(0.25 * torch.randn(channels, 1, 1, 1, generator=generator))
    for contrast in (0.1, 0.3, 0.5, 0.8, 1.2, 1.6, 2.0, 2.5):
        latents = contrast * ripple * base + offsets
        assert find_scale(measure([latents]), *statistics) != "raw"
        assert find_scale(measure([raw(latents, *statistics)]), *statistics) != "normalized"


def test_pieces_are_measured_as_a_whole() -> None:
    latents = natural().double()
    whole, pieces = measure([latents]), measure(latents.split(1, dim=1))
    assert whole.positions == pieces.positions == 3 * 64
    torch.testing.assert_close(pieces.mean, latents.flatten(1).mean(1))
    torch.testing.assert_close(pieces.std, latents.flatten(1).std(1, unbiased=False))


@pytest.mark.parametrize(
    ("latents", "reason"),
    [
        (torch.zeros(16, 3, 8, 8), r"means 0 to 0 and deviations 0 to 0; normalized"),
        (natural()[:, :1, :3, :4], "of only 12 positions"),
        (30 * natural(), "deviation 1, raw latents of this model means -0.95 to 1.6"),
        (0.05 * natural(), "do not tell whether they are raw or normalized"),
    ],
)
def test_values_that_fit_neither_are_refused(latents: Tensor, reason: str) -> None:
    """A picture of one colour, few positions, and latents of another model."""
    with pytest.raises(UserError, match=reason) as error:
        choose_scale(None, "ComfyUI", [latents], WAN21_MEAN, WAN21_STD, "--scale {}")
    assert str(error.value).endswith("say --scale raw or --scale normalized")


def test_values_that_contradict_the_program_are_refused() -> None:
    latents = raw(natural(), WAN21_MEAN, WAN21_STD)
    with pytest.raises(
        UserError, match=r"musubi-tuner stores normalized .* values look raw \(mean"
    ):
        choose_scale("normalized", "musubi-tuner", [latents], WAN21_MEAN, WAN21_STD, "--scale {}")
    with pytest.raises(UserError, match=r"FastVideo stores raw latents, .* look normalized"):
        choose_scale("raw", "FastVideo", [natural()], WAN21_MEAN, WAN21_STD, "--scale {}")


def test_values_that_no_scale_has_are_refused_whoever_stores_them() -> None:
    statistics = (WAN21_MEAN, WAN21_STD, "--scale {}")
    with pytest.raises(UserError, match="do not tell whether they are raw or normalized"):
        choose_scale("normalized", "musubi-tuner", [1000 * natural()], *statistics)
    with pytest.raises(UserError, match="not finite"):
        choose_scale(None, "ComfyUI", [natural() / 0], *statistics)


def test_what_a_program_stores_counts_where_the_values_do_not_tell() -> None:
    choice = choose_scale(
        "normalized",
        "musubi-tuner",
        [torch.zeros(16, 1, 2, 2)],
        WAN21_MEAN,
        WAN21_STD,
        "--scale {}",
    )
    assert (
        choice.scale == "normalized" and choice.reason == "normalized, as musubi-tuner stores them"
    )


def test_a_model_without_statistics_has_one_scale() -> None:
    """Then raw and normalized are the same, and there is nothing to say."""
    for mean, std in (((), ()), (16 * (0.0,), 16 * (1.0,))):
        choice = choose_scale(None, "ComfyUI", [], mean, std, "--scale {}")
        assert choice.reason == ""
