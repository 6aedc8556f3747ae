"""The nodes for ComfyUI, with stand-ins for the modules of it that they use."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
import weakref
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import QWEN21, WAN22, WAN_ALPHA, random_video, tiny, tiny_autoencoder
from tests.tools.comfyui_stand_in import (
    PLENTY,
    VAE,
    ComfyUI,
    Interrupted,
    OutOfMemory,
    load_package,
    make_modules,
)
from wanvae import TinyVAE, WanVAE
from wanvae.errors import UserError
from wanvae.execution import budget
from wanvae.execution.budget import Planner
from wanvae.execution.run import Runner

MODELS = {
    "tiny.safetensors": {},
    "wan22.safetensors": WAN22,
    "qwen21.safetensors": QWEN21,
    "alpha.safetensors": {**WAN_ALPHA},
    "upscaling.safetensors": {"upscale_factor": 2},
    "images.safetensors": {"ndim": 2},
}
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "vae").mkdir()
    (folder / "vae_approx").mkdir()
    for name, changes in MODELS.items():
        tiny(**changes).float().save_pretrained(folder / "vae" / name)
    tiny_autoencoder(z_dim=2).float().save_pretrained(folder / "vae_approx" / "tae.safetensors")
    tiny().float().save_pretrained(folder / "vae_approx" / "full.safetensors")
    return folder


@pytest.fixture
def comfyui(models: Path, monkeypatch: pytest.MonkeyPatch) -> ComfyUI:
    stand_in = ComfyUI()
    for name, module in make_modules(stand_in, models).items():
        monkeypatch.setitem(sys.modules, name, module)
    return stand_in


@pytest.fixture
def package(comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_package(monkeypatch)


class Nodes:
    """Calls nodes as ComfyUI does: by name, with inputs by name, defaults filled in."""

    def __init__(self, package: ModuleType) -> None:
        self.classes = package.NODE_CLASS_MAPPINGS

    def __call__(self, node: str, **inputs: object) -> Any:
        kind = self.classes[node]
        declared = kind.INPUT_TYPES()["required"]
        assert inputs.keys() <= declared.keys()
        defaults = {
            name: options["default"]
            for name, (_, options) in declared.items()
            if "default" in options
        }
        with torch.inference_mode():
            result = getattr(kind(), kind.FUNCTION)(**{**defaults, **inputs})
        assert isinstance(result, tuple) and len(result) == len(kind.RETURN_TYPES)
        return result[0]

    def load(self, name: str = "tiny.safetensors", **inputs: object) -> Any:
        return self("LoadWanVAE", name=name, decode_dtype="float32", **inputs)


@pytest.fixture
def nodes(package: ModuleType) -> Nodes:
    return Nodes(package)


def frames(count: int, height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    video = random_video(count, height, width, channels=channels)
    return (video[0].movedim(0, -1).float() + 1) / 2


def encode_plainly(vae: Any, images: Tensor) -> Tensor:
    """What the model says of frames that it takes as they are."""
    return vae.vae.encode(images.movedim(-1, 0)[None] * 2 - 1).mode()


def decode_plainly(vae: Any, latents: Tensor) -> Tensor:
    return (vae.vae.decode(latents).movedim(1, -1) + 1) / 2


def test_both_interfaces_declare_the_same_nodes(package: ModuleType, comfyui: ComfyUI) -> None:
    first, titles = package.NODE_CLASS_MAPPINGS, package.NODE_DISPLAY_NAME_MAPPINGS
    third = asyncio.run(asyncio.run(package.comfy_entrypoint()).get_node_list())
    assert [*first] == [*titles] == [node.define_schema().node_id for node in third]
    for (name, old), new in zip(first.items(), third, strict=True):
        schema = new.define_schema()
        assert (schema.display_name, schema.category) == (titles[name], old.CATEGORY)
        assert schema.description == old.DESCRIPTION and old.DESCRIPTION
        assert [output.type for output in schema.outputs] == [*old.RETURN_TYPES]
        declared = old.INPUT_TYPES()["required"]
        assert [given.id for given in schema.inputs] == [*declared]
        for given in schema.inputs:
            kind, options = declared[given.id]
            choices = given.options.pop("options", None)
            assert (given.type, given.options) == ("COMBO" if choices else kind, options)
            assert choices is None or (choices == kind and options.get("default", kind[0]) in kind)
    loader = first["LoadWanVAE"].INPUT_TYPES()["required"]
    assert loader["name"][0] == sorted(MODELS)
    # No socket is of a type that only these nodes know.
    known = {"VAE", "IMAGE", "LATENT", "INT", "STRING"}
    for old in first.values():
        declared = old.INPUT_TYPES()["required"].values()
        assert {kind for kind, _ in declared if isinstance(kind, str)} <= known
        assert {*old.RETURN_TYPES} <= known


def test_the_third_interface_runs_the_same_functions(package: ModuleType, nodes: Nodes) -> None:
    third = {
        node.define_schema().node_id: node
        for node in asyncio.run(asyncio.run(package.comfy_entrypoint()).get_node_list())
    }
    (vae,) = third["LoadTinyVAE"].execute(
        name="tae.safetensors", dtype="float32", network_latents="raw"
    )
    assert isinstance(vae.vae, TinyVAE) and vae.vae.config.network_latents == "raw"


def test_an_older_comfyui_has_the_first_interface(
    comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comfy_api.latest", None)
    package = load_package(monkeypatch)
    assert package.NODE_CLASS_MAPPINGS and not hasattr(package, "comfy_entrypoint")


def test_dtypes_are_chosen_apart(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = nodes("LoadWanVAE", name="tiny.safetensors", decode_dtype="bfloat16")
    assert (vae.vae.encode_dtype, vae.vae.decode_dtype) == (torch.float32, torch.bfloat16)
    assert vae.vae_dtype == torch.bfloat16
    management = sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "vae_dtype", lambda device, allowed: torch.float16)
    vae = nodes("LoadWanVAE", name="tiny.safetensors")
    assert (vae.vae.encode_dtype, vae.vae.decode_dtype) == (torch.float32, torch.float16)


@pytest.mark.parametrize(
    ("name", "latent_dim", "ratios", "frames_of_5"),
    [
        ("tiny.safetensors", 3, (8, 8), 17),
        ("wan22.safetensors", 3, (16, 16), 17),
        ("upscaling.safetensors", 3, (8, 16), 17),
        ("images.safetensors", 3, (8, 8), 5),
        ("qwen21.safetensors", 2, (4, 4), None),
    ],
)
def test_it_is_a_vae_of_comfyui(
    nodes: Nodes,
    name: str,
    latent_dim: int,
    ratios: tuple[int, int],
    frames_of_5: int | None,
) -> None:
    vae = nodes.load(name)
    config = vae.vae.config
    assert isinstance(vae, VAE)
    assert (vae.latent_channels, vae.output_channels) == (config.z_dim, config.out_channels)
    assert vae.latent_dim == latent_dim
    assert (vae.spacial_compression_encode(), vae.spacial_compression_decode()) == ratios
    if frames_of_5 is None:
        assert vae.temporal_compression_decode() is None
    else:
        assert vae.upscale_ratio[0](5) == frames_of_5
        assert vae.downscale_ratio[0](frames_of_5) == 5
        assert vae.downscale_ratio[0](frames_of_5 - 1) == 4
        assert vae.temporal_compression_decode() == config.temporal_factor
    # What it holds is what the file holds, by the same names.
    assert vae.get_sd().keys() == vae.vae.state_dict().keys()
    assert all(torch.equal(x, vae.vae.state_dict()[key]) for key, x in vae.get_sd().items())
    assert vae.size == sum(x.nbytes for x in vae.vae.state_dict().values())
    assert vae.patcher.model is vae.first_stage_model
    half = torch.tensor([0.5])
    assert vae.process_input(half) == 0 and vae.process_output(torch.tensor([3.0])) == 1


def test_moving_what_comfyui_moves_moves_the_model(nodes: Nodes) -> None:
    vae = nodes.load()
    vae.first_stage_model.to(torch.float16)
    assert vae.vae.encode_dtype == vae.vae.decode_dtype == torch.float16
    vae.first_stage_model.to("meta")
    assert vae.vae.device.type == "meta"
    # It is on the device as a whole or not at all.
    assert vae.patcher.partially_unload(torch.device("cpu"), 100) == 0


def test_nothing_keeps_a_model_that_nobody_uses(nodes: Nodes) -> None:
    vae = nodes.load()
    nodes("DecodeWanVAE", vae=vae, samples={"samples": torch.zeros(1, 2, 1, 8, 8)})
    reference = weakref.ref(vae.first_stage_model)
    sys.modules["comfy.model_management"].load_models_gpu.__self__.loads.clear()
    gc.collect()
    gc.disable()
    try:
        del vae
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tiled", [False, True])
def test_nodes_of_comfyui_encode_and_decode(nodes: Nodes, name: str, tiled: bool) -> None:
    vae = nodes.load(name)
    config = vae.vae.config
    images = frames(5, 64, 96)
    given = torch.cat([images, torch.ones(5, 64, 96, 1)], dim=-1)[..., : config.in_channels]
    if config.ndim == 2:
        expected = torch.cat([encode_plainly(vae, image[None]) for image in given])
    else:
        expected = encode_plainly(vae, given)
    if vae.latent_dim == 2:
        expected = expected[:, :, 0]
    # As VAEEncode and VAEEncodeTiled call it.
    found = vae.encode_tiled(images, tile_x=40, tile_y=32, overlap=8) if tiled else None
    found = vae.encode(images) if found is None else found
    torch.testing.assert_close(found, expected, **CLOSE)
    # As VAEDecode and VAEDecodeTiled call it.
    wanted = decode_plainly(vae, expected if expected.dim() == 5 else expected[:, :, None])
    wanted = wanted[:, 0] if vae.latent_dim == 2 else wanted
    options = {"tile_x": 4, "tile_y": 5, "overlap": 2, "tile_t": 16, "overlap_t": 2}
    images = vae.decode_tiled(expected, **options) if tiled else vae.decode(expected)
    torch.testing.assert_close(images, wanted, **CLOSE)
    assert images.dtype == torch.float32 and images.shape[-1] == config.out_channels
    assert images.min() >= 0 and images.max() <= 1
    assert images.shape[-3] == 64 * config.upscale_factor


def test_tiles_of_nodes_are_used(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = nodes.load()
    given: list[object] = []
    for name in ("encode", "decode"):
        whole = getattr(vae.vae, name)
        monkeypatch.setattr(
            vae.vae,
            name,
            lambda x, whole=whole, **limits: (
                given.append(limits["tile_size"]) or whole(x, **limits)
            ),
        )
    latents = vae.encode_tiled(frames(1, 64, 96), tile_x=60, tile_y=33, overlap=8)
    vae.decode_tiled(latents, tile_x=4, tile_y=5, overlap=1)
    vae.encode(frames(1))
    assert given == [(32, 56), (40, 32), None]


def test_sides_and_lengths_are_cropped_and_a_line_says_so(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    vae = nodes.load()
    images = frames(8, 67, 73)
    expected = encode_plainly(vae, images[:5, 1:65, :72])
    with caplog.at_level(logging.WARNING, "wanvae"):
        latents = vae.encode(images)
    torch.testing.assert_close(latents, expected, **CLOSE)
    assert caplog.messages == [
        "wanvae crops images of 67x73 to 64x72, multiples of 8, as ComfyUI does",
        "wanvae encodes 1 + 4n frames, so it drops the last 3 of 8, as ComfyUI does",
    ]
    caplog.clear()
    vae.encode(frames(5))
    assert not caplog.messages


def test_alpha_is_padded_and_dropped(nodes: Nodes) -> None:
    rgba = nodes.load("qwen21.safetensors")
    opaque = torch.cat([frames(2), torch.ones(2, 64, 64, 1)], dim=-1)
    torch.testing.assert_close(rgba.encode(frames(2)), rgba.encode(opaque), **CLOSE)
    assert not torch.allclose(rgba.encode(opaque), rgba.encode(opaque * 0.5), **CLOSE)
    rgb = nodes.load()
    torch.testing.assert_close(rgb.encode(opaque[:1]), rgb.encode(frames(2)[:1]), **CLOSE)
    decoded = nodes("DecodeWanVAE", vae=rgba, samples={"samples": rgba.encode(opaque)})
    assert decoded.shape == (2, 64, 64, 4)


@pytest.mark.parametrize("name", ["tiny.safetensors", "qwen21.safetensors"])
def test_gray_images_are_encoded_as_gray(nodes: Nodes, name: str) -> None:
    vae, gray = nodes.load(name), frames(1)[..., :1]
    torch.testing.assert_close(vae.encode(gray), vae.encode(gray.repeat(1, 1, 1, 3)), **CLOSE)
    with pytest.raises(UserError, match="gray, RGB or RGBA, not of 2 channels"):
        vae.encode(frames(1)[..., :2])


def test_a_pair_of_wan_alpha_decodes_alpha(nodes: Nodes, models: Path) -> None:
    vae = nodes.load("alpha.safetensors")
    assert vae.decode(vae.encode(frames(5))).shape == (1, 5, 64, 64, 4)
    pair = nodes.load("tiny.safetensors", alpha="tiny.safetensors")
    expected = WanVAE.from_pretrained(
        models / "vae" / "tiny.safetensors", alpha=models / "vae" / "tiny.safetensors"
    )
    latents = torch.randn(1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    images = pair.decode(latents)
    assert images.shape == (1, 5, 64, 64, 4)
    wanted = (expected.decode(latents).movedim(1, -1) + 1) / 2
    torch.testing.assert_close(images, wanted, **CLOSE)


def test_a_batch_of_images(nodes: Nodes) -> None:
    vae, images = nodes.load(), frames(4)
    each = torch.cat([encode_plainly(vae, image[None]) for image in images])
    # To ComfyUI, images are the frames of a video, unless a node says otherwise.
    torch.testing.assert_close(vae.encode(images), each[:1], **CLOSE)
    torch.testing.assert_close(vae.encode(images, not_video=True), each, **CLOSE)
    tiled = vae.encode_tiled(images, tile_x=32, tile_y=32, overlap=0, not_video=True)
    torch.testing.assert_close(tiled, each, **CLOSE)
    latents = nodes("EncodeWanVAE", vae=vae, images=images, batch="separate images")["samples"]
    torch.testing.assert_close(latents, each, **CLOSE)
    decoded = nodes("DecodeWanVAE", vae=vae, samples={"samples": latents})
    torch.testing.assert_close(decoded, decode_plainly(vae, each)[:, 0], **CLOSE)
    # Videos in a batch, and latents of images without an axis of time.
    videos = frames(10).unflatten(0, (2, 5))
    found = vae.encode(videos)
    assert found.shape == (2, 2, 2, 8, 8)
    torch.testing.assert_close(found[1:], encode_plainly(vae, videos[1]), **CLOSE)
    assert vae.decode(found).shape == (2, 5, 64, 64, 3)
    torch.testing.assert_close(vae.decode(each[:, :, 0]), vae.decode(each), **CLOSE)


def test_latents_of_images_with_an_axis_of_time(nodes: Nodes) -> None:
    vae = nodes.load("qwen21.safetensors")
    latents = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = vae.decode(latents)
    assert images.shape == (6, 16, 16, 4)
    torch.testing.assert_close(images[1:2], vae.decode(latents[:1, :, 1]), **CLOSE)


@pytest.mark.parametrize(("tile_size", "max_memory"), [(0, ""), (16, ""), (0, "250MB")])
def test_our_nodes_there_and_back(nodes: Nodes, tile_size: int, max_memory: str) -> None:
    vae, images = nodes.load(), frames(5)
    limits = {"tile_size": tile_size, "max_memory": max_memory}
    latents = nodes("EncodeWanVAE", vae=vae, images=images, **limits)["samples"]
    torch.testing.assert_close(latents, encode_plainly(vae, images), **CLOSE)
    result = nodes("DecodeWanVAE", vae=vae, samples={"samples": latents}, **limits)
    torch.testing.assert_close(result, decode_plainly(vae, latents)[0], **CLOSE)
    assert result.shape == images.shape and result.dtype == torch.float32


def test_normalized_latents(nodes: Nodes) -> None:
    vae = nodes.load()
    mean, std = (0.5, -1.0), (2.0, 3.0)
    object.__setattr__(vae.vae.config, "latents_mean", mean)
    object.__setattr__(vae.vae.config, "latents_std", std)
    raw = nodes("EncodeWanVAE", vae=vae, images=frames(5))["samples"]
    normalized = nodes("EncodeWanVAE", vae=vae, images=frames(5), latents="normalized")["samples"]
    shape = (1, 2, 1, 1, 1)
    expected = (raw - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(normalized, expected, **CLOSE)
    images = nodes("DecodeWanVAE", vae=vae, samples={"samples": normalized}, latents="normalized")
    torch.testing.assert_close(images, decode_plainly(vae, raw)[0], **CLOSE)


def test_what_cannot_be_done_is_explained(nodes: Nodes) -> None:
    vae = nodes.load()
    with pytest.raises(UserError, match="not both"):
        nodes("EncodeWanVAE", vae=vae, images=frames(1), tile_size=16, max_memory="4GB")
    with pytest.raises(UserError, match="cannot read 'much'"):
        nodes.load(max_memory="much")
    other = object.__new__(VAE)
    with pytest.raises(UserError, match="needs a VAE from Load Wan VAE"):
        nodes("DecodeWanVAE", vae=other, samples={"samples": torch.zeros(1, 2, 1, 8, 8)})


def test_a_tiny_autoencoder_previews(nodes: Nodes) -> None:
    vae = nodes("LoadTinyVAE", name="tae.safetensors", dtype="float32")
    assert isinstance(vae.vae, TinyVAE) and vae.vae.config.network_latents == "normalized"
    latents = torch.randn(1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vae.decode(latents), decode_plainly(vae, latents), **CLOSE)
    torch.testing.assert_close(vae.encode(frames(5)), encode_plainly(vae, frames(5)), **CLOSE)
    raw = nodes("LoadTinyVAE", name="tae.safetensors", dtype="float32", network_latents="raw")
    assert not torch.allclose(raw.decode(latents), vae.decode(latents), atol=1e-2)
    with pytest.raises(UserError, match="no tiny autoencoder"):
        nodes("LoadTinyVAE", name="full.safetensors")


@pytest.mark.parametrize("size", [(5, 64), (64, 5)])
def test_images_too_small_to_encode_are_refused(nodes: Nodes, size: tuple[int, int]) -> None:
    vae = nodes.load()
    with pytest.raises(UserError, match=f"at least 8x8 pixels, not 1 of {size[0]}x{size[1]}"):
        vae.encode(frames(1, *size))
    with pytest.raises(UserError, match="at least 8x8 pixels, not 0 of 64x64"):
        vae.encode(frames(1)[:0])


def test_latents_of_another_model_are_refused(nodes: Nodes) -> None:
    vae = nodes.load()
    for shape in ((1, 4, 8, 8), (1, 64, 22), (1, 16, 1, 8, 8)):
        with pytest.raises(UserError, match=f"latents of 2 channels, not of {shape[1]}"):
            vae.decode(torch.zeros(shape))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_saved(nodes: Nodes, models: Path, name: str) -> None:
    """As the node VAESave does, which knows no metadata of ours."""
    vae = nodes.load(name)
    saved = models / "vae" / "saved.safetensors"
    save_file(vae.get_sd(), saved)
    try:
        loaded = nodes.load(saved.name)
    finally:
        saved.unlink()
    latents = torch.randn(1, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.decode(latents), vae.decode(latents), **CLOSE)


def test_custom_nodes_call_the_first_stage_model(nodes: Nodes) -> None:
    vae = nodes.load()
    video = random_video(7, 64, 64).float()
    latents = vae.first_stage_model.encode(video)
    torch.testing.assert_close(latents, vae.vae.encode(video[:, :, :5]).mode(), **CLOSE)
    torch.testing.assert_close(
        vae.first_stage_model.decode(4 * latents), vae.vae.decode(4 * latents, clamp=False), **CLOSE
    )
    image = nodes.load("qwen21.safetensors").first_stage_model
    latents = image.encode(random_video(1, 16, 16, channels=4)[:, :, 0].float())
    assert latents.shape == (1, 2, 4, 4) and image.decode(latents).shape == (1, 4, 16, 16)


@pytest.mark.parametrize("decoding", [False, True])
def test_memory_is_asked_for_the_device_that_a_model_will_run_on(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, decoding: bool
) -> None:
    """A GPU takes longer steps. Models that are not in use wait in the memory of the host."""
    vae, device = nodes.load(), torch.device("cuda")
    network = vae.vae.decoder_network() if decoding else vae.vae.encoder_network()
    shape = (1, 2, 9, 32, 32) if decoding else (1, 3, 33, 256, 256)
    expected = Runner(network).estimate_memory(shape, device)
    assert expected > Runner(network).estimate_memory(shape)
    monkeypatch.setattr(vae, "device", device)
    asked = vae.memory_used_decode(shape) if decoding else vae.memory_used_encode(shape)
    assert asked == expected


@pytest.mark.parametrize("decoding", [False, True])
def test_memory_is_asked_for_and_kept(nodes: Nodes, comfyui: ComfyUI, decoding: bool) -> None:
    vae, images = nodes.load(), frames(5, 128, 128)
    latents = encode_plainly(vae, images)
    x = latents if decoding else images.movedim(-1, 0)[None]
    work, need = (
        (vae.decode, vae.memory_used_decode(latents.shape, torch.float32))
        if decoding
        else (vae.encode, vae.memory_used_encode(x.shape, torch.float32))
    )
    network = vae.vae.decoder_network() if decoding else vae.vae.encoder_network()
    assert need == Runner(network).estimate_memory(x.shape)
    # One clip after another takes no more than one.
    shape = (3, *x.shape[1:])
    asked = vae.memory_used_decode(shape) if decoding else vae.memory_used_encode(shape)
    assert asked == need
    given = latents if decoding else images
    work(given)
    patcher, asked = comfyui.loads[-1]
    assert patcher is vae.patcher and asked == need


def spy(vae: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The limits of all calls that decode from now on."""
    given: list[dict[str, Any]] = []
    decode = vae.vae.decode

    def decode_and_note(latents: Tensor, **limits: Any) -> Tensor:
        given.append({name: x for name, x in limits.items() if name != "progress"})
        return decode(latents, **limits)

    monkeypatch.setattr(vae.vae, "decode", decode_and_note)
    return given


