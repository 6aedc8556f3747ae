"""Checkpoints that are directories: variants, parts with an index, pickles, single files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import tiny
from tests.hub_server import HubServer
from wanvae import WanVAE
from wanvae.checkpoints import formats
from wanvae.checkpoints.formats import Layout
from wanvae.cli import main
from wanvae.commands.convert import convert
from wanvae.engine.checkpoint import CheckpointError, read_tensors, write_pickle, write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae() -> WanVAE:
    return tiny()


@pytest.fixture
def folder(vae: WanVAE, tmp_path: Path) -> Path:
    """A diffusers directory with its weights in one file."""
    vae.save_pretrained(tmp_path / "vae.safetensors")
    convert(tmp_path / "vae.safetensors", tmp_path / "model", Layout.DIFFUSERS)
    return tmp_path / "model"


def take_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the weights of a diffusers directory, without which it stays."""
    tensors = {
        name: tensor.clone() for name, tensor in read_tensors(folder / WEIGHTS).tensors.items()
    }
    (folder / WEIGHTS).unlink()
    return tensors


def split(folder: Path, kind: str, variant: str = "") -> Path:
    """Splits the weights of a diffusers directory into three files, and returns their index."""
    tensors = take_weights(folder)
    parts = {}
    for i in range(3):
        name = f"diffusion_pytorch_model{variant}-0000{i + 1}-of-00003.{kind}"
        part = dict(list(tensors.items())[i::3])
        if kind == "bin":
            write_pickle(folder / name, part)
        else:
            write_tensors(folder / name, part, {"format": "pt"})
        parts |= dict.fromkeys(part, name)
    index = folder / f"diffusion_pytorch_model.{kind}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": parts}))
    return index


def assert_same(vae: WanVAE, other: WanVAE) -> None:
    expected = vae.state_dict()
    assert expected.keys() == other.state_dict().keys()
    assert all(torch.equal(expected[n], tensor) for n, tensor in other.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_parts_with_an_index(vae: WanVAE, folder: Path, kind: str, variant: str) -> None:
    identity = formats.identify(folder)
    index = split(folder, kind, variant)
    assert_same(vae, WanVAE.from_pretrained(folder))
    assert_same(vae, WanVAE.from_pretrained(folder, variant=variant.strip(".") or None))
    assert formats.load(index).layout is Layout.DIFFUSERS
    assert formats.identify(folder) == identity


def test_pickles(vae: WanVAE, folder: Path) -> None:
    write_pickle(folder / "diffusion_pytorch_model.bin", take_weights(folder))
    assert_same(vae, WanVAE.from_pretrained(folder))


def test_variants(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = take_weights(folder)
    half = {name: tensor.half() for name, tensor in tensors.items()}
    write_tensors(folder / "diffusion_pytorch_model.fp16.safetensors", half, {})
    assert "variant: fp16, the only one" in formats.load(folder).notes
    with pytest.raises(CheckpointError, match=r"holds no variant 'bf16', only fp16; name another"):
        WanVAE.from_pretrained(folder, variant="bf16")
    write_pickle(folder / "diffusion_pytorch_model.ema.bin", tensors)
    with pytest.raises(CheckpointError, match=r"holds the variants ema, fp16; choose with --varia"):
        WanVAE.from_pretrained(folder)
    assert main(["info", str(folder), "--variant", "fp16"]) == 0
    assert "float16" in capsys.readouterr().out
    write_tensors(folder / WEIGHTS, tensors, {})
    loaded = WanVAE.from_pretrained(folder)  # in the dtype of the plain file
    assert loaded.encode_dtype is torch.float64
    loaded = WanVAE.from_pretrained(folder, variant="fp16", dtype="float16")
    assert torch.equal(loaded.conv1.weight, half["quant_conv.weight"])


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", "wanvae.safetensors", "my own.safetensors"])
def test_single_files(vae: WanVAE, tmp_path: Path, name: str) -> None:
    """As in the official repositories: beside a transformer with the names of diffusers."""
    save = formats.save_native if name == "wanvae.safetensors" else formats.save_wan
    save(tmp_path / name, vae.config, vae.state_dict())
    if name != "my own.safetensors":
        (tmp_path / "config.json").write_text('{"_class_name": "WanModel"}')
        write_tensors(tmp_path / WEIGHTS, {"x": torch.zeros(1)}, {})
    assert_same(vae, WanVAE.from_pretrained(tmp_path))
    assert f"file: {name}" in formats.load(tmp_path).notes


def test_several_files(vae: WanVAE, tmp_path: Path) -> None:
    for name in ("a.pth", "b.safetensors"):
        formats.save_wan(tmp_path / name, vae.config, vae.state_dict())
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints \(a.pth, b.safetensors\); na"):
        WanVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is damaged or incomplete"),
        ('{"weight_map": {}}', "it has no weight_map, so it is no index"),
        (
            '{"weight_map": {"x": "../a.safetensors"}}',
            "'../a.safetensors', which is no file of tensors beside",
        ),
        ('{"weight_map": {"x": 1}}', "it names 1, which is no file of tensors beside it"),
        (f'{{"weight_map": {{"x": "{WEIGHTS}.index.json"}}}}', "which is no file of tensors"),
        ('{"weight_map": {"x": "gone.safetensors"}}', "gone.safetensors does not exist"),
        ('{"weight_map": {"y": "part.safetensors"}}', "its files do not hold y"),
    ],
)
def test_damaged_indices(folder: Path, content: str, message: str) -> None:
    take_weights(folder)
    write_tensors(folder / "part.safetensors", {"x": torch.zeros(1)}, {})
    (folder / f"{WEIGHTS}.index.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        WanVAE.from_pretrained(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_variants_of_what_has_none(vae: WanVAE, tmp_path: Path) -> None:
    formats.save_wan(tmp_path / "a.pth", vae.config, vae.state_dict())
    for path in (tmp_path, tmp_path / "a.pth"):
        with pytest.raises(
            CheckpointError, match=r"only diffusers models have variants like 'fp16'; leave it"
        ):
            WanVAE.from_pretrained(path, variant="fp16")


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_the_hub_has_parts_and_variants(
    hub: HubServer, vae: WanVAE, folder: Path, variant: str
) -> None:
    split(folder, "safetensors", variant)
    hub.root.joinpath("org").mkdir(parents=True)
    folder.rename(hub.root / "org" / "name")
    assert_same(vae, WanVAE.from_pretrained("org/name"))
    assert_same(vae, WanVAE.from_pretrained("org/name", variant=variant.strip(".") or None))
    with pytest.raises(CheckpointError, match=r"org/name has no variant 'x' of a Wan VAE in its"):
        WanVAE.from_pretrained("org/name", variant="x")
