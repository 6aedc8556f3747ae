"""Real diffusers pipelines with tiny random transformers, around our VAE and around theirs.

No text encoder is needed, for the prompts are given as embeddings.
"""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from PIL import Image
from torch import Tensor, nn

from tests.helpers import QWEN21, WAN22, random_video, randomize, tiny
from wanvae import WanVAE
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert
from wanvae.errors import UserError

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
        warnings.filterwarnings("error", message="the VAE ")
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
    again = WanPipeline.from_pretrained(tmp_path / "ours", **none).vae
    assert type(again) is AutoencoderKLWan
    assert_same_tensors(again, AutoencoderKLWan.from_pretrained(directory))


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
    vae.requires_grad_(False)
    latents = vae.encode(video).latent_dist.mode()
    expected = vae.decode(latents).sample
    vae.enable_slicing()
    for limits in ({"tile_sample_min_height": 16}, {"max_memory": "250MB"}):
        vae.enable_tiling(**limits)
        assert vae.use_tiling
        assert largest_difference(vae.encode(video).latent_dist.mode(), latents) < CLOSE
        assert largest_difference(vae.decode(latents).sample, expected) < CLOSE
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


def assert_same_tensors(first: nn.Module, second: nn.Module) -> None:
    tensors, expected = first.state_dict(), second.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def twins(**changes: object) -> tuple[WanVAE, nn.Module]:
    """A model, and a VAE of diffusers with copies of its parameters."""
    vae = tiny(z_dim=CHANNELS, **changes).float()
    theirs = type(vae.as_diffusers()).from_config(vae.as_diffusers().config).eval()
    theirs.load_state_dict(vae.as_diffusers().state_dict())
    return vae, theirs


@torch.no_grad()
def round_trip(vae: nn.Module, video: Tensor) -> Tensor:
    return vae(video).sample


VIDEO = random_video(5, 16, 24).float()


@pytest.mark.parametrize("changes", [{}, WAN22, {"in_channels": 4, "out_channels": 4}])
@pytest.mark.parametrize(
    "options",
    [{}, {"variant": "fp16"}, {"max_shard_size": "20KB"}, {"safe_serialization": False}],
    ids=["plain", "variant", "shards", "pickle"],
)
def test_it_is_saved_and_loaded_by_diffusers(changes: dict, options: dict, tmp_path: Path) -> None:
    vae = tiny(z_dim=CHANNELS, latents_mean=MEAN, **changes).float().as_diffusers()
    vae.save_pretrained(tmp_path / "vae", **options)
    names = [path.name for path in (tmp_path / "vae").iterdir()]
    assert any("index" in name for name in names) == ("max_shard_size" in options)
    again = type(vae).from_pretrained(tmp_path / "vae", variant=options.get("variant"))
    assert_same_tensors(again, vae)
    assert again.config.latents_mean == list(MEAN)
    both = WanVAE.from_pretrained(tmp_path / "vae") if "safe_serialization" not in options else None
    channels = changes.get("in_channels", 3)
    video = torch.randn(1, channels, 5, 32, 32, generator=seeded())
    expected = round_trip(again, video)
    assert largest_difference(round_trip(vae, video), expected) < CLOSE
    if both is not None:
        assert largest_difference(round_trip(both.as_diffusers(), video), expected) < CLOSE


@pytest.mark.parametrize("class_name", ["AutoencoderKLWan", "AutoencoderKLQwenImage"])
def test_it_has_exactly_the_class_and_names_of_diffusers(class_name: str) -> None:
    vae = tiny(z_dim=CHANNELS).float()
    adapter = vae.as_diffusers(class_name)
    assert type(adapter) is getattr(diffusers, class_name)
    plain = type(adapter).from_config(adapter.config)
    assert type(plain) is type(adapter) and plain.config == adapter.config
    assert plain.state_dict().keys() == adapter.state_dict().keys()
    assert {p.data_ptr() for p in adapter.parameters()} == {p.data_ptr() for p in vae.parameters()}
    adapter.clear_cache()
    assert adapter.tile_sample_min_height == plain.tile_sample_min_height == 256
    plain.eval().load_state_dict(adapter.state_dict())
    assert largest_difference(round_trip(adapter, VIDEO), round_trip(plain, VIDEO)) < CLOSE
    with torch.no_grad():
        assert largest_difference(adapter._encode(VIDEO), plain._encode(VIDEO)) < CLOSE


