from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import helpers
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints import formats, model_file
from wanvae.checkpoints.architecture import infer_config
from wanvae.checkpoints.diffusers_layout import (
    DIFFUSERS_WEIGHTS,
    diffusers_names,
    read_diffusers_config,
    wan_config,
)
from wanvae.checkpoints.formats import Layout, load
from wanvae.checkpoints.latent_statistics import (
    NO_STATISTICS,
    OFFICIAL_STATISTICS,
    WAN21_MEAN,
    WAN22_STATISTICS,
    with_known_statistics,
)
from wanvae.checkpoints.model_file import INFERRED
from wanvae.config import WAN22
from wanvae.engine.checkpoint import CheckpointError, write_tensors
from wanvae.engine.files import FileError
from wanvae.errors import UserError
from wanvae.nn.kernels import precision

GOLDEN = Path(__file__).parents[1] / "golden"

TINY = WanVAEConfig(dim=4, z_dim=2)
TINY_WAN22 = replace(TINY, **helpers.WAN22)
TWO_STEPS = {"dim_mult": (1, 2, 2), "temporal_downsample": (True, False)}
# Architectures that official names can store, each different from the others in many ways.
CONFIGS = [
    WanVAEConfig(),
    TINY,
    WanVAEConfig(dim=8, z_dim=3, dim_mult=(1, 3, 2), temporal_downsample=(True, False)),
    WanVAEConfig(dim=6, dim_mult=(2, 2, 4, 4, 4), temporal_downsample=(False, True) * 2),
    WanVAEConfig(dim=4, num_res_blocks=1, in_channels=1, out_channels=5),
    WanVAEConfig(dim=4, num_res_blocks=3, attn_scales=(0.25,)),
    WanVAEConfig(dim=4, attn_scales=(0.125, 0.5, 2.0), temporal_downsample=(True, True, False)),
    WanVAEConfig(dim=2, dim_mult=(3,), temporal_downsample=()),
    WAN22,
    TINY_WAN22,
    WanVAEConfig(dim=4, stage_shortcuts=True, **TWO_STEPS),
    WanVAEConfig(dim=6, patch_size=2, stage_shortcuts=True, in_channels=4, **TWO_STEPS),
    WanVAEConfig(dim=4, decoder_dim=8, in_channels=4, out_channels=4),
    WanVAEConfig(dim=4, z_dim=2, **helpers.QWEN21),
    WanVAEConfig(dim=4, upscale_factor=2),
]


def names_of(config: WanVAEConfig) -> dict[str, str]:
    """What diffusers calls the tensors of a model."""
    return diffusers_names(
        len(config.dim_mult), config.num_res_blocks, nested=config.stage_shortcuts
    )


def shapes(config: WanVAEConfig) -> dict[str, Tensor]:
    """The state dict of a model, without memory."""
    with torch.device("meta"):
        return WanVAE(config).state_dict()


def random_vae(config: WanVAEConfig = TINY) -> WanVAE:
    vae = WanVAE(config).eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return vae


def official_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def diffusers_vae(name: str = "AutoencoderKLWan", **config: object) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing it and its dependencies says is not ours
        import diffusers

        return getattr(diffusers, name)(**config).eval()


def golden_json(name: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / name).read_text())


def golden_weights(name: str) -> dict[str, Tensor]:
    content = load_file(GOLDEN / name)
    prefix = "weights."
    return {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}


# Names


@pytest.mark.parametrize(
    ("config", "name"), [(WanVAEConfig(), "wan21_keys.json"), (WAN22, "wan22_keys.json")]
)
def test_our_names_and_shapes_are_the_official_ones(config: WanVAEConfig, name: str) -> None:
    ours = {name: list(tensor.shape) for name, tensor in shapes(config).items()}
    assert ours == golden_json(name)


def test_diffusers_names_and_shapes_are_diffusers() -> None:
    names = diffusers_names(4, 2)
    theirs = {names[n]: list(t.shape) for n, t in shapes(WanVAEConfig()).items()}
    assert theirs == golden_json("wan21_diffusers_keys.json")


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.attn_scales])
def test_diffusers_names_are_one_to_one_and_all_new(config: WanVAEConfig) -> None:
    names = names_of(config)
    assert shapes(config).keys() <= names.keys()
    assert len(set(names.values())) == len(names)
    assert all(ours != theirs for ours, theirs in names.items())


