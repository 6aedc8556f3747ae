"""Files in fewer bits, files of one half, and what lies beside the tensors of a model."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.reference import Reference, reference, write_gguf
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints import formats
from wanvae.checkpoints.latent_statistics import (
    OFFICIAL_STATISTICS,
    WAN21_MEAN,
    WAN22_MEAN,
    WAN22_STATISTICS,
    known_statistics,
)
from wanvae.commands.convert import convert
from wanvae.config import WAN22
from wanvae.engine.checkpoint import CheckpointError, open_tensors
from wanvae.errors import UserError
from wanvae.nn.kernels import precision

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


@pytest.fixture
def model() -> Reference:
    return reference("wan21_tiny")


@pytest.fixture(autouse=True)
def a_cpu_that_computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset())


# Fewer bits


@pytest.mark.parametrize("stored", [E4M3, E5M2])
def test_float8_becomes_bfloat16_unless_a_dtype_is_asked_for(
    tmp_path: Path, model: Reference, stored: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    rounded = {name: tensor.to(stored) for name, tensor in model.weights.items()}
    path = written(tmp_path / "a.safetensors", rounded)
    with caplog.at_level(logging.WARNING, logger="wanvae"):
        vae = WanVAE.from_pretrained(path)
    assert (vae.encode_dtype, vae.decode_dtype) == (torch.bfloat16, torch.bfloat16)
    name = str(stored).removeprefix("torch.")
    assert f"stored in {name}; converted to bfloat16, because no dtype" in caplog.text
    vae = WanVAE.from_pretrained(path, dtype=torch.float32)
    assert vae.decode_dtype is torch.float32
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, rounded[name].float())
    assert vae.decode(torch.zeros(1, 4, 1, 2, 2)).isfinite().all()


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("each", [False, True], ids=["one", "of each channel"])
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_scales_are_applied(
    tmp_path: Path, model: Reference, end: str, each: bool, prefix: str
) -> None:
    tensors, expected = {"scaled_fp8": torch.zeros(2).to(E4M3)}, {}
    for name, tensor in model.weights.items():
        expected[name] = tensor
        tensors[name] = tensor
        if name.endswith(".weight"):
            axes = tuple(range(1, tensor.dim()))
            scale = (tensor.abs().amax(axes) if each else tensor.abs().amax()) / 400
            spread = scale.reshape(-1, *(1,) * len(axes))
            tensors[name] = (tensor / spread).to(E4M3)
            expected[name] = tensors[name].float() * spread
            tensors[name.removesuffix("weight") + end] = scale
            tensors[name.removesuffix("weight") + "scale_input"] = torch.ones(())
    tensors = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    path = written(tmp_path / "a.safetensors", tensors)
    vae = WanVAE.from_pretrained(path, dtype=torch.float32)
    for name, tensor in vae.state_dict().items():
        assert torch.allclose(tensor, expected[name])
    posterior = vae.encode(model.video)
    full = WanVAE(vae.config)
    full.load_state_dict(expected)
    assert torch.allclose(posterior.mean, full.eval().encode(model.video).mean, atol=1e-4)
    notes = formats.load(path).notes
    assert any("float8_e4m3fn, with scales that were applied; converted to bf" in n for n in notes)
    assert not any("left unread" in note for note in notes)


def test_a_scale_that_does_not_fit_is_an_error(tmp_path: Path, model: Reference) -> None:
    scale = {"conv2.scale_weight": torch.ones(3)}
    path = written(tmp_path / "a.safetensors", model.weights | scale)
    with pytest.raises(UserError, match=r"scale of conv2.weight has the shape \(3,\)"):
        formats.load(path)
    path = written(
        tmp_path / "b.safetensors",
        model.weights | {"encoder.x.scale_weight": scale["conv2.scale_weight"]},
    )
    with pytest.raises(CheckpointError, match=r"scale of encoder\.x\.weight, which is missing"):
        WanVAE.from_pretrained(path)


@pytest.mark.parametrize(
    ("kind", "flat"),
    [
        *product(("F32", "F16", "BF16"), ("as they are", "original shape", "joined")),
        ("Q8_0", "original shape"),
    ],
)
def test_gguf(tmp_path: Path, model: Reference, kind: str, flat: str) -> None:
    expected = write_gguf(tmp_path / "a.gguf", model.weights, kind, flat)
    vae = WanVAE.from_pretrained(tmp_path / "a.gguf", dtype=torch.float32)
    for name, tensor in vae.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    storage = formats.load(tmp_path / "a.gguf").storage
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": "Q8_0"}
    assert storage.container == "gguf" and names[kind] in storage.kinds
    unasked = WanVAE.from_pretrained(tmp_path / "a.gguf")
    assert unasked.decode_dtype is (torch.bfloat16 if kind == "Q8_0" else torch.float32)
    assert unasked.decode(torch.zeros(1, 4, 1, 2, 2)).isfinite().all()


def test_gguf_of_other_types_needs_a_library(
    tmp_path: Path, model: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_gguf(tmp_path / "a.gguf", model.weights, "Q5_0", "original shape")
    vae = WanVAE.from_pretrained(tmp_path / "a.gguf", dtype=torch.float32)
    for name, tensor in vae.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r'pip install "wanvae\[gguf\]"'):
        WanVAE.from_pretrained(tmp_path / "a.gguf")


# Statistics beside the tensors


def statistics() -> dict[str, Tensor]:
    return {"mean": torch.tensor([1.0, 2, 3, 4]), "std": torch.tensor([1.0, 2, 0.5, 4])}


def beside() -> dict[str, dict[str, Tensor]]:
    mean, std = statistics().values()
    return {
        "mean and std": {"mean": mean, "std": std},
        "all": {"mean": mean, "std": std, "inv_std": 1 / std},
        "inverse": {"mean": mean, "inv_std": 1 / std},
        "pair": {"scale": torch.stack([mean, 1 / std])},
        "shape": {"latents_mean": mean[None, :, None, None, None], "latents_std": std},
    }


@pytest.mark.parametrize("name", beside())
@pytest.mark.parametrize("prefix", ["", "model."])
def test_statistics_of_a_file_are_used(
    tmp_path: Path, model: Reference, name: str, prefix: str
) -> None:
    tensors = {f"{prefix}{n}": t for n, t in model.weights.items()} | beside()[name]
    vae = WanVAE.from_pretrained(written(tmp_path / "a.safetensors", tensors))
    assert vae.config.latents_mean == (1, 2, 3, 4)
    assert vae.config.latents_std == pytest.approx((1, 2, 0.5, 4))
    vae.normalize(torch.zeros(1, 4, 1, 1, 1))  # without a warning
    notes = formats.load(tmp_path / "a.safetensors").notes
    assert any(note.startswith("latent statistics: of the file (") for note in notes)
    assert not any("left unread" in note for note in notes)


@pytest.mark.parametrize(
    "extra",
    [
        {"mean": torch.ones(4)},
        {"mean": torch.ones(3), "std": torch.ones(3)},
        {"mean": torch.ones(4), "std": torch.zeros(4)},
        {"mean": torch.full((4,), torch.nan), "std": torch.ones(4)},
        {"mean": torch.ones(4), "std": torch.ones(4), "inv_std": torch.full((4,), 3.0)},
        {"scale": torch.ones(1)},
        {"dynamic_feature_projection_heads.0.weight": torch.ones(2)},
    ],
    ids=lambda extra: ",".join(extra),
)
def test_what_is_no_statistic_is_named(
    tmp_path: Path, model: Reference, extra: dict[str, Tensor]
) -> None:
    path = written(tmp_path / "a.safetensors", model.weights | extra)
    checkpoint = formats.load(path)
    assert checkpoint.config.latents_mean == ()
    (note,) = (note for note in checkpoint.notes if "left unread" in note)
    assert all(name in note for name in extra)


def test_unexpected_tensors_of_the_model_stay_an_error(tmp_path: Path, model: Reference) -> None:
    extra = {"vae.decoder.extra": torch.ones(1)}
    tensors = {f"vae.{name}": tensor for name, tensor in model.weights.items()}
    with pytest.raises(CheckpointError, match=r"1 unexpected: decoder\.extra"):
        WanVAE.from_pretrained(written(tmp_path / "a.safetensors", tensors | extra))


# The rule for statistics


@pytest.mark.parametrize(
    ("config", "name", "assumed"),
    [
        (WanVAEConfig(), OFFICIAL_STATISTICS, False),
        (WanVAEConfig().only("decoder"), OFFICIAL_STATISTICS, False),
        (WanVAEConfig(upscale_factor=2).only("decoder"), OFFICIAL_STATISTICS, False),
        (WanVAEConfig(in_channels=4, out_channels=4).only("encoder"), OFFICIAL_STATISTICS, False),
        (WAN22, WAN22_STATISTICS, False),
        (WAN22.only("encoder"), WAN22_STATISTICS, False),
        (WAN22.only("decoder"), WAN22_STATISTICS, False),
        (WanVAEConfig(dim=24), "assumed to be the statistics of Wan2.1", True),
        (WanVAEConfig(dim=24).only("decoder"), "assumed to be the statistics of Wan2.1", True),
        (WanVAEConfig(decoder_dim=48), "assumed to be the statistics of Wan2.1", True),
        (replace(WAN22, dim=40, decoder_dim=64), "assumed to be the statistics of Wan2.2", True),
        (WanVAEConfig(z_dim=8), "none", True),
        (WanVAEConfig(num_res_blocks=1), "none", True),
        (WanVAEConfig(temporal_downsample=(True, True, False)), "none", True),
        (WanVAEConfig(dim_mult=(1, 2, 4), temporal_downsample=(False, True)), "none", True),
        (replace(WAN22, z_dim=16), "none", True),
    ],
)
def test_which_statistics_a_file_without_any_has(
    config: WanVAEConfig, name: str, assumed: bool
) -> None:
    statistics = known_statistics(config)
    assert name in statistics.note and statistics.assumed is assumed
    means = {"none": (), "Wan2.2": WAN22_MEAN}
    expected = next((mean for key, mean in means.items() if key in name), WAN21_MEAN)
    assert statistics.mean == expected


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A file like LightX2V's, but narrower."""
    vae = WanVAE(WanVAEConfig(dim=2))
    return written(tmp_path / "light.safetensors", vae.state_dict())