def test_a_checkpoint_of_qwen_image_keeps_its_class(tmp_path: Path) -> None:
    tiny(z_dim=CHANNELS).as_diffusers("AutoencoderKLQwenImage").save_pretrained(tmp_path)
    assert type(WanVAE.from_pretrained(tmp_path).as_diffusers()) is AutoencoderKLQwenImage


@pytest.mark.parametrize(
    ("changes", "class_name", "match"),
    [
        ({"norm": "layer"}, None, "AutoencoderKLWan of diffusers has no norm 'layer', only 'rms'"),
        ({"attn_scales": (0.5,)}, None, "no attn_scales"),
        ({"half": "decoder"}, None, "has no half 'decoder'; encode and decode with"),
        (WAN22, "AutoencoderKLQwenImage", "QwenImage of diffusers has no patch_size 2"),
        ({}, "AutoencoderKL", "class_name must be AutoencoderKLWan or AutoencoderKLQ"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(
    changes: dict, class_name: str | None, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        tiny(**changes).as_diffusers(class_name)


def test_a_model_that_upscales_gives_large_videos_in_both_ways() -> None:
    vae = tiny(z_dim=CHANNELS, upscale_factor=2).float()
    adapter, latents = vae.as_diffusers(), torch.randn(1, CHANNELS, 2, 3, 3, generator=seeded())
    with torch.no_grad():
        expected = adapter.decode(latents).sample
        assert expected.shape == (1, 3, 5, 48, 48)
        adapter.decoder.register_forward_hook(lambda *_: None)
        with pytest.warns(UserWarning, match="decoder has a hook"):
            assert largest_difference(adapter.decode(latents).sample, expected) < CLOSE
        adapter.enable_tiling(16, 16, 8, 8)  # tiles of diffusers are blended
        assert adapter.decode(latents).sample.shape == adapter.tiled_decode(latents)[0].shape
        assert adapter.decode(latents).sample.shape == expected.shape


def test_from_pipe_takes_it_over(ours: WanVAE) -> None:
    pipeline = wan_pipeline(ours.as_diffusers())
    other = WanVideoToVideoPipeline.from_pipe(pipeline)
    assert other.vae is pipeline.vae


@pytest.mark.parametrize("move", ["half", "to", "requires_grad", "load", "assign", "replace"])
def test_both_models_change_together(move: str) -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    if move == "half":
        adapter.to(torch.bfloat16)
        theirs.to(torch.bfloat16)
        assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}
    elif move == "to":
        vae.double()
        theirs.double()
        assert adapter.dtype == torch.float64
    elif move == "requires_grad":
        adapter.requires_grad_(False)
        assert not any(p.requires_grad for p in vae.parameters())
    elif move == "replace":
        theirs.decoder.conv_out.bias.data += 1
        adapter.decoder.conv_out.bias = nn.Parameter(theirs.decoder.conv_out.bias.data.clone())
    else:
        randomize(theirs)
        adapter.load_state_dict(theirs.state_dict(), assign=move == "assign")
    video = VIDEO.to(theirs.dtype)
    difference = largest_difference(round_trip(adapter, video), round_trip(theirs, video))
    assert difference < (0.1 if move == "half" else CLOSE)
    assert not vars(adapter._decode.__self__)["_told"]


@pytest.mark.parametrize("copied", [deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_copies_stand_alone(copied: Callable[[nn.Module], nn.Module]) -> None:
    adapter = tiny(z_dim=CHANNELS).float().as_diffusers()
    adapter.enable_tiling(max_memory="250MB")
    copy = copied(adapter)
    expected = round_trip(adapter, VIDEO)
    assert torch.equal(round_trip(copy, VIDEO), expected)
    copy.decoder.conv_out.bias.data += 1
    assert torch.equal(round_trip(adapter, VIDEO), expected)
    assert not torch.equal(round_trip(copy, VIDEO), expected)


def test_it_is_freed_without_the_garbage_collector() -> None:
    vae = tiny(z_dim=CHANNELS).float()
    adapter = vae.as_diffusers()
    reference = weakref.ref(adapter)
    gc.disable()
    try:
        del adapter
        assert reference() is None
    finally:
        gc.enable()


def test_gradients_are_those_of_diffusers() -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    for model in (adapter, theirs):
        distribution = model.encode(VIDEO).latent_dist
        loss = model.decode(distribution.mode()).sample.square().mean()
        (loss + distribution.kl().mean()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)


def test_gradients_reach_the_input_of_a_frozen_vae() -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    gradients = []
    for model in (adapter, theirs):
        model.requires_grad_(False)
        video = VIDEO.clone().requires_grad_()
        model(video).sample.square().mean().backward()
        gradients.append(video.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert not adapter(VIDEO).sample.requires_grad
    adapter.enable_tiling(16, 16)
    with pytest.warns(UserWarning, match="not used while gradients are recorded"):
        adapter(VIDEO.clone().requires_grad_())


@pytest.mark.parametrize("frames", [2, 4, 7, 8])
def test_other_lengths_lose_the_frames_that_diffusers_drops(frames: int) -> None:
    vae, theirs = twins()
    adapter, video = vae.as_diffusers(), random_video(frames).float()
    with torch.no_grad():
        expected = theirs.encode(video).latent_dist.mode()
        with pytest.warns(UserWarning, match=f"drops the last {(frames - 1) % 4} of {frames}"):
            latents = adapter.encode(video).latent_dist.mode()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            adapter.encode(random_video(frames + 4).float())
    assert largest_difference(latents, expected) < CLOSE
    with pytest.raises(UserError, match=r"1 \+ 4n frames"):
        vae.encode(video)


def test_a_memory_limit_that_cannot_be_read_is_refused_at_once(ours: WanVAE) -> None:
    vae = ours.as_diffusers()
    with pytest.raises(UserError, match="cannot read 'much'"):
        vae.enable_tiling(max_memory="much")
    assert not vae.use_tiling


@pytest.mark.parametrize("sides", [(20, 20), (30, 17), (4, 4)])
def test_tile_sizes_are_rounded(sides: tuple[int, int]) -> None:
    vae, theirs = twins()
    adapter, video = vae.as_diffusers(), random_video(1, 40, 40).float()
    adapter.enable_tiling(*sides)
    theirs.enable_tiling(500, 500)
    assert (adapter.tile_sample_min_height, adapter.tile_sample_min_width) == sides
    assert largest_difference(round_trip(adapter, video), round_trip(theirs, video)) < CLOSE


def add_hooks(kind: str, vae: nn.Module) -> None:
    """Puts hooks on the layers of a VAE, as diffusers or somebody else does."""
    cpu = torch.device("cpu")
    if kind == "sequential offload":
        cpu_offload(vae, cpu)
    elif kind == "group offload by leaf":
        vae.enable_group_offload(onload_device=cpu, offload_type="leaf_level")
    elif kind == "group offload by block":
        vae.enable_group_offload(
            onload_device=cpu, offload_type="block_level", num_blocks_per_group=1
        )
    elif kind == "hook":
        vae.decoder.conv_in.register_forward_hook(lambda *_: None)
        vae.encoder.conv_in.register_forward_pre_hook(lambda *_: None)
    elif kind == "other layer":
        for coder in (vae.encoder, vae.decoder):
            coder.conv_out = nn.Sequential(coder.conv_out, nn.Identity())
            vae._cached_conv_counts = dict(vae._cached_conv_counts)
            coder.conv_out.forward = lambda x, cache=None, conv=coder.conv_out[0]: conv(x, cache)


@pytest.mark.parametrize(
    "kind",
    [
        "sequential offload",
        "group offload by leaf",
        "group offload by block",
        "hook",
        "other layer",
    ],
)
def test_hooks_on_layers_are_called(kind: str) -> None:
    vae, theirs = twins()
    adapter, video = vae.as_diffusers(), random_video(5, 16, 16).float()
    expected = round_trip(theirs, video)
    add_hooks(kind, adapter)
    with pytest.warns(UserWarning, match="runs the code of diffusers, with its tiles, because"):
        assert largest_difference(round_trip(adapter, video), expected) < CLOSE
    add_hooks(kind, theirs)
    assert torch.equal(round_trip(adapter, video), round_trip(theirs, video))


def test_removed_hooks_bring_our_code_back() -> None:
    adapter = tiny(z_dim=CHANNELS).float().as_diffusers()
    expected = round_trip(adapter, VIDEO)
    cpu_offload(adapter, torch.device("cpu"))
    with pytest.warns(UserWarning, match="has a hook"):
        round_trip(adapter, VIDEO)
    remove_hook_from_submodules(adapter)
    assert torch.equal(round_trip(adapter, VIDEO), expected)


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
def test_layerwise_casting_stores_as_few_bytes_as_theirs(storage: torch.dtype) -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    whole = adapter.get_memory_footprint()
    for model in (adapter, theirs):
        model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    assert adapter.get_memory_footprint() == theirs.get_memory_footprint() < 0.9 * whole
    bytes_of_ours = sum(p.numel() * p.element_size() for p in vae.parameters())
    assert bytes_of_ours == adapter.get_memory_footprint()
    with pytest.warns(UserWarning, match="code of diffusers"):
        assert torch.equal(round_trip(adapter, VIDEO), round_trip(theirs, VIDEO))


def test_two_dtypes_work_with_offloaded_layers() -> None:
    vae = tiny(z_dim=CHANNELS).float()
    vae.decoder.double()
    vae.conv2.double()
    adapter, latents = vae.as_diffusers(), torch.randn(1, CHANNELS, 1, 2, 2)
    expected = vae.decode(latents)
    cpu_offload(adapter, torch.device("cpu"))
    with pytest.warns(UserWarning, match="has a hook"), torch.no_grad():
        assert largest_difference(adapter.decode(latents).sample, expected) < CLOSE


def test_other_sizes_are_encoded_as_diffusers_does() -> None:
    vae, theirs = twins()
    video = random_video(1, 20, 28).float()
    with pytest.warns(UserWarning, match="20x28 is not a multiple of 8"), torch.no_grad():
        latents = vae.as_diffusers().encode(video).latent_dist.mode()
        assert torch.equal(latents, theirs.encode(video).latent_dist.mode())


def test_dropout_in_training_is_that_of_diffusers() -> None:
    vae = tiny(z_dim=CHANNELS, dropout=0.5).float().train()
    adapter = vae.as_diffusers()
    assert adapter.training
    with pytest.warns(UserWarning, match="dropout is active"):
        first, second = (round_trip(adapter, VIDEO) for _ in range(2))
    assert not torch.equal(first, second)


def compiled_whole(vae: nn.Module) -> nn.Module:
    return torch.compile(vae, backend="eager", fullgraph=True)


def compiled_in_place(vae: nn.Module) -> nn.Module:
    vae.compile(backend="eager")
    return vae


def compiled_methods(vae: nn.Module) -> nn.Module:
    vae.encode = torch.compile(vae.encode, backend="eager", fullgraph=True)
    vae.decode = torch.compile(vae.decode, backend="eager", fullgraph=True)
    return vae


def test_training_mode_is_set_in_diffusers() -> None:
    vae = tiny(z_dim=CHANNELS, dropout=0.5).float()
    adapter = vae.as_diffusers()
    expected = round_trip(adapter, VIDEO)
    with pytest.warns(UserWarning, match="dropout is active"):
        assert not torch.equal(round_trip(adapter.train(), VIDEO), expected)
    assert torch.equal(round_trip(adapter.eval(), VIDEO), expected)


def test_weights_load_into_a_vae_with_another_layer() -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    for model in (adapter, theirs):
        model.encoder = nn.Identity()
        randomize(model.decoder)
    adapter.load_state_dict(theirs.state_dict(), assign=True)
    latents = torch.randn(1, CHANNELS, 1, 2, 2)
    with torch.no_grad():
        expected = theirs.decode(latents).sample
        assert largest_difference(adapter.decode(latents).sample, expected) < CLOSE


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_methods])
def test_torch_compile_takes_the_code_of_diffusers(
    compiled: Callable[[nn.Module], nn.Module],
) -> None:
    vae, theirs = twins()
    expected = round_trip(theirs, VIDEO)
    assert largest_difference(round_trip(compiled(vae.as_diffusers()), VIDEO), expected) < CLOSE


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("compiled", ["in place", "replaced"])
def test_a_compiled_decoder_runs(compiled: str) -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    if compiled == "in place":
        adapter.decoder.compile(backend="eager")
    else:
        adapter.decoder = torch.compile(adapter.decoder, backend="eager")
    calls = count_calls(adapter.decoder)
    expected = round_trip(theirs, VIDEO)
    with pytest.warns(UserWarning, match="because decoder (has a hook|was replaced)"):
        assert largest_difference(round_trip(adapter, VIDEO), expected) < CLOSE
    assert calls


def count_calls(layer: nn.Module) -> list[nn.Module]:
    """A list to which each call of a layer adds."""
    calls: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    return calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_lose_about_as_much_as_in_diffusers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vae, theirs = twins()
    exact = round_trip(theirs, VIDEO)
    models = vae.as_diffusers().to(dtype), theirs.to(dtype)
    results = [round_trip(model, VIDEO.to(dtype)) for model in models]
    assert {result.dtype for result in results} == {dtype, vae.decode_dtype}
    ours, of_diffusers = ((result.float() - exact).abs().mean() for result in results)
    assert 0 < ours < 1.5 * of_diffusers


def test_autocast_is_that_of_diffusers() -> None:
    torch.manual_seed(0)
    vae, theirs = twins()
    exact = round_trip(theirs, VIDEO)
    with torch.autocast("cpu", torch.bfloat16):
        results = [round_trip(model, VIDEO) for model in (vae.as_diffusers(), theirs)]
    assert {result.dtype for result in results} == {torch.bfloat16}
    ours, of_diffusers = ((result.float() - exact).abs().mean() for result in results)
    assert 0 < ours < 1.5 * of_diffusers


def test_inference_mode_and_slices_of_a_batch() -> None:
    vae, theirs = twins()
    adapter, videos = vae.as_diffusers(), random_video(5, 16, 24, batch=3).float()
    with torch.inference_mode():
        adapter(videos)
    adapter(VIDEO).sample.mean().backward()  # its parameters still take gradients
    adapter.enable_slicing()
    frames, decode = [], vae.decode
    vae.decode = lambda z, **limits: frames.append(z.shape[0]) or decode(z, **limits)
    assert largest_difference(round_trip(adapter, videos), round_trip(theirs, videos)) < CLOSE
    assert frames == [1, 1, 1]


def test_gradient_checkpointing_is_refused_as_diffusers_does() -> None:
    vae, theirs = twins()
    for model in (vae.as_diffusers(), theirs):
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            model.enable_gradient_checkpointing()


def lora(kind: str, vae: nn.Module) -> nn.Module:
    """A VAE with random LoRA in its attention, which are its only parameters to train."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["to_qkv", "proj"], init_lora_weights=False)
    if kind == "model of peft":
        return peft.get_peft_model(vae, config)
    return peft.inject_adapter_in_model(config, vae)


@pytest.mark.parametrize("kind", ["layers in place", "model of peft"])
def test_lora_of_peft_is_applied_and_trained(kind: str) -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    before = round_trip(adapter, VIDEO)
    with pytest.warns(UserWarning, match="to_qkv was replaced") as told:
        results = [lora(kind, model)(VIDEO).sample for model in (adapter, theirs)]
        assert torch.equal(*results)
        for result in results:
            result.square().mean().backward()
    assert len(told) == 1
    assert largest_difference(results[0].detach(), before) > 0.1
    expected = dict(theirs.named_parameters())
    trained = {n: p.grad for n, p in adapter.named_parameters() if p.grad is not None}
    assert trained and all("lora" in name for name in trained)
    assert all(torch.equal(grad, expected[name].grad) for name, grad in trained.items())


def test_merged_lora_brings_our_code_back() -> None:
    vae, theirs = twins()
    adapter = vae.as_diffusers()
    merged = [lora("model of peft", model).merge_and_unload() for model in (adapter, theirs)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the VAE runs the code of diffusers")
        result, expected = (round_trip(model, VIDEO) for model in merged)
    assert largest_difference(result, expected) < CLOSE
    latents = torch.randn(1, CHANNELS, 1, 2, 2)
    with torch.no_grad():
        assert largest_difference(vae.decode(latents), theirs.decode(latents).sample) < CLOSE


@pytest.mark.parametrize("changes", [{}, QWEN21], ids=["wan2.1", "qwen-image-2.1"])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("into", ["diffusers", "library"])
def test_both_models_have_what_one_of_them_loads(into: str, assign: bool, changes: dict) -> None:
    vae = tiny(z_dim=CHANNELS, **changes).float()
    adapter = vae.as_diffusers()
    other = deepcopy(vae)
    randomize(other)
    latents = torch.randn(1, CHANNELS, 1, 2, 2)
    expected = other.decode(latents)
    assert largest_difference(vae.decode(latents), expected) > 0.01
    if into == "diffusers":
        adapter.load_state_dict(other.as_diffusers().state_dict(), assign=assign)
    else:
        vae.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(vae.decode(latents), expected)
    with torch.no_grad():
        assert torch.equal(adapter.decode(latents).sample, expected)
        assert torch.equal(vae.decode(latents), expected)


@torch.no_grad()
def test_qwen_image_21_follows_what_moves_last() -> None:
    vae = tiny(z_dim=CHANNELS, **QWEN21).float()
    adapter, latents = vae.as_diffusers(), torch.randn(1, CHANNELS, 1, 2, 2)
    expected = vae.decode(latents)
    for model, dtype in ((vae, torch.float64), (adapter, torch.float32), (vae, torch.float64)):
        model.to(dtype)
        result = adapter.decode(latents.to(dtype)).sample
        assert result.dtype == vae.decode_dtype == adapter.dtype == dtype
        assert largest_difference(result.float(), expected) < CLOSE


def test_a_model_on_no_device_takes_the_weights_that_diffusers_loads() -> None:
    _, theirs = twins()
    adapter = tiny(z_dim=CHANNELS).to("meta").as_diffusers()
    adapter.load_state_dict(theirs.state_dict(), assign=True)
    assert largest_difference(adapter(VIDEO).sample, theirs(VIDEO).sample) < CLOSE


def test_an_image_model_has_the_class_of_qwen_image_21(tmp_path: Path) -> None:
    image = {"ndim": 2, "stage_shortcuts": True, "in_channels": 4, "out_channels": 4}
    vae, theirs = twins(**image, decoder_dim=6)
    adapter, video = vae.as_diffusers(), torch.rand(1, 4, 1, 32, 32) * 2 - 1
    assert type(adapter) is diffusers.AutoencoderKLQwenImage21
    pointers = {tensor.data_ptr() for tensor in vae.state_dict().values()}
    assert {parameter.data_ptr() for parameter in adapter.parameters()} == pointers
    for change in ("none", "load", "dtype"):
        if change == "load":
            randomize(theirs)
            adapter.load_state_dict(theirs.state_dict())
        if change == "dtype":
            theirs.double()
            adapter.double()
            video = video.double()
        expected = round_trip(theirs, video)
        assert largest_difference(round_trip(adapter, video), expected) < CLOSE
    adapter.save_pretrained(tmp_path)
    assert_same_tensors(type(adapter).from_pretrained(tmp_path), adapter.float())
    with pytest.warns(UserWarning, match="its convolutions are 2D"):
        adapter(video.float()).sample.mean().backward()
    assert adapter.decoder.conv_in.weight.grad is not None
