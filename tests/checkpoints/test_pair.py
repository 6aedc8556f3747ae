"""Two models as one of colour and alpha, and LoRAs that are merged into a model (Wan-Alpha)."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers import WAN_ALPHA, tiny, tiny_autoencoder
from wanvae import WanVAE
from wanvae.checkpoints import formats
from wanvae.checkpoints.diffusers_layout import diffusers_names
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert
from wanvae.engine.checkpoint import CheckpointError

RANK = 3


@pytest.fixture
def base() -> WanVAE:
    torch.manual_seed(0)
    return tiny().float()


def other_decoder(vae: WanVAE, seed: int = 3) -> WanVAE:
    """The same model with another decoder."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(vae)
    for parameter in other.decoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return other


def official(path: Path, vae: WanVAE) -> Path:
    formats.save_wan(path, vae.config, vae.state_dict())
    return path


def latents() -> Tensor:
    return torch.randn(1, 2, 2, 4, 4, generator=torch.Generator().manual_seed(4))


# Pairs


@torch.no_grad()
def test_a_pair_of_files_is_one_model(tmp_path: Path, base: WanVAE) -> None:
    alpha = other_decoder(base)
    files = official(tmp_path / "rgb.safetensors", base), official(tmp_path / "alpha.pth", alpha)
    vae = WanVAE.from_pretrained(files[0], torch.float64, alpha=files[1])
    assert (vae.config.in_channels, vae.config.out_channels) == (3, 4)
    z = latents().double()
    decoded = vae.decode(z)
    colours, opacity = (copy.deepcopy(each).double().decode(z) for each in (base, alpha))
    expected = torch.cat([colours, opacity.mean(1, keepdim=True)], dim=1)
    torch.testing.assert_close(decoded, expected, atol=1e-12, rtol=0)
    report = convert(files[0], tmp_path / "pair.safetensors", Layout.NATIVE, alpha=files[1])
    assert not any("encoder" in note for note in report.notes)
    again = WanVAE.from_pretrained(tmp_path / "pair.safetensors", torch.float64)
    assert again.config == vae.config
    assert torch.equal(again.decode(z), decoded)
    assert set(again.state_dict()) == set(vae.state_dict())


def test_an_encoder_beside_alpha_is_not_needed_and_named_if_it_differs(
    tmp_path: Path, base: WanVAE
) -> None:
    alpha = other_decoder(base)
    nn.init.normal_(alpha.encoder.conv1.weight)
    files = official(tmp_path / "rgb.pth", base), official(tmp_path / "alpha.pth", alpha)
    report = convert(files[0], tmp_path / "pair.safetensors", Layout.NATIVE, alpha=files[1])
    assert report.notes[-1].startswith("the encoder beside the decoder of alpha is another one")
    assert "encoder.conv1.weight" in report.notes[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vae: tiny(dim=8), r"their decoders have different layers: decoder\.conv1\.weight"),
        (lambda vae: tiny(in_channels=4, out_channels=4), "needs two decoders of 3 channels"),
        (lambda vae: nn.init.normal_(vae.conv2.weight), r"the same latents: conv2\.weight differ"),
    ],
)
def test_models_that_are_no_pair_are_refused(
    tmp_path: Path, base: WanVAE, change: object, message: str
) -> None:
    alpha = other_decoder(base)
    changed = change(alpha)
    alpha = changed.float() if isinstance(changed, WanVAE) else alpha
    files = official(tmp_path / "rgb.pth", base), official(tmp_path / "alpha.pth", alpha)
    with pytest.raises(CheckpointError, match=rf"alpha\.pth cannot be the alpha.*{message}"):
        WanVAE.from_pretrained(files[0], alpha=files[1])


@pytest.mark.parametrize("tiny_one", ["rgb", "alpha"])
def test_a_tiny_autoencoder_is_no_half_of_a_pair(
    tmp_path: Path, base: WanVAE, tiny_one: str
) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("rgb", "alpha")}
    for name, path in files.items():
        (tiny_autoencoder() if name == tiny_one else base).float().save_pretrained(path)
    with pytest.raises(CheckpointError, match=r"alpha\.safetensors cannot be the alpha.*is a tiny"):
        WanVAE.from_pretrained(files["rgb"], alpha=files["alpha"])