def test_normalizing_with_assumed_statistics_warns_once(narrow: Path, tmp_path: Path) -> None:
    vae = WanVAE.from_pretrained(narrow)
    assert vae.config.latents_mean == WAN21_MEAN
    latents = torch.zeros(1, 16, 1, 1, 1)
    with pytest.warns(UserWarning, match=r"assumed.*latent_statistics=.*--latent-stat"):
        normalized = vae.normalize(latents)
    assert torch.allclose(vae.denormalize(normalized), latents, atol=1e-6)  # without a warning
    vae.save_pretrained(tmp_path / "native.safetensors")
    WanVAE.from_pretrained(tmp_path / "native.safetensors").normalize(latents)
    again = WanVAE.from_pretrained(narrow)
    with pytest.warns(UserWarning, match="assumed"):
        again.denormalize(latents)


def test_statistics_can_be_named(narrow: Path, tmp_path: Path) -> None:
    latents = torch.ones(1, 16, 1, 1, 1)
    assert torch.equal(
        WanVAE.from_pretrained(narrow, latent_statistics="none").normalize(latents), latents
    )
    assert WanVAE.from_pretrained(narrow, latent_statistics="Wan2.1").config.latents_mean[0] < 0
    with pytest.raises(CheckpointError, match=r"wan2\.2 are 48 means .* 16 channels"):
        WanVAE.from_pretrained(narrow, latent_statistics="wan2.2")
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps({"latents_mean": [1] * 16, "latents_std": [2.0] * 16, "x": 1}))
    vae = WanVAE.from_pretrained(narrow, latent_statistics=file)
    assert vae.config.latents_std == (2.0,) * 16
    assert torch.equal(vae.normalize(latents), torch.zeros_like(latents))
    for content in (
        *("[]", '{"latents_mean": 1, "latents_std": [1]}', '{"latents_mean": [1]}'),
        *(f'{{"latents_mean": [{n}], "latents_std": [1]}}' for n in ("NaN", "1e999", "9" * 400)),
    ):
        file.write_text(content)
        with pytest.raises(CheckpointError, match="must hold latents_mean and latents_std"):
            WanVAE.from_pretrained(narrow, latent_statistics=file)
    file.write_text("{")
    with pytest.raises(CheckpointError, match=r"statistics\.json are no JSON"):
        WanVAE.from_pretrained(narrow, latent_statistics=file)
    with pytest.raises(CheckpointError, match=r"none, wan2\.1, wan2\.2, qwen-.* or a JSON file"):
        WanVAE.from_pretrained(narrow, latent_statistics="wan3")


