"""``LatentDataset`` of caches of other programs: normalized latents, and what is said of them."""

import pickle
from math import isnan
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from tests.helpers import tiny
from tests.latents.caches import (
    PROGRAMS,
    Write,
    ai_toolkit,
    comfyui,
    diffusion_pipe,
    musubi,
    natural,
    plain_safetensors,
    raw,
    simpletuner,
)
from wanvae import LatentDataset, WanVAEConfig
from wanvae.checkpoints.latent_statistics import WAN21_MEAN, WAN21_STD
from wanvae.errors import UserError

NORMALIZED = natural()
RAW = raw(NORMALIZED, WAN21_MEAN, WAN21_STD)


@pytest.mark.parametrize("write", PROGRAMS)
def test_latents_are_normalized(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, RAW if PROGRAMS[write] == "raw" else NORMALIZED)
    dataset = LatentDataset(tmp_path)
    assert len(dataset) == 1 and dataset.settings is None
    assert dataset.clips[0].shape == (16, 3, 8, 8)
    clip = dataset[0]
    assert clip.latents.dtype is torch.float32 and isnan(clip.fps)
    assert clip.source == dataset.clips[0].name
    assert (clip.latents - NORMALIZED).abs().max() < 2**-5
    assert "taken as latents of Wan2.1, because they have 16 channels; config= names" in caplog.text
    reason = f"{PROGRAMS[write]}, as {dataset.clips[0].program} stores them"
    assert (reason if PROGRAMS[write] else "normalized, as their values tell (") in caplog.text


@pytest.mark.parametrize("write", [comfyui, plain_safetensors])
def test_the_values_tell_raw_latents(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """Kijai's nodes save normalized latents, and the nodes of ComfyUI itself save raw latents."""
    write(tmp_path, RAW)
    assert (LatentDataset(tmp_path)[0].latents - NORMALIZED).abs().max() < 1e-4
    assert "its latents are raw, as their values tell (means " in caplog.text


def test_a_scale_that_is_forced_counts(tmp_path: Path) -> None:
    write = comfyui(tmp_path, RAW)
    assert torch.equal(LatentDataset(tmp_path, scale="normalized")[0].latents, RAW)
    assert (LatentDataset(write, scale="raw")[0].latents - NORMALIZED).abs().max() < 1e-4


def test_values_that_contradict_the_program_are_refused(tmp_path: Path) -> None:
    musubi(tmp_path, RAW)
    with pytest.raises(
        UserError, match=r"musubi-tuner stores normalized .* look raw .* scale=\"raw\""
    ):
        LatentDataset(tmp_path)
    assert (LatentDataset(tmp_path, scale="raw")[0].latents - NORMALIZED).abs().max() < 2**-5


def test_values_that_fit_neither_are_refused(tmp_path: Path) -> None:
    comfyui(tmp_path, torch.zeros(16, 3, 8, 8))
    with pytest.raises(
        UserError, match=r"do not tell whether .* raw or .* say scale=\"raw\" or scale="
    ):
        LatentDataset(tmp_path)


@pytest.mark.parametrize("others", [16, 40])
def test_one_clip_of_the_other_scale_is_told(tmp_path: Path, others: int) -> None:
    """Of many clips only some are looked at before they are read."""
    for number in range(others):
        save_file({"latents": NORMALIZED}, tmp_path / f"a{number:02}.safetensors")
    save_file({"latents": RAW}, tmp_path / "a01.safetensors")
    with pytest.raises(UserError, match=r"latents of a01 look raw, others .* are normalized"):
        [LatentDataset(tmp_path)[number] for number in range(others)]
    assert torch.equal(LatentDataset(tmp_path, scale="normalized")[1].latents, RAW)


def test_a_model_may_be_named(tmp_path: Path) -> None:
    config = tiny(z_dim=4, latents_mean=4 * (1.0,), latents_std=4 * (2.0,)).config
    latents = natural(4)
    comfyui(tmp_path, 2 * latents + 1)
    dataset = LatentDataset(tmp_path, scale="raw", config=config)
    torch.testing.assert_close(dataset[0].latents, latents)
    with pytest.raises(
        UserError, match=r"has latents of 4 channels \(4 channels are latents of Stable"
    ):
        LatentDataset(tmp_path)
    with pytest.raises(UserError, match=r"4 channels, but this model has 16 .*Stable Diffusion"):
        LatentDataset(tmp_path, config=WanVAEConfig())


def test_a_model_without_statistics_has_one_scale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    comfyui(tmp_path, NORMALIZED)
    dataset = LatentDataset(tmp_path, config=WanVAEConfig())
    assert torch.equal(dataset[0].latents, NORMALIZED) and caplog.text == ""


def test_several_programs_in_one_folder(tmp_path: Path) -> None:
    for number, write in enumerate((musubi, ai_toolkit, simpletuner, diffusion_pipe)):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number), NORMALIZED)
    comfyui(tmp_path, RAW)
    dataset = LatentDataset(tmp_path)
    assert len({clip.name for clip in dataset.clips}) == len(dataset) == 5
    assert all((clip.latents - NORMALIZED).abs().max() < 2**-5 for clip in dataset)


def test_folders_of_different_models_are_refused(tmp_path: Path) -> None:
    comfyui(tmp_path, NORMALIZED)
    (tmp_path / "other").mkdir()
    comfyui(tmp_path / "other", natural(48))
    with pytest.raises(UserError, match="has latents of 16 and 48 channels"):
        LatentDataset(tmp_path)


def test_workers_load_batches(tmp_path: Path) -> None:
    diffusion_pipe(tmp_path, NORMALIZED, NORMALIZED)
    dataset = LatentDataset(tmp_path)
    assert len(pickle.dumps(dataset)) < 10_000
    (batch,) = DataLoader(dataset, batch_size=2, num_workers=1)
    assert (batch.latents - NORMALIZED).abs().max() < 2**-5


def test_latents_that_are_not_finite(tmp_path: Path) -> None:
    latents = RAW.clone()
    latents[0, 0, 0, 0] = float("nan")
    comfyui(tmp_path, latents)
    with pytest.raises(UserError, match="are not finite"):
        LatentDataset(tmp_path, scale="raw")[0]


def test_what_only_our_data_sets_have(tmp_path: Path) -> None:
    comfyui(tmp_path, NORMALIZED)
    with pytest.raises(UserError, match="store no distribution of the latents: leave out sample"):
        LatentDataset(tmp_path, sample=True)
