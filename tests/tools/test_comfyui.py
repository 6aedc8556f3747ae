"""The nodes for ComfyUI, with stand-ins for the two modules of it that they use."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import random_video, tiny, tiny_autoencoder

from wanvae import TinyVAE, WanVAE

NODES = Path(__file__).parents[2] / "tools" / "comfyui" / "wanvae_nodes.py"


def folder_paths(folder: Path) -> ModuleType:
    """The module of ComfyUI that knows where checkpoints are."""
    module = ModuleType("folder_paths")
    module.get_filename_list = lambda kind: [p.name for p in (folder / kind).iterdir()]
    module.get_full_path_or_raise = lambda kind, name: str(folder / kind / name)
    return module


def model_management() -> ModuleType:
    module = ModuleType("comfy.model_management")
    module.get_torch_device = lambda: torch.device("cpu")
    return module


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae_approx").mkdir()
    tiny().float().save_pretrained(tmp_path / "vae" / "tiny.safetensors")
    tiny_autoencoder(z_dim=2).float().save_pretrained(tmp_path / "vae_approx" / "tae.safetensors")
    return tmp_path


@pytest.fixture
def nodes(models: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    monkeypatch.setitem(sys.modules, "folder_paths", folder_paths(models))
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.model_management", model_management())
    spec = importlib.util.spec_from_file_location("wanvae_nodes", NODES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return module.NODE_CLASS_MAPPINGS


def run(node: type, *arguments: object) -> object:
    """What ComfyUI does with a node: make one, and call the method that it names."""
    with torch.inference_mode():
        result = getattr(node(), node.FUNCTION)(*arguments)
    assert isinstance(result, tuple) and len(result) == len(node.RETURN_TYPES)
    return result[0]


@pytest.fixture
def vae(nodes: dict[str, type]) -> WanVAE:
    return run(nodes["LoadWanVAE"], "tiny.safetensors", "float32", "float32")


def frames(count: int, side: int = 64) -> torch.Tensor:
    return (random_video(count, side, side)[0].movedim(0, -1).float() + 1) / 2


def test_nodes_declare_what_they_take(nodes: dict[str, type]) -> None:
    for node in nodes.values():
        declared = node.INPUT_TYPES()["required"]
        taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert [*taken] == ["self", *declared]
        assert node.CATEGORY == "wanvae"
    declared = nodes["LoadWanVAE"].INPUT_TYPES()["required"]
    assert declared["name"] == (["tiny.safetensors"],)
    assert declared["decode_dtype"][1]["default"] in declared["decode_dtype"][0]


def test_dtypes_are_chosen_apart(nodes: dict[str, type]) -> None:
    vae = run(nodes["LoadWanVAE"], "tiny.safetensors", "float32", "bfloat16")
    assert (vae.encode_dtype, vae.decode_dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("tile_size", "max_memory"), [(0, ""), (16, ""), (0, "250MB")])
def test_there_and_back(
    nodes: dict[str, type], vae: WanVAE, tile_size: int, max_memory: str
) -> None:
    images = frames(5)
    latents = run(nodes["EncodeWanVAE"], vae, images, tile_size, max_memory)["samples"]
    expected = vae.encode(images.movedim(-1, 0)[None] * 2 - 1).mode()
    assert latents.shape == (1, 2, 2, 8, 8)
    assert torch.allclose(latents, expected, atol=1e-5)
    result = run(nodes["DecodeWanVAE"], vae, {"samples": latents}, tile_size, max_memory)
    expected = (vae.decode(latents)[0].movedim(0, -1) + 1) / 2
    assert result.shape == images.shape and result.dtype == torch.float32
    assert torch.allclose(result, expected, atol=1e-5)
    assert result.min() >= 0 and result.max() <= 1


def test_batches_and_images(nodes: dict[str, type], vae: WanVAE) -> None:
    rgba = torch.cat([frames(1), torch.ones(1, 64, 64, 1)], dim=-1)
    latents = run(nodes["EncodeWanVAE"], vae, rgba, 0, "")["samples"]
    image = run(nodes["DecodeWanVAE"], vae, {"samples": latents[:, :, 0]}, 0, "")
    assert image.shape == (1, 64, 64, 3)
    batch = latents.repeat(3, 1, 1, 1, 1)
    images = run(nodes["DecodeWanVAE"], vae, {"samples": batch}, 0, "")
    assert torch.allclose(images, image.expand(3, -1, -1, -1), atol=1e-5)


def test_what_cannot_be_encoded_is_explained(nodes: dict[str, type], vae: WanVAE) -> None:
    with pytest.raises(ValueError, match=r"1 \+ 4n frames, not 3"):
        run(nodes["EncodeWanVAE"], vae, frames(3), 0, "")
    with pytest.raises(ValueError, match="not both"):
        run(nodes["EncodeWanVAE"], vae, frames(1), 16, "4GB")


def test_a_tiny_autoencoder_previews(nodes: dict[str, type], models: Path) -> None:
    load = nodes["LoadTinyVAE"]
    vae = run(load, "tae.safetensors", "float32", "as the file tells")
    assert isinstance(vae, TinyVAE) and vae.config.network_latents == "normalized"
    latents = torch.randn(1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    images = run(nodes["DecodeWanVAE"], vae, {"samples": latents}, 0, "")
    expected = (vae.decode(latents)[0].movedim(0, -1) + 1) / 2
    assert torch.allclose(images, expected, atol=1e-5)
    raw = run(load, "tae.safetensors", "float32", "raw")
    assert not torch.allclose(raw.decode(latents), vae.decode(latents), atol=1e-2)
    (models / "vae_approx" / "full.safetensors").hardlink_to(models / "vae" / "tiny.safetensors")
    with pytest.raises(ValueError, match="no tiny autoencoder"):
        run(load, "full.safetensors", "float32", "raw")