@pytest.mark.parametrize("config", [c for c in CONFIGS[1:] if not c.attn_scales and c.ndim == 3])
def test_diffusers_names_are_those_diffusers_makes(config: WanVAEConfig) -> None:
    values = wan_config(config)
    with torch.device("meta"):
        theirs = diffusers_vae(**{k: v for k, v in values.items() if not k.startswith("_")})
    names = names_of(config)
    expected = {names[n]: t.shape for n, t in shapes(config).items()}
    assert {n: t.shape for n, t in theirs.state_dict().items()} == expected


@pytest.mark.parametrize("channels", [3, 4])
def test_diffusers_names_are_those_of_qwen_image(channels: int) -> None:
    config = WanVAEConfig(in_channels=channels, out_channels=channels)
    with torch.device("meta"):
        theirs = diffusers_vae("AutoencoderKLQwenImage", input_channels=channels).state_dict()
    names = names_of(config)
    expected = {names[n]: t.shape for n, t in shapes(config).items()}
    assert {n: t.shape for n, t in theirs.items()} == expected


# Architecture


@pytest.mark.parametrize("config", CONFIGS)
def test_the_architecture_is_read_off_the_tensors(config: WanVAEConfig) -> None:
    assert infer_config(shapes(config)) == config


@pytest.mark.parametrize("name", ["wan21_tiny", "wan21_attn_tiny", "wan22_tiny"])
def test_the_architecture_of_reference_models(tmp_path: Path, name: str) -> None:
    weights = golden_weights(f"{name}.safetensors")
    checkpoint = load(official_file(tmp_path / "a.safetensors", weights))
    config = checkpoint.config
    assert checkpoint.layout is Layout.WAN
    assert config.dim == 8
    assert config.attn_scales == ((0.25,) if "attn" in name else ())
    steps = (True, True, False) if "attn" in name else (False, True, True)
    assert config.temporal_downsample == steps
    kind = (12, True, 2) if "wan22" in name else (None, False, 1)
    assert (config.decoder_dim, config.stage_shortcuts, config.patch_size) == kind
    assert INFERRED in checkpoint.notes
    WanVAE.from_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize("config", [TINY, CONFIGS[5], TINY_WAN22])
def test_any_missing_tensor_is_named(tmp_path: Path, config: WanVAEConfig) -> None:
    tensors = random_vae(config).state_dict()
    path = tmp_path / "a.safetensors"
    for name in [*list(tensors)[::17], "conv2.weight", "encoder.conv1.weight"]:
        official_file(path, {n: t for n, t in tensors.items() if n != name})
        with pytest.raises(CheckpointError, match=name):
            WanVAE.from_pretrained(path)


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    tensors = random_vae().state_dict()
    layer = "encoder.downsamples.4"
    kept = {n: t for n, t in tensors.items() if not n.startswith(f"{layer}.")}
    with pytest.raises(CheckpointError, match=f"{layer} is missing"):
        load(official_file(tmp_path / "a.safetensors", kept))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder.conv1.weight", (4,), r"encoder.conv1.weight is \(4,\), not the weight"),
        ("encoder.downsamples.3.residual.2.weight", (7, 4, 3, 3, 3), "no multiple of the 4"),
        ("decoder.conv1.weight", (1, 2, 3), "decoder.conv1.weight is float32"),
    ],
)
def test_a_misshapen_tensor_is_named(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    tensors = random_vae().state_dict() | {name: torch.zeros(shape)}
    path = official_file(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message):
        WanVAE.from_pretrained(path)


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    tensors = random_vae().state_dict() | {"encoder.extra": torch.zeros(1)}
    path = official_file(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"1 unexpected: encoder\.extra"):
        WanVAE.from_pretrained(path)


# Latent statistics


def test_the_official_architecture_has_the_official_statistics() -> None:
    config, note = with_known_statistics(WanVAEConfig())
    assert config.latents_mean[0] == -0.7571 and config.latents_std[15] == 1.916
    assert note == OFFICIAL_STATISTICS
    with torch.device("meta"):
        theirs = diffusers_vae().config
    assert config.latents_mean == tuple(theirs.latents_mean)
    assert config.latents_std == tuple(theirs.latents_std)


def test_wan22_has_its_statistics() -> None:
    config, note = with_known_statistics(WAN22)
    assert config.latents_mean[0] == -0.2289 and config.latents_mean[47] == -0.0667
    assert config.latents_std[0] == 0.4765 and config.latents_std[47] == 0.7744
    assert note == WAN22_STATISTICS


@pytest.mark.parametrize(
    "change", [{"in_channels": 4, "out_channels": 4}, {"upscale_factor": 2}], ids=str
)
def test_models_with_the_latents_of_wan21_have_its_statistics(change: dict[str, int]) -> None:
    config, note = with_known_statistics(WanVAEConfig(**change))
    assert config.latents_mean == WAN21_MEAN and note == OFFICIAL_STATISTICS


def test_another_architecture_has_none() -> None:
    assert with_known_statistics(TINY) == (TINY, NO_STATISTICS)


# Native


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, latents_mean=(0.1, -1.0), latents_std=(1e-3, 2.0), dropout=0.1),
        replace(TINY, attn_scales=(0.25,), num_res_blocks=1),
        replace(TINY, block="bottleneck", norm="batch", activation="gelu"),
        replace(TINY, ndim=2),
        TINY_WAN22,
        replace(TINY, upscale_factor=2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_keeps_everything(
    tmp_path: Path, config: WanVAEConfig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset())
    vae = random_vae(config).to(dtype)
    vae.save_pretrained(tmp_path / "a.safetensors")
    loaded = WanVAE.from_pretrained(tmp_path / "a.safetensors")
    assert loaded.config == config
    assert (loaded.encode_dtype, loaded.decode_dtype) == (dtype, dtype)
    assert all(p.requires_grad for p in loaded.parameters())
    for name, tensor in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"dim": 4, "depth": 2}', "unknown keys: depth"),
        ('{"dim": "4"}', "dim must be int, not '4'"),
        ('{"dim": 0}', "dim must be at least 1, not 0"),
        ("[]", "WanVAEConfig must be an object"),
        ("{", "no JSON"),
        ("[" * 200_000, "no JSON"),
    ],
)
def test_a_bad_native_config_is_explained(tmp_path: Path, config: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(1)}, {"format": "wanvae", "config": config})
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_native_without_config(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(1)}, {"format": "wanvae"})
    with pytest.raises(CheckpointError, match="no JSON"):
        load(tmp_path / "a")