@pytest.fixture
def tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans count the memory of tensors, which is little here, and no overhead."""
    alone = partial(Planner, overhead=0, planning_memory=0, smallest_tile=16)
    monkeypatch.setattr(budget, "Planner", alone)


def test_little_memory_means_tiles(
    nodes: Nodes, comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch, tensors_alone: None
) -> None:
    vae = nodes.load()
    latents = torch.randn(1, 2, 2, 17, 18, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latents)
    given = spy(vae, monkeypatch)
    need = vae.memory_used_decode(latents.shape)
    for free in (PLENTY, 2 * need):
        comfyui.free = free
        torch.testing.assert_close(vae.decode(latents), expected, **CLOSE)
    result = 5 * 136 * 144 * 3 * 4  # bytes of the images, which are on the same device
    assert given == [{"tile_size": None}, {"tile_size": None}]
    comfyui.free = int((need + result) * 1.09)  # less than a tenth of it is kept free
    torch.testing.assert_close(vae.decode(latents), expected, **CLOSE)
    (limits,) = given[2:]
    assert need * 0.8 < limits["max_memory"] < need
    # Tiles that a node asks for stay if they fit, and get smaller if not.
    vae.decode_tiled(latents, tile_x=4, tile_y=5, overlap=1)
    assert given[3] == {"tile_size": (40, 32)}
    vae.decode_tiled(latents, tile_x=999, tile_y=999, overlap=4)
    assert given[4] == limits
    # Where nothing fits, the message says what is needed.
    comfyui.free = result + 2**18
    with pytest.raises(UserError, match=r"too little memory .* at least \d+MB"):
        vae.decode(latents)


def test_a_limit_of_the_loader_or_the_node(
    nodes: Nodes, comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch, tensors_alone: None
) -> None:
    vae = nodes.load(max_memory="3MB")
    latents = torch.zeros(1, 2, 2, 19, 18)
    given = spy(vae, monkeypatch)
    vae.decode(latents)
    assert given.pop() == {"max_memory": 3 * 2**20}
    assert comfyui.loads[-1][1] == min(3 * 2**20, vae.memory_used_decode(latents.shape))
    nodes("DecodeWanVAE", vae=vae, samples={"samples": latents}, max_memory="4MB")
    assert given.pop() == {"max_memory": 4 * 2**20}
    nodes("DecodeWanVAE", vae=vae, samples={"samples": latents}, tile_size=64)
    assert given.pop() == {"tile_size": (64, 64)}


def test_a_device_that_runs_out_of_memory_all_the_same(
    nodes: Nodes, comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    vae = nodes.load()
    latents = torch.zeros(1, 2, 2, 16, 16)
    expected = vae.decode(latents)
    tried: list[object] = []
    decode = vae.vae.decode

    def decode_with_less(x: Tensor, **limits: Any) -> Tensor:
        tried.append(limits.get("max_memory"))
        if tried[-1] is None or tried[-1] > 2**30:
            raise OutOfMemory
        return decode(x, **limits)

    monkeypatch.setattr(vae.vae, "decode", decode_with_less)
    comfyui.free = 2**32
    torch.testing.assert_close(vae.decode(latents), expected, **CLOSE)
    assert tried == [None, 2**31, 2**30]
    assert [m for m in caplog.messages if "ran out of memory" in m]


def test_progress_is_shown(nodes: Nodes, comfyui: ComfyUI) -> None:
    vae = nodes.load()
    latents = torch.zeros(2, 2, 2, 16, 16)
    vae.decode_tiled(latents, tile_x=8, tile_y=8, overlap=2)
    (shown,) = comfyui.bars
    assert shown == sorted({*shown}) and shown[-1] == 200 and 100 in shown
    assert len(shown) > 20
    vae.encode(frames(5))
    assert comfyui.bars[1][-1] == 100


@pytest.mark.parametrize("decoding", [False, True])
def test_the_work_can_be_stopped(nodes: Nodes, comfyui: ComfyUI, decoding: bool) -> None:
    vae = nodes.load()
    comfyui.stop_after = 3
    with pytest.raises(Interrupted):
        if decoding:
            vae.decode(torch.zeros(1, 2, 2, 16, 16))
        else:
            vae.encode(frames(5))
    # It asked again after the step of each layer, and ended with the first no.
    assert comfyui.checks == 4
    comfyui.stop_after = None
    assert vae.decode(torch.zeros(1, 2, 2, 16, 16)).shape == (1, 5, 128, 128, 3)


def test_a_newer_comfyui_chooses_dtype_and_memory(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    management = sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "intermediate_dtype", lambda: torch.float16, raising=False)
    vae = nodes.load()
    assert vae.decode(torch.zeros(1, 2, 1, 8, 8)).dtype == torch.float16
    assert vae.encode(frames(1)).dtype == torch.float16
    vae.patcher.get_free_memory = lambda device: 2**20
    with pytest.raises(UserError, match="too little memory"):
        vae.decode(torch.zeros(1, 2, 1, 64, 64))


def test_methods_take_what_those_of_comfyui_take(package: ModuleType, nodes: Nodes) -> None:
    kind = type(nodes.load())
    expected = {
        "encode": ["pixel_samples", "not_video"],
        "decode": ["samples_in", "vae_options"],
        "encode_tiled": [
            *("pixel_samples", "tile_x", "tile_y", "overlap", "tile_t", "overlap_t", "not_video")
        ],
        "decode_tiled": ["samples", "tile_x", "tile_y", "overlap", "tile_t", "overlap_t"],
        "memory_used_encode": ["shape", "dtype"],
        "memory_used_decode": ["shape", "dtype"],
        "vae_encode_crop_pixels": ["pixels"],
    }
    for name, parameters in expected.items():
        assert [*inspect.signature(getattr(kind, name)).parameters] == ["self", *parameters]


def test_planners_are_not_slow(nodes: Nodes) -> None:
    """A plan is found once for each size, however often a node runs."""
    vae = nodes.load()
    calls: list[object] = []
    original = Planner.__init__

    def counted(self: Planner, *arguments: Any, **options: Any) -> None:
        calls.append(1)
        original(self, *arguments, **options)

    latents = torch.zeros(1, 2, 1, 8, 8)
    vae.decode(latents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "__init__", counted)
        vae.decode(latents)
        vae.decode(latents)
    assert not calls