# Halves


@pytest.mark.parametrize("name", ["wan21_tiny", "wan21_attn_tiny", "wan22_tiny"])
@pytest.mark.parametrize("layout", ["wan", "diffusers"])
def test_a_half_works_alone(tmp_path: Path, name: str, layout: str) -> None:
    model = reference(name)
    if layout == "diffusers" and "attn" in name:
        pytest.skip("diffusers has no such model")
    tensors = model.weights
    if layout == "diffusers":
        whole = written(tmp_path / "whole.safetensors", tensors)
        convert(whole, tmp_path / "diffusers", formats.Layout.DIFFUSERS)
        file = tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors"
        tensors = dict(open_tensors(file).tensors)
    projections = {"encoder": ("conv1.", "quant_conv."), "decoder": ("conv2.", "post_quant_conv.")}
    halves = {
        half: written(
            tmp_path / f"{half}.safetensors",
            {n: t for n, t in tensors.items() if n.startswith((f"{half}.", *projections[half]))},
        )
        for half in projections
    }
    encoder = WanVAE.from_pretrained(halves["encoder"])
    posterior = encoder.encode(model.video)
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    assert torch.allclose(moments, model.moments, atol=1e-4)
    decoder = WanVAE.from_pretrained(halves["decoder"])
    decoded = decoder.decode(posterior.mode(), clamp=False)
    assert torch.allclose(decoded, model.decoded, atol=1e-4)
    assert decoder.config.half == "decoder" and encoder.config.half == "encoder"
    assert encoder.config == WanVAE.from_pretrained(encoder_of(tmp_path, model)).config