def test_a_pair_is_known_without_its_config(tmp_path: Path) -> None:
    """As the node VAESave of ComfyUI writes it."""
    vae, path = tiny(**WAN_ALPHA).float(), tmp_path / "saved.safetensors"
    save_file({name: x.contiguous() for name, x in vae.state_dict().items()}, path)
    loaded = WanVAE.from_pretrained(path)
    assert loaded.config == vae.config
    latents = torch.randn(1, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decode(latents), vae.decode(latents))


@pytest.mark.parametrize("layout", [Layout.WAN, Layout.DIFFUSERS, Layout.QWEN_IMAGE])
def test_only_the_native_layout_holds_a_pair(tmp_path: Path, base: WanVAE, layout: Layout) -> None:
    files = official(tmp_path / "rgb.pth", base), official(tmp_path / "alpha.pth", base)
    target = tmp_path / ("a.pth" if layout is Layout.WAN else "a")
    with pytest.raises(CheckpointError, match=f"the {layout.value} layout has no alpha_decoder"):
        convert(files[0], target, layout, alpha=files[1])
    assert not target.exists()


# LoRAs


def matrices(weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The two matrices for a weight, with the shapes that PEFT gives them."""
    down = 0.3 * torch.randn((RANK, *weight.shape[1:]), generator=generator)
    ones = (1,) * (weight.dim() - 2)
    return down, 0.3 * torch.randn((len(weight), RANK, *ones), generator=generator)


def layers(vae: WanVAE, root: str = "decoder.") -> dict[str, Tensor]:
    return {
        name.removesuffix(".weight"): weight
        for name, weight in vae.state_dict().items()
        if name.startswith(root) and name.endswith(".weight")
    }


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The weight as Wan-Alpha's own code merges it: one product for each tap of the kernel."""
    result, up = weight.clone(), up.flatten(1)
    taps = result.flatten(2) if weight.dim() > 2 else result[..., None]
    for tap in range(taps.shape[2]):
        taps[:, :, tap] += scale * up @ down.flatten(2)[:, :, tap]
    return result


def wan_alpha_lora(path: Path, vae: WanVAE) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Writes a LoRA as Wan-Alpha does; returns the matrices of each decoder."""
    content: dict[str, Tensor] = {"middle.0.weight": torch.zeros(3)}
    used: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for seed, prefix in enumerate(("vae_fgr", "vae_pha")):
        generator = torch.Generator().manual_seed(seed)
        used[prefix] = {}
        for layer, weight in layers(vae).items():
            name = f"{prefix}.{layer}{'.conv3D' if weight.dim() == 5 else ''}"
            down, up = used[prefix][layer] = matrices(weight, generator)
            content[f"{name}.lora_A.default.weight"] = nn.Parameter(down)
            content[f"{name}.lora_B.default.weight"] = nn.Parameter(up)
            content[f"{name}.base_layer.weight"] = weight
        content[f"{prefix}.encoder.conv1.lora_A.default.weight"] = torch.zeros(1)
    torch.save(content, path)
    return used


@torch.no_grad()
def test_the_lora_of_wan_alpha_becomes_two_decoders(tmp_path: Path, base: WanVAE) -> None:
    source, lora = official(tmp_path / "base.pth", base), tmp_path / "Wan-Alpha-VAE.bin"
    used = wan_alpha_lora(lora, base)
    report = convert(source, tmp_path / "pair.safetensors", Layout.NATIVE, lora=lora)
    assert f"vae_pha.*: merged a LoRA of rank {RANK} into 30 layers" in report.notes
    vae = WanVAE.from_pretrained(tmp_path / "pair.safetensors")
    tensors, changed = vae.state_dict(), 0
    for name, weight in base.state_dict().items():
        if not name.startswith("decoder."):
            assert torch.equal(tensors[name], weight)
            continue
        layer = name.removesuffix(".weight")
        for prefix, inner in (("vae_fgr", name), ("vae_pha", f"decoder.alpha.{name[8:]}")):
            expected = weight
            if layer in used[prefix]:
                # The product is divided by the rank: lora_alpha is 1.
                expected = merged(weight, *used[prefix][layer], 1 / RANK)
                changed += 1
            torch.testing.assert_close(tensors[inner], expected, atol=1e-6, rtol=0)
    assert changed == 2 * 30
    assert vae.decode(latents()).shape == (1, 4, 5, 32, 32)


def plain_lora(vae: WanVAE, style: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA in the style of a trainer, and the weights that it changes as they are merged."""
    generator = torch.Generator().manual_seed(8)
    theirs = diffusers_names(len(vae.config.dim_mult), vae.config.num_res_blocks)
    content, expected = {}, {}
    for layer, weight in layers(vae, "").items():
        down, up = matrices(weight, generator)
        scale = 1.0
        if style == "peft":
            names = f"vae.{layer}.lora_A.weight", f"vae.{layer}.lora_B.weight"
        elif style == "diffusers":
            other = theirs[f"{layer}.weight"].removesuffix(".weight")
            names = f"{other}.lora_A.weight", f"{other}.lora_B.weight"
        else:
            flat = f"lora_vae_{layer.replace('.', '_')}"
            names = f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"
            content[f"{flat}.alpha"], scale = torch.tensor(6.0), 6 / RANK
        content |= dict(zip(names, (down, up), strict=True))
        expected[f"{layer}.weight"] = merged(weight, down, up, scale)
    return content, expected


@pytest.mark.parametrize("style", ["peft", "diffusers", "kohya"])
def test_plain_loras_are_merged(tmp_path: Path, base: WanVAE, style: str) -> None:
    source, lora = official(tmp_path / "base.pth", base), tmp_path / "lora.safetensors"
    content, expected = plain_lora(base, style)
    save_file(content, lora)
    convert(source, tmp_path / "merged.safetensors", Layout.NATIVE, lora=lora)
    tensors = formats.load(tmp_path / "merged.safetensors").tensors
    assert formats.load(tmp_path / "merged.safetensors").config.out_channels == 3
    for name, tensor in (base.state_dict() | expected).items():
        torch.testing.assert_close(tensors[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.weight": torch.ones(1)}, "it is no LoRA: it has a.weight"),
        (
            {f"blocks.0.self_attn.q.lora_{x}.weight": torch.ones(2, 2) for x in "AB"},
            r"1 of its layers are not of this model: blocks\.0\.self_attn\.q; it is a LoRA of ano",
        ),
        ({"decoder.conv1.lora_A.weight": torch.ones(2, 2)}, "one of the two matrices is missing"),
        (
            {f"decoder.conv1.lora_{x}.weight": torch.ones(2, 2) for x in "AB"},
            r"for decoder\.conv1\.weight are \(2, 2\) and \(2, 2\), which do not fit a weight",
        ),
        ({"decoder.conv1.hada_w1_a": torch.ones(2, 2)}, "only plain LoRAs can be merged"),
    ],
)
def test_what_cannot_be_merged_is_one_line(
    tmp_path: Path, base: WanVAE, content: dict[str, Tensor], message: str
) -> None:
    source, lora = official(tmp_path / "base.pth", base), tmp_path / "lora.safetensors"
    save_file({name: tensor.clone() for name, tensor in content.items()}, lora)
    with pytest.raises(CheckpointError, match=rf"lora\.safetensors: .*{message}"):
        convert(source, tmp_path / "merged.safetensors", Layout.NATIVE, lora=lora)
    assert not (tmp_path / "merged.safetensors").exists()


def test_a_pair_gets_no_second_decoder_of_alpha(tmp_path: Path, base: WanVAE) -> None:
    source, lora = tmp_path / "pair.safetensors", tmp_path / "Wan-Alpha-VAE.bin"
    config = replace(base.config, alpha_decoder=True, out_channels=4)
    WanVAE(config).save_pretrained(source)
    wan_alpha_lora(lora, base)
    with pytest.raises(CheckpointError, match="the model has one already"):
        convert(source, tmp_path / "b.safetensors", Layout.NATIVE, lora=lora)