# Other layouts and other files


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    names = ["encoder.down_blocks.0.resnets.0.norm1.weight", "b.weight", "c", "d"]
    path = official_file(tmp_path / "a.safetensors", {n: torch.ones(1) for n in names})
    with pytest.raises(CheckpointError, match=r"and 1 more; known are native.*wan.*diffusers"):
        load(path)


# Diffusers


def test_ours_loads_in_diffusers(tmp_path: Path) -> None:
    vae = random_vae(replace(TINY, latents_mean=(0.5, 1.0), latents_std=(2.0, 3.0)))
    formats.save_diffusers(tmp_path / "vae", vae.config, vae.state_dict())
    theirs = type(diffusers_vae(base_dim=4, z_dim=2)).from_pretrained(tmp_path / "vae")
    names = diffusers_names(4, 2)
    state = theirs.state_dict()
    assert len(state) == len(vae.state_dict())
    for name, tensor in vae.state_dict().items():
        assert torch.equal(state[names[name]], tensor)
    assert theirs.config.latents_mean == [0.5, 1.0]
    written = json.loads((tmp_path / "vae" / "config.json").read_text())
    expected = {key for key in theirs.config if key != "_name_or_path"}
    assert expected <= written.keys()


# What sets the Wan2.2 of diffusers apart.
THEIR_WAN22 = {
    "decoder_base_dim": 12,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}


@pytest.mark.parametrize("changes", [{}, THEIR_WAN22], ids=["wan21", "wan22"])
@pytest.mark.parametrize("safe", [True, False])
def test_theirs_loads_in_ours_and_decodes_the_same(
    tmp_path: Path, safe: bool, changes: dict[str, object]
) -> None:
    theirs = diffusers_vae(base_dim=8, z_dim=4, num_res_blocks=1, **changes)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "pipeline" / "vae", safe_serialization=safe)
    latents = torch.randn(1, 4, 2, 3, 4)
    with torch.no_grad():
        expected = theirs.decode(latents).sample
        for path in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
            ours = WanVAE.from_pretrained(path)
            assert torch.allclose(ours.decode(latents), expected, atol=1e-4)
    notes = load(tmp_path / "pipeline").notes
    assert any("another number of channels" in note for note in notes)


@pytest.mark.parametrize("config", [CONFIGS[2], TINY_WAN22, CONFIGS[-1]])
def test_a_bare_diffusers_file(tmp_path: Path, config: WanVAEConfig) -> None:
    vae = random_vae(config)
    formats.save_diffusers(tmp_path / "vae", config, vae.state_dict())
    checkpoint = load(tmp_path / "vae" / DIFFUSERS_WEIGHTS)
    assert checkpoint.layout is Layout.DIFFUSERS
    assert replace(checkpoint.config, latents_mean=(), latents_std=()) == config
    assert checkpoint.tensors.keys() == vae.state_dict().keys()