def encoder_of(tmp_path: Path, model: Reference) -> Path:
    whole = written(tmp_path / "whole.safetensors", model.weights)
    convert(whole, tmp_path / "half.safetensors", formats.Layout.WAN, only="encoder")
    return tmp_path / "half.safetensors"


def test_the_missing_half_is_a_clear_error(tmp_path: Path, model: Reference) -> None:
    whole = written(tmp_path / "whole.safetensors", model.weights)
    video, latents = model.video, torch.zeros(1, 4, 1, 2, 2)
    for half, calls in {
        "encoder": ("decode", "stream_decode", "decode_step", "decoder_network"),
        "decoder": ("encode", "stream_encode", "encode_step", "encoder_network"),
    }.items():
        convert(whole, tmp_path / "half.safetensors", formats.Layout.NATIVE, only=half)
        vae = WanVAE.from_pretrained(tmp_path / "half.safetensors")
        assert vae.config.half == half
        missing = f"alone, so it cannot {calls[0]}: load a checkpoint that has the"
        value = latents if calls[0] == "decode" else video
        stream = getattr(vae, calls[1])
        for call in (
            lambda vae=vae, value=value, name=calls[0]: getattr(vae, name)(value),
            lambda stream=stream, value=value: stream().push(value),
            lambda vae=vae, value=value, name=calls[2]: getattr(vae, name)(value, None),
            getattr(vae, calls[3]),
            lambda vae=vae: vae(video),
        ):
            with pytest.raises(UserError, match=missing):
                call()
        assert vae.device.type == "cpu"
        assert vae.encode_dtype is vae.decode_dtype is torch.float32
        vae.train().freeze_encoder()
        vae.save_pretrained(tmp_path / "again.safetensors")
        again = WanVAE.from_pretrained(tmp_path / "again.safetensors")
        assert again.config == vae.config
        with pytest.raises(CheckpointError, match="diffusers layout has no half"):
            formats.save_diffusers(tmp_path / "d", vae.config, vae.state_dict())


def test_what_is_left_of_the_other_half_is_named(tmp_path: Path, model: Reference) -> None:
    tensors = {n: t for n, t in model.weights.items() if not n.startswith("encoder.")}
    checkpoint = formats.load(written(tmp_path / "a.safetensors", tensors))
    assert any("only the decoder" in n and "left unread: conv1.bias" in n for n in checkpoint.notes)
    WanVAE.from_pretrained(tmp_path / "a.safetensors").decode(torch.zeros(1, 4, 1, 2, 2))


def test_an_upscaling_decoder_alone(tmp_path: Path) -> None:
    vae = WanVAE(WanVAEConfig(dim=4, z_dim=2, upscale_factor=2))
    whole = written(tmp_path / "whole.safetensors", vae.state_dict())
    convert(whole, tmp_path / "half.safetensors", formats.Layout.WAN, only="decoder")
    decoder = WanVAE.from_pretrained(tmp_path / "half.safetensors")
    assert decoder.config.upscale_factor == 2
    assert decoder.decode(torch.zeros(1, 2, 1, 2, 2)).shape == (1, 3, 1, 32, 32)


def test_files_of_several_dtypes_compute_in_the_widest(tmp_path: Path, model: Reference) -> None:
    tensors = {
        name: tensor.bfloat16() if name.endswith("weight") else tensor
        for name, tensor in model.weights.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae = WanVAE.from_pretrained(written(tmp_path / "a.safetensors", tensors))
    assert vae.decode_dtype is torch.float32
    vae.decode(torch.zeros(1, 4, 1, 2, 2))
