"""Real diffusers pipelines with tiny random transformers, around our VAE and around theirs.

No text encoder is needed, for the prompts are given as embeddings.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.helpers import random_video, randomize, tiny
from wanvae import WanVAE
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert

pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing it and its dependencies says is not ours
    diffusers = pytest.importorskip("diffusers")
    from diffusers import (
        AutoencoderKLQwenImage,
        AutoencoderKLWan,
        DiffusionPipeline,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
        WanVideoToVideoPipeline,
    )
    from diffusers.utils import BaseOutput

MEAN = (0.1, -0.2, 0.3, 0.4)
STD = (0.5, 1.5, 2.0, 0.7)
CHANNELS = 4
TEXT = 16
# Both VAEs compute in float32, in another order.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def ours() -> WanVAE:
    return tiny(z_dim=CHANNELS, latents_mean=MEAN, latents_std=STD).float()


@pytest.fixture(scope="module")
def directory(ours: WanVAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights for diffusers, written by our converter."""
    folder = tmp_path_factory.mktemp("diffusers")
    ours.save_pretrained(folder / "native.safetensors")
    convert(folder / "native.safetensors", folder / "vae", Layout.DIFFUSERS)
    return folder / "vae"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What diffusers warns of is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def wan_transformer(in_channels: int) -> nn.Module:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=CHANNELS,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    ).eval()


def text(batch: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    names = ("prompt_embeds", "negative_prompt_embeds")
    return {name: torch.randn(batch, 8, TEXT, generator=generator) for name in names}


def wan_pipeline(
    vae: nn.Module, kind: type[DiffusionPipeline] = WanPipeline, channels: int = CHANNELS
) -> DiffusionPipeline:
    """A pipeline whose transformer reads so many channels."""
    return kind(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=UniPCMultistepScheduler(flow_shift=3.0),
        transformer=wan_transformer(channels),
    )


def wan_video(vae: nn.Module) -> Tensor:
    return run_wan(wan_pipeline(vae), 32, 48)


def run_wan(pipeline: WanPipeline, height: int, width: int) -> Tensor:
    return generated(pipeline, height, width, num_frames=9, guidance_scale=2.0).frames


def image_to_video(vae: nn.Module) -> Tensor:
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(4))
    pipeline = wan_pipeline(vae, WanImageToVideoPipeline, 2 * CHANNELS + 4)
    return generated(pipeline, image=image, num_frames=9, guidance_scale=2.0).frames


def video_to_video(vae: nn.Module) -> Tensor:
    video = [Image.new("RGB", (48, 32), (40 * shade, 90, 200)) for shade in range(5)]
    pipeline = wan_pipeline(vae, WanVideoToVideoPipeline)
    return generated(pipeline, steps=4, video=video, strength=0.5, guidance_scale=2.0).frames


