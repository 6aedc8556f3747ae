from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import WAN22
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints import formats
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert
from wanvae.engine.checkpoint import CheckpointError, write_tensors

ROOT = Path(__file__).parents[2]
TINY = WanVAEConfig(
    dim=4, z_dim=2, num_res_blocks=1, latents_mean=(0.5, 0.1), latents_std=(1.0, 2.0)
)


# What sets the other models of the family apart from Wan2.1.
FAMILY = [{}, WAN22, {"in_channels": 4, "out_channels": 4}, {"upscale_factor": 2}]


def saved(path: Path, config: WanVAEConfig = TINY, dtype: torch.dtype = torch.float32) -> WanVAE:
    vae = WanVAE(config)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter)
    vae = vae.to(dtype)
    vae.save_pretrained(path)
    return vae


def assert_bit_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("change", FAMILY, ids=str)
def test_a_round_trip_through_all_layouts_is_bit_equal(
    tmp_path: Path, dtype: torch.dtype, suffix: str, change: dict[str, object]
) -> None:
    native = tmp_path / "native.safetensors"
    expected = saved(native, replace(TINY, **change), dtype).state_dict()
    wan, diffusers, back = tmp_path / f"wan{suffix}", tmp_path / "vae", tmp_path / "b.safetensors"
    convert(native, wan, Layout.WAN)
    convert(wan, diffusers, Layout.DIFFUSERS)
    convert(diffusers, back, Layout.NATIVE)
    for path in (wan, diffusers, back):
        assert_bit_equal(formats.load(path).tensors, expected)


@pytest.mark.parametrize("change", [*FAMILY, {"dropout": 0.25}, {"dim_mult": (1, 2, 2, 3)}])
def test_diffusers_keeps_the_whole_config(tmp_path: Path, change: dict[str, object]) -> None:
    config = replace(TINY, **change)
    saved(tmp_path / "a.safetensors", config)
    convert(tmp_path / "a.safetensors", tmp_path / "vae", Layout.DIFFUSERS)
    assert formats.load(tmp_path / "vae").config == config


@pytest.mark.parametrize("channels", [3, 4])
def test_a_round_trip_through_qwen_image_is_bit_equal(tmp_path: Path, channels: int) -> None:
    native, qwen_image = tmp_path / "a.safetensors", tmp_path / "vae"
    config = replace(TINY, in_channels=channels, out_channels=channels)
    expected = saved(native, config).state_dict()
    report = convert(native, qwen_image, Layout.QWEN_IMAGE)
    assert report.renamed == report.tensors == len(expected)
    checkpoint = formats.load(qwen_image)
    assert checkpoint.layout is Layout.QWEN_IMAGE and checkpoint.config == config
    report = convert(qwen_image, native, Layout.NATIVE)
    assert report.source is Layout.QWEN_IMAGE and report.renamed == len(expected)
    assert formats.load(native).config == config
    assert_bit_equal(formats.load(native).tensors, expected)
    assert convert(qwen_image, tmp_path / "wan_vae", Layout.DIFFUSERS).renamed == 0


def test_the_report_counts_and_says_what_was_lost(tmp_path: Path) -> None:
    native = tmp_path / "a.safetensors"
    count = len(saved(native, replace(TINY, dropout=0.1)).state_dict())
    report = convert(native, tmp_path / "a.pth", Layout.WAN)
    assert (report.source, report.target) == (Layout.NATIVE, Layout.WAN)
    assert (report.tensors, report.renamed) == (count, 0)
    assert report.notes == ("not kept in the wan layout: dropout, latents_mean, latents_std",)
    report = convert(native, tmp_path / "vae", Layout.DIFFUSERS)
    assert (report.tensors, report.renamed, report.notes) == (count, count, ())


def test_the_dtype_of_what_is_written(tmp_path: Path) -> None:
    native = tmp_path / "a.safetensors"
    expected = saved(native, replace(TINY, norm="batch")).state_dict()
    convert(native, native, Layout.NATIVE, torch.bfloat16)
    for name, tensor in formats.load(native).tensors.items():
        whole = not expected[name].is_floating_point()
        assert torch.equal(tensor, expected[name] if whole else expected[name].bfloat16())


@pytest.mark.parametrize("target", ["out.safetensors", "out.pth", "out"])
def test_nothing_is_written_from_an_incomplete_model(tmp_path: Path, target: str) -> None:
    source = tmp_path / "a.safetensors"
    tensors = saved(tmp_path / "b.safetensors").state_dict()
    del tensors["decoder.middle.1.proj.bias"]
    write_tensors(source, tensors, {})
    layouts = {".safetensors": Layout.NATIVE, ".pth": Layout.WAN, "": Layout.DIFFUSERS}
    with pytest.raises(CheckpointError, match=r"1 missing: decoder\.middle\.1\.proj\.bias"):
        convert(source, tmp_path / target, layouts[Path(target).suffix])
    assert not (tmp_path / target).exists()


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the script as a person does; gives its exit status."""
    script = str(ROOT / "tools" / "convert_checkpoint.py")
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(script, run_name="__main__")
    return caught.value.code


def test_the_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    native, target = tmp_path / "a.safetensors", tmp_path / "vae"
    vae = saved(native)
    arguments = native, target, "--to", "diffusers", "--dtype", "bfloat16"
    assert run_tool(monkeypatch, *arguments) == 0
    count = len(vae.state_dict())
    assert capsys.readouterr().out == f"native to diffusers: {count} tensors, {count} renamed\n"
    expected = {n: t.bfloat16() for n, t in vae.state_dict().items()}
    assert_bit_equal(formats.load(target).tensors, expected)


def test_the_tool_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "no.pth"
    assert run_tool(monkeypatch, path, tmp_path / "b.pth", "--to", "wan") == 1
    assert capsys.readouterr().err == f"wanvae: {path} does not exist; check the path\n"