def test_the_statistics_of_a_diffusers_config_win() -> None:
    values = wan_config(WanVAEConfig())
    values["latents_mean"] = [2.0] * 16
    config, notes = read_diffusers_config(values)
    assert config.latents_mean == (2.0,) * 16 and notes == ()


def test_qwen_image_and_older_diffusers_configs() -> None:
    for content in (
        {"_class_name": "AutoencoderKLQwenImage", "input_channels": 3},
        {"_class_name": "AutoencoderKLWan", "base_dim": 96, "attn_scales": []},
    ):
        config, notes = read_diffusers_config(content)
        assert config.latents_mean == WAN21_MEAN
        assert notes == (OFFICIAL_STATISTICS,)


@pytest.mark.parametrize(
    ("unknown", "named"),
    [
        ({"clip_output": False}, "clip_output False"),  # as in Wan2.2-TI2V-5B-Diffusers
        ({"clip_output": True}, "clip_output True"),
        ({"use_tiling": True, "tile_sample_min_width": 256}, "use_tiling True, tile_sample_min"),
        ({"new_thing": None}, "new_thing None"),
        ({"new_things": []}, "new_things "),
        ({"scaling_factor": 1.0, "shift_factor": 0.0}, "scaling_factor 1.0, shift_factor 0.0"),
    ],
)
def test_unknown_keys_that_change_nothing_are_noted(
    tmp_path: Path, unknown: dict[str, object], named: str
) -> None:
    formats.save_diffusers(tmp_path / "vae", TINY, random_vae(TINY).state_dict())
    expected = load(tmp_path / "vae").config
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | unknown))
    checkpoint = load(tmp_path / "vae")
    assert checkpoint.config == expected
    assert any("it changes nothing" in note and named in note for note in checkpoint.notes)


@pytest.mark.parametrize("unknown", [{"scaling_factor": 0.18}, {"n": 0}, {"kind": "x"}])
def test_unknown_keys_that_may_change_the_result_are_refused(unknown: dict[str, object]) -> None:
    (name,) = unknown
    with pytest.raises(UserError, match=f"may change the result: {name} "):
        read_diffusers_config(wan_config(TINY) | unknown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_residual": 1}, "stage_shortcuts must be bool, not 1"),
        ({"input_channels": 3}, "keys that are not known .*: input_channels 3; delete"),
        ({"attn_scales": [0.25]}, r"attn_scales \[0.25\], but only \[\]"),
        ({"patch_size": 2}, "3 input and 3 output channels do not fit patches of 2"),
        ({"base_dim": "x"}, "dim must be int, not 'x'"),
        ({"new_thing": 1, "off": False}, "may change the result: new_thing 1; delete"),
        ({"_class_name": "AutoencoderKL"}, "is of AutoencoderKL, not AutoencoderKLWan"),
    ],
)
def test_a_diffusers_config_that_is_no_wan21_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(wan_config(TINY) | change))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("channels", [3, 4])
def test_qwen_image_is_read_and_written(tmp_path: Path, channels: int) -> None:
    options = {"base_dim": 4, "z_dim": 2, "num_res_blocks": 1, "input_channels": channels}
    theirs = diffusers_vae("AutoencoderKLQwenImage", **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    assert checkpoint.layout is Layout.QWEN_IMAGE
    config = checkpoint.config
    assert (config.in_channels, config.out_channels) == (channels, channels)
    formats.save_qwen_image(tmp_path / "ours", config, checkpoint.tensors)
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert again.config.input_channels == channels
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert {key for key in again.config if not key.startswith("_")} <= written.keys()
    ours, latents = WanVAE.from_pretrained(tmp_path / "ours"), torch.randn(1, 2, 2, 3, 4)
    with torch.no_grad():
        assert torch.allclose(ours.decode(latents), theirs.decode(latents).sample, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 4}, "no out_channels 3, only 4"),
        ({"decoder_dim": 8}, "no decoder_dim 8; use the native layout"),
        ({"upscale_factor": 2}, "no upscale_factor 2, only 1"),
        ({"stage_shortcuts": True}, "no stage_shortcuts True, only False"),
        ({"attn_scales": (0.25,)}, r"no attn_scales \(0.25,\), only \(\)"),
    ],
)
def test_what_qwen_image_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"the qwen-image layout has {message}"):
        formats.save_qwen_image(tmp_path / "a", replace(TINY, **change), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 2}, "no patch_size 2, only 1"),
        ({"out_channels": 12}, "no upscale_factor 1, only 2"),
        ({"upscale_factor": 3}, "no upscale_factor 3, only 1"),
        (
            {"stage_shortcuts": True, "in_channels": 4, "out_channels": 4},
            "no such model.* 4 and 4 channels, which may be channels of pixels or of patches",
        ),
    ],
)
def test_pixels_that_official_names_cannot_tell_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    config = replace(TINY, **change)
    with pytest.raises(CheckpointError, match=f"the wan layout has {message}"):
        formats.save_wan(tmp_path / "a.pth", config, shapes(config))