def generated(
    pipeline: DiffusionPipeline,
    height: int = 32,
    width: int = 48,
    steps: int = 2,
    **inputs: object,
) -> BaseOutput:
    """What a pipeline makes of the same text and noise."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        **text(),
        **inputs,
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    )


def qwen_image(vae: nn.Module) -> Tensor:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_image_seq_len=256, max_image_seq_len=8192, use_dynamic_shifting=True
        ),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    mask = torch.ones(1, 8, dtype=torch.long)
    masks = {"prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask}
    return generated(pipeline, true_cfg_scale=2.0, **masks).images


def largest_difference(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape and expected.std() > 0.01
    return (result - expected).abs().max().item()


@pytest.mark.parametrize("generate", [wan_video, image_to_video, video_to_video])
def test_wan_pipelines_give_the_same_video(
    generate: Callable[[nn.Module], Tensor], ours: WanVAE, directory: Path
) -> None:
    expected = generate(AutoencoderKLWan.from_pretrained(directory))
    assert expected.shape[0] == 1 and expected.shape[2:] == (3, 32, 48)
    assert largest_difference(generate(ours.as_diffusers()), expected) < CLOSE


def test_qwen_image_gives_the_same_image(tmp_path: Path) -> None:
    theirs = AutoencoderKLQwenImage(
        base_dim=4, z_dim=CHANNELS, num_res_blocks=1, latents_mean=[*MEAN], latents_std=[*STD]
    ).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    expected = qwen_image(theirs)
    assert expected.shape == (1, 3, 32, 48)
    vae = WanVAE.from_pretrained(tmp_path).as_diffusers()
    assert largest_difference(qwen_image(vae), expected) < CLOSE


def test_a_whole_pipeline_moves_is_offloaded_and_tiled(ours: WanVAE) -> None:
    vae = ours.as_diffusers()
    pipeline = wan_pipeline(vae)
    expected = run_wan(pipeline, 64, 64)
    pipeline.to(torch.float32).to("cpu")
    pipeline.vae.enable_tiling(16, 32)
    pipeline.vae.enable_slicing()
    pipeline.enable_model_cpu_offload(device="cpu")
    assert largest_difference(run_wan(pipeline, 64, 64), expected) < 1e-5


def test_pipelines_load_and_save_our_vae(ours: WanVAE, directory: Path, tmp_path: Path) -> None:
    vae, none = ours.as_diffusers(), {"tokenizer": None, "text_encoder": None}
    wan_pipeline(AutoencoderKLWan.from_pretrained(directory)).save_pretrained(tmp_path / "theirs")
    pipeline = WanPipeline.from_pretrained(tmp_path / "theirs", vae=vae, **none)
    assert pipeline.vae is vae
    pipeline.save_pretrained(tmp_path / "ours")
    assert WanPipeline.from_pretrained(tmp_path / "ours", vae=vae, **none).vae is vae
    with pytest.raises(ValueError, match=r"pass vae=vae\.as_diffusers\(\)"):
        WanPipeline.from_pretrained(tmp_path / "ours", **none)
    again = AutoencoderKLWan.from_pretrained(tmp_path / "ours" / "vae").state_dict()
    expected = AutoencoderKLWan.from_pretrained(directory).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_the_interface_is_that_of_diffusers(ours: WanVAE, directory: Path) -> None:
    theirs, vae = AutoencoderKLWan.from_pretrained(directory), ours.as_diffusers()
    expected = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    assert {k: [*v] if isinstance(v, tuple) else v for k, v in vae.config.items()} == expected
    for name in ("z_dim", "temperal_downsample", "temperal_upsample", "spatial_compression_ratio"):
        assert getattr(vae, name) == getattr(theirs, name)
    assert (vae.dtype, vae.device) == (theirs.dtype, theirs.device)
    video = random_video(5, batch=2).float()
    with torch.no_grad():
        for sample in (True, False):
            results = [v(video, sample, generator=seeded()).sample for v in (vae, theirs)]
            assert largest_difference(*results) < CLOSE
        pairs = zip(*(distribution_of(v, video) for v in (vae, theirs)), strict=True)
    assert all(largest_difference(*pair) < CLOSE for pair in pairs)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def distribution_of(vae: nn.Module, video: Tensor) -> tuple[Tensor, ...]:
    distribution = vae.encode(video).latent_dist
    (again,) = vae.encode(video, return_dict=False)
    sample = distribution.sample(seeded())
    return distribution.mean, distribution.mode(), sample, again.std, vae.decode(sample)[0]


def test_tiling_and_slicing_leave_the_result(ours: WanVAE) -> None:
    vae, video = ours.as_diffusers(), random_video(5, 64, 64, batch=2).float()
    latents = vae.encode(video).latent_dist.mode()
    expected = vae.decode(latents).sample
    vae.enable_slicing()
    for limits in ({"tile_sample_min_height": 16}, {"max_memory": "250MB"}):
        vae.enable_tiling(**limits)
        assert vae.use_tiling
        assert largest_difference(vae.encode(video).latent_dist.mode(), latents) < CLOSE
        assert largest_difference(vae.decode(latents).sample, expected) < CLOSE
    with pytest.raises(ValueError, match=r"not \(20, 256\)"):
        vae.enable_tiling(20)
        vae.decode(latents)
    vae.disable_tiling()
    vae.disable_slicing()
    assert torch.equal(vae.decode(latents).sample, expected)


def test_pipelines_convert_to_the_wider_dtype() -> None:
    vae = tiny()
    vae.encoder.float()
    vae.conv1.float()
    for module in (vae.decoder, vae.conv2):
        module.to(torch.bfloat16)
    assert vae.as_diffusers().dtype == torch.float32


def test_encode_and_decode_call_what_offloads_them() -> None:
    vae, calls = tiny().as_diffusers(), []
    vae._hf_hook = SimpleNamespace(pre_forward=calls.append)
    vae.decode(vae.encode(random_video(1)).latent_dist.mode())
    assert calls == [vae, vae]


def test_offloading_layer_by_layer_is_refused() -> None:
    vae = tiny().to("meta").as_diffusers()
    with pytest.raises(ValueError, match="use enable_model_cpu_offload"):
        vae.decode(torch.zeros(1, 2, 1, 2, 2))
    with pytest.raises(ValueError, match="does not support group offloading"):
        vae.enable_group_offload(onload_device=torch.device("cpu"))


def test_everything_else_works_without_diffusers() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from wanvae import WanVAE, WanVAEConfig\n"
        "vae = WanVAE(WanVAEConfig(dim=2, z_dim=2))\n"
        "try: vae.as_diffusers()\n"
        "except ImportError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output == "as_diffusers needs diffusers: run pip install diffusers\n"
