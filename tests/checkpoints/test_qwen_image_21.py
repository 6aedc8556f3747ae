"""The VAE of Qwen-Image 2.1 in the layouts of ComfyUI and diffusers, which keep all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers import QWEN21, tiny
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints import formats
from wanvae.checkpoints.architecture import infer_config
from wanvae.checkpoints.diffusers_layout import diffusers_names, read_diffusers_config
from wanvae.checkpoints.formats import Layout
from wanvae.checkpoints.latent_statistics import with_known_statistics
from wanvae.commands.convert import convert
from wanvae.config import QWEN_IMAGE_21
from wanvae.engine.checkpoint import CheckpointError
from wanvae.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen21_tiny.safetensors"
CASE = "case.1x4x1x32x48."
# What the class of diffusers writes besides its sizes.
CONTENT = {
    "_class_name": "AutoencoderKLQwenImage21",
    "attn_scales": [],
    "dropout": 0.0,
    "is_residual": True,
    "patch_size": None,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 8,
}


@pytest.fixture
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture
def directory(tmp_path: Path, golden: dict[str, Tensor]) -> Path:
    """A directory as the class of diffusers writes it."""
    with safe_open(GOLDEN, "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    folder = tmp_path / "vae"
    folder.mkdir()
    weights = {n.removeprefix("weights."): t for n, t in golden.items() if n.startswith("weights.")}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    statistics = {n: golden[n].tolist() for n in ("latents_mean", "latents_std")}
    (folder / "config.json").write_text(json.dumps(CONTENT | sizes | statistics))
    return folder


def assert_decodes_as_golden(vae: WanVAE, golden: dict[str, Tensor]) -> None:
    mean, _ = golden[f"{CASE}moments"].chunk(2, dim=1)
    with torch.no_grad():
        decoded = vae.decode(mean, clamp=False)
        encoded = vae.encode(golden[f"{CASE}video"]).mean
    torch.testing.assert_close(decoded, golden[f"{CASE}decoded"], atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded, mean, atol=1e-4, rtol=0)


def test_a_directory_of_diffusers_gives_the_same_numbers(
    directory: Path, golden: dict[str, Tensor]
) -> None:
    vae = WanVAE.from_pretrained(directory)
    assert formats.load(directory).layout is Layout.QWEN_IMAGE_21
    assert (vae.config.ndim, vae.config.stage_shortcuts, vae.config.patch_size) == (2, True, 1)
    assert (vae.config.spatial_factor, vae.config.temporal_factor) == (16, 1)
    assert vae.config.latents_std == (1.5, 0.5, 2.0, 1.0)
    assert_decodes_as_golden(vae, golden)


def test_all_layouts_keep_every_tensor(directory: Path, golden: dict[str, Tensor]) -> None:
    comfy, native = directory.parent / "comfy.safetensors", directory.parent / "native.safetensors"
    back = directory.parent / "back"
    report = convert(directory, comfy, Layout.WAN)
    assert report.notes == ("not kept in the wan layout: latents_mean, latents_std",)
    # ComfyUI's module is 3D with kernels of time extent 1, also where no result depends on them.
    tensors = load_file(comfy)
    assert tensors["encoder.conv1.weight"].shape == (4, 4, 1, 3, 3)
    assert tensors["decoder.upsamples.0.upsamples.2.time_conv.weight"].shape == (48, 24, 1, 1, 1)
    assert tensors["decoder.middle.1.to_qkv.weight"].dim() == 4
    assert_decodes_as_golden(WanVAE.from_pretrained(comfy), golden)
    convert(directory, native, Layout.NATIVE)
    convert(native, back, Layout.QWEN_IMAGE_21)
    ours = load_file(back / "diffusion_pytorch_model.safetensors")
    theirs = load_file(directory / "diffusion_pytorch_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    content = json.loads((directory / "config.json").read_text())
    assert json.loads((back / "config.json").read_text()) | content == content | {
        "_diffusers_version": "0.35.0"
    }


def test_weights_of_diffusers_without_a_config(directory: Path, golden: dict[str, Tensor]) -> None:
    vae = WanVAE.from_pretrained(directory / "diffusion_pytorch_model.safetensors")
    assert_decodes_as_golden(vae, golden)


def test_a_config_of_diffusers_without_sizes_is_the_published_model() -> None:
    config, _ = read_diffusers_config({"_class_name": "AutoencoderKLQwenImage21"})
    assert config == with_known_statistics(QWEN_IMAGE_21)[0]
    assert config.latents_mean[:2] == (0.5126, 0.7721)
    assert config.latents_std[-1] == 3.8161
    assert (len(config.latents_mean), config.spatial_factor) == (64, 16)


def test_the_published_sizes_are_read_off_the_tensors() -> None:
    with torch.device("meta"):
        tensors = WanVAE(QWEN_IMAGE_21).state_dict()
    assert infer_config(tensors) == QWEN_IMAGE_21
    names = diffusers_names(5, 2, nested=True)
    stored = {names[name] for name in tensors if ".time_conv." in name}
    assert len(stored) == 2 * 6 and "decoder.up_blocks.2.upsampler.time_conv.bias" in stored


def test_what_diffusers_cannot_be_is_refused(tmp_path: Path) -> None:
    for change in ({"ndim": 3}, {"norm": "layer"}):
        vae = tiny(**{**QWEN21, **change})
        (name,) = change
        with pytest.raises(CheckpointError, match=rf"the qwen-image-2\.1 layout has no {name}"):
            formats.save_qwen_image_21(tmp_path / "a", vae.config, vae.state_dict())


# Alpha against patches


def shapes(**config: object) -> dict[str, Tensor]:
    with torch.device("meta"):
        return WanVAE(WanVAEConfig(dim=4, z_dim=2, stage_shortcuts=True, **config)).state_dict()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("channels", "patch_size"), [(3, 1), (3, 2), (4, 2)])
def test_patches_are_told_by_channels(ndim: int, channels: int, patch_size: int) -> None:
    pixels = {"in_channels": channels, "out_channels": channels, "patch_size": patch_size}
    config = infer_config(shapes(ndim=ndim, **pixels))
    assert {name: getattr(config, name) for name in pixels} == pixels
    assert config.ndim == ndim


@pytest.mark.parametrize(("channels", "patch_size"), [(1, 2), (4, 1), (2, 2), (8, 1)])
def test_a_video_model_that_may_have_alpha_or_patches_is_refused(
    channels: int, patch_size: int
) -> None:
    tensors = shapes(in_channels=channels, out_channels=channels, patch_size=patch_size)
    with pytest.raises(UserError, match="may be channels of pixels or of patches of 2x2 pixels"):
        infer_config(tensors)


# In a pipeline


@torch.no_grad()
def test_the_adapter_is_what_the_pipeline_calls(directory: Path, golden: dict[str, Tensor]) -> None:
    pytest.importorskip("diffusers")
    ours = WanVAE.from_pretrained(directory)
    vae = ours.as_diffusers()
    assert (vae.config.z_dim, vae.config.scale_factor_spatial, vae.dtype) == (4, 16, torch.float32)
    # QwenImage21Pipeline: pictures and latents have an axis of one frame.
    mean, std = (
        torch.tensor(vae.config[name]).view(1, vae.config.z_dim, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    latents = (vae.encode(golden[f"{CASE}video"]).latent_dist.mode() - mean) / std
    torch.testing.assert_close(latents, golden[f"{CASE}latents"], atol=1e-4, rtol=0)
    image = vae.decode(latents * std + mean, return_dict=False)[0][:, :, 0]
    expected = golden[f"{CASE}decoded"][:, :, 0].clamp(-1, 1)
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)
    vae.save_pretrained(directory.parent / "again")
    again = formats.load(directory.parent / "again")
    assert again.layout is Layout.QWEN_IMAGE_21
    assert again.config == ours.config
