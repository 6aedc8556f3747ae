"""A tiny autoencoder as the VAE of a diffusers pipeline.

``tests/test_diffusers_pipelines.py`` runs it in every pipeline.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from tests.helpers import random_video, tiny_autoencoder
from wanvae import TinyVAE
from wanvae.errors import UserError

pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing it and its dependencies says is not ours
    diffusers = pytest.importorskip("diffusers")
    from diffusers import (
        AutoencoderKLQwenImage,
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanVideoToVideoPipeline,
    )

Z_DIM = 16
VIDEO = random_video(9, 32, 48).float()
LATENTS = torch.randn(1, Z_DIM, 3, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny() -> TinyVAE:
    return tiny_autoencoder(z_dim=Z_DIM).float()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What diffusers warns of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="the VAE ")
        yield


def decoded(vae: nn.Module, latents: Tensor = LATENTS) -> Tensor:
    with torch.no_grad():
        return vae.decode(latents, return_dict=False)[0]


def test_it_gives_what_the_tiny_autoencoder_gives(tiny: TinyVAE) -> None:
    vae = tiny.as_diffusers()
    assert type(vae) is AutoencoderKLWan
    assert torch.equal(decoded(vae), tiny.decode(LATENTS))
    assert torch.equal(vae.encode(VIDEO).latent_dist.mode(), tiny.encode(VIDEO).mode())
    sample = vae.encode(VIDEO, return_dict=False)[0].sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample, tiny.encode(VIDEO).mode(), atol=1e-5, rtol=0)
    assert vae(VIDEO).sample.shape == VIDEO.shape


@pytest.mark.parametrize("patch_size", [1, 2])
def test_its_config_tells_latents_and_factors(patch_size: int) -> None:
    tiny = tiny_autoencoder(z_dim=Z_DIM, patch_size=patch_size)
    vae = tiny.as_diffusers()
    assert vae.config.z_dim == vae.z_dim == Z_DIM
    assert tuple(vae.config.latents_mean) == tiny.config.latents_mean
    assert tuple(vae.config.latents_std) == tiny.config.latents_std
    assert vae.config.scale_factor_temporal == 2 ** sum(vae.temperal_downsample) == 4
    assert vae.config.scale_factor_spatial == vae.spatial_compression_ratio == 8 * patch_size


def test_a_pipeline_previews_with_it(tiny: TinyVAE) -> None:
    empty = {"tokenizer": None, "text_encoder": None, "transformer": None}
    pipeline = WanPipeline(vae=tiny.as_diffusers(), scheduler=UniPCMultistepScheduler(), **empty)
    assert WanVideoToVideoPipeline.from_pipe(pipeline).vae is pipeline.vae
    pipeline.to(torch.bfloat16)
    assert tiny.decode_dtype == pipeline.vae.dtype == torch.bfloat16
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(decoded(pipeline.vae), tiny.decode(LATENTS))
    frames = pipeline.video_processor.postprocess_video(decoded(pipeline.vae), output_type="np")
    assert frames.shape == (1, 9, 32, 48, 3)


def test_tiles_slices_and_other_lengths(tiny: TinyVAE) -> None:
    vae, latents = tiny.as_diffusers(), torch.cat([LATENTS, LATENTS + 1])
    expected = decoded(vae, latents)
    vae.enable_slicing()
    for limits in ({"tile_sample_min_height": 16}, {"max_memory": "250MB"}):
        vae.enable_tiling(**limits)
        torch.testing.assert_close(decoded(vae, latents), expected, atol=1e-4, rtol=0)
    with pytest.warns(UserWarning, match="drops the last 2 of 7"):
        moments = vae.encode(VIDEO[:, :, :7]).latent_dist.mode()
    torch.testing.assert_close(moments, tiny.encode(VIDEO[:, :, :5]).mode(), atol=1e-4, rtol=0)


def test_its_parameters_are_those_of_the_tiny_autoencoder(tiny: TinyVAE) -> None:
    vae, other = tiny.as_diffusers(), tiny_autoencoder(z_dim=Z_DIM, blocks=2).float()
    pointers = {parameter.data_ptr() for parameter in tiny.parameters()}
    assert {parameter.data_ptr() for parameter in vae.parameters()} == pointers
    assert vae.state_dict().keys() == tiny.state_dict().keys()
    for parameter in other.parameters():
        parameter.data *= 1.1
    vae.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(tiny.decode(LATENTS), other.decode(LATENTS))
    assert torch.equal(decoded(vae), other.decode(LATENTS))


def test_nothing_is_saved_that_diffusers_could_not_load(tiny: TinyVAE, tmp_path) -> None:
    vae = tiny.as_diffusers()
    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=None,
        vae=vae,
        scheduler=UniPCMultistepScheduler(),
    )
    for save in (vae.save_pretrained, pipeline.save_pretrained):
        with pytest.raises(UserError, match=r"no class for a tiny autoencoder.*of the TinyVAE"):
            save(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("copied", [deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_copies_stand_alone(copied: Callable[[nn.Module], nn.Module], tiny: TinyVAE) -> None:
    vae = tiny.as_diffusers()
    copy, expected = copied(vae), decoded(vae)
    assert torch.equal(decoded(copy), expected)
    copy.decoder[-1].bias.data += 1
    assert torch.equal(decoded(vae), expected)
    assert not torch.equal(decoded(copy), expected)


def replace_a_layer(vae: nn.Module) -> None:
    vae.decoder[1] = nn.Identity()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda vae: cpu_offload(vae, torch.device("cpu")), "has a hook"),
        (
            lambda vae: vae.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
            "has a hook",
        ),
        (replace_a_layer, "decoder.1 was replaced"),
        (lambda vae: vae.to(torch.float8_e4m3fn), "not plain tensors of a float dtype"),
    ],
    ids=["sequential offload", "group offload", "replaced", "float8"],
)
def test_what_it_cannot_do_is_an_error(
    change: Callable[[nn.Module], object], match: str, tiny: TinyVAE
) -> None:
    vae = tiny.as_diffusers()
    change(vae)
    with pytest.raises(UserError, match=f"{match}; it is small, so leave it whole"):
        decoded(vae)


def test_layerwise_casting_leaves_it_as_it_is(tiny: TinyVAE) -> None:
    vae = tiny.as_diffusers()
    vae.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert torch.equal(decoded(vae), tiny.decode(LATENTS))


def test_gradients_are_refused(tiny: TinyVAE) -> None:
    vae = tiny.as_diffusers()
    assert not vae.decode(LATENTS).sample.requires_grad
    with pytest.raises(UserError, match="keeps no gradients"):
        vae.decode(LATENTS.clone().requires_grad_())
    with pytest.raises(UserError, match="keeps no gradients"):
        vae.encode(VIDEO.clone().requires_grad_())


@pytest.mark.slow  # compiles
def test_torch_compile_leaves_it_as_it_is(tiny: TinyVAE) -> None:
    vae = tiny.as_diffusers()
    with torch.no_grad():
        compiled = torch.compile(vae.decode, backend="eager")
        assert torch.equal(compiled(LATENTS).sample, tiny.decode(LATENTS))


def test_a_decoder_alone_cannot_encode() -> None:
    tiny = tiny_autoencoder(z_dim=Z_DIM, encoder_dim=None).float()
    vae = tiny.as_diffusers("AutoencoderKLQwenImage")
    assert type(vae) is AutoencoderKLQwenImage
    assert torch.equal(decoded(vae), tiny.decode(LATENTS))
    with pytest.raises(UserError, match="has no encoder"):
        vae.encode(VIDEO)


@pytest.mark.parametrize(
    ("changes", "class_name", "match"),
    [
        ({"patch_size": 2}, "AutoencoderKLQwenImage", "QwenImage of diffusers has no patch_size"),
        ({}, "AutoencoderKLQwenImage21", "QwenImage21 of diffusers has no ndim 3"),
        ({}, "AutoencoderTiny", "class_name must be AutoencoderKLWan or"),
        ({"patch_size": 3}, "AutoencoderKLWan", "no VAE of diffusers has latents of 4 .* 24 pix"),
    ],
)
def test_other_latents_are_refused(changes: dict, class_name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        tiny_autoencoder(**changes).as_diffusers(class_name)