def test_diffusers_cannot_tell_wide_videos_from_upscaled_ones(tmp_path: Path) -> None:
    config = replace(TINY, out_channels=12)
    with pytest.raises(CheckpointError, match="the diffusers layout has no upscale_factor 1"):
        formats.save_diffusers(tmp_path / "a", config, shapes(config))


def test_incomplete_diffusers_directories(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither config\.json nor vae/config\.json"):
        load(tmp_path)
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="no JSON"):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(wan_config(TINY)))
    with pytest.raises(CheckpointError, match="holds neither diffusion_pytorch_model"):
        load(tmp_path)
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / DIFFUSERS_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 tensors do not belong .*: conv1\.weight"):
        load(tmp_path)


def test_only_a_wan_vae_is_written_over(tmp_path: Path) -> None:
    first, second = random_vae(), random_vae(replace(TINY, dim=2))
    target = tmp_path / "vae"
    for vae in (first, second):
        formats.save_diffusers(target, vae.config, vae.state_dict())
        assert load(target).config.dim == vae.config.dim
    assert len(list(target.iterdir())) == 2
    (target / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    with pytest.raises(FileError, match="it exists; name a new directory"):
        formats.save_diffusers(target, first.config, first.state_dict())


# What a layout cannot say


@pytest.mark.parametrize(
    "change", [{"block": "standard"}, {"norm": "layer"}, {"activation": "relu"}, {"ndim": 2}]
)
def test_what_a_layout_cannot_say_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    config = replace(TINY, **change)
    (value,) = change.values()
    with pytest.raises(CheckpointError, match=f"the wan layout has no .*{value}"):
        formats.save_wan(tmp_path / "a.pth", config, shapes(config))
    with pytest.raises(CheckpointError, match=f"the diffusers layout has no .*{value}"):
        formats.save_diffusers(tmp_path / "a", config, shapes(config))
    assert list(tmp_path.iterdir()) == []


def test_diffusers_cannot_have_attention_in_its_stages(tmp_path: Path) -> None:
    config = replace(TINY, attn_scales=(0.25,))
    with pytest.raises(CheckpointError, match="the diffusers layout has no attn_scales"):
        formats.save_diffusers(tmp_path / "a", config, shapes(config))


@pytest.mark.parametrize("name", ["a", "a.bin", "a.ckpt"])
def test_suffixes_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        formats.save_native(tmp_path / name, TINY, {})
    with pytest.raises(CheckpointError, match=r"must end in \.pth or \.safetensors"):
        formats.save_wan(tmp_path / name, TINY, {})


def test_a_config_that_is_not_text_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON"):
        load(tmp_path)
    for content in ([], {"_class_name": []}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"config\.json is of "):
            load(tmp_path)


def test_a_bug_in_reading_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path / "a.safetensors", helpers.tiny().state_dict(), {})

    def stumble(tensors: object) -> None:
        raise ValueError("zip() argument 2 is longer than argument 1")

    monkeypatch.setattr(model_file, "infer_config", stumble)
    with pytest.raises(ValueError, match="zip") as error:
        load(tmp_path / "a.safetensors")
    assert not isinstance(error.value, CheckpointError)


def test_a_model_is_the_same_in_every_file(tmp_path: Path) -> None:
    config = replace(TINY, latents_mean=(0.5, 1.0), latents_std=(2.0, 3.0))
    vae = WanVAE(config)
    vae.save_pretrained(tmp_path / "native.safetensors")
    formats.save_diffusers(tmp_path / "diffusers", config, vae.state_dict())
    digest = formats.identify(tmp_path / "native.safetensors")
    assert formats.identify(tmp_path / "diffusers") == digest
    other = WanVAE(replace(config, latents_mean=(0.5, 2.0)))
    other.load_state_dict(vae.state_dict())
    other.save_pretrained(tmp_path / "other.safetensors")
    assert formats.identify(tmp_path / "other.safetensors") != digest
