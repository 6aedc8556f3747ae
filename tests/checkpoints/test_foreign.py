"""A file of something else is told by name."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wanvae import WanVAE
from wanvae.engine.checkpoint import CheckpointError

Shapes = dict[str, tuple[int, ...]]
SD = {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}
UNET = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
CLIP = {"text_model.encoder.layers.0.self_attn.q_proj.weight": (4, 4)}
T5 = {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4), "shared.weight": (5, 4)}

# Names and shapes as loaders of public programs expect them, in a small part of each file.
FILES: dict[str, tuple[Shapes, str]] = {
    "SD": (SD, "a Stable Diffusion VAE: 2D, 4 channels"),
    "SD in an all-in-one": (
        {f"first_stage_model.{name}": shape for name, shape in SD.items()}
        | UNET
        | {f"cond_stage_model.transformer.{name}": shape for name, shape in CLIP.items()},
        "a Stable Diffusion VAE: 2D, 4 channels (SD or SDXL) and a UNet of Stable Diffusion, the "
        "diffusion model and not its VAE and a text encoder (CLIP)",
    ),
    "SD in diffusers": (
        SD | {"encoder.down_blocks.0.resnets.0.norm1.weight": (128,)},
        "a Stable Diffusion VAE: 2D, 4 channels",
    ),
    "Flux": ({"decoder.conv_in.weight": (512, 16, 3, 3)}, "a Flux or SD3 VAE: 2D, 16 channels"),
    "Flux.2": ({"decoder.conv_in.weight": (512, 32, 3, 3)}, "a Flux.2 VAE: 2D, 32 channels"),
    "HunyuanVideo": (
        {
            "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
            "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
            "decoder.mid_block.resnets.0.norm1.weight": (512,),
        },
        "a HunyuanVideo VAE: 16 channels",
    ),
    "LTX": (
        {
            "decoder.conv_in.conv.weight": (512, 128, 3, 3, 3),
            "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": (512, 512, 3, 3, 3),
            "per_channel_statistics.mean-of-means": (128,),
        },
        "an LTX VAE",
    ),
    "CogVideoX": (
        {
            "decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
            "decoder.mid_block.resnets.0.norm1.norm_layer.weight": (512,),
        },
        "a CogVideoX VAE",
    ),
    "CogVideoX of its own code": (
        {
            "first_stage_model.decoder.conv_in.conv.weight": (512, 16, 3, 3, 3),
            "first_stage_model.decoder.mid.block_1.norm1.norm_layer.weight": (512,),
        },
        "a CogVideoX VAE",
    ),
    "HunyuanVideo 1.5": (
        {
            "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
            "encoder.down_blocks.0.resnets.0.norm1.gamma": (128, 1, 1, 1),
        },
        "a VAE of another video model (HunyuanVideo or LTX)",
    ),
    "Cosmos in diffusers": ({"decoder.conv_in.conv_s.weight": (8, 16, 1, 3, 3)}, "a Cosmos"),
    "a later part of Wan": ({"blocks.20.attn1.to_q.weight": (4, 4)}, "a transformer of Wan"),
    "VACE": ({"vace_blocks.0.self_attn.q.weight": (4, 4)}, "a transformer of Wan"),
    "CLIP of Wan with its text encoder": (
        {
            "textual.blocks.0.attn.q.weight": (2, 2),
            "visual.transformer.0.attn.to_qkv.weight": (6, 2),
        },
        "an image encoder (CLIP)",
    ),
    "LoRA of old diffusers": ({"unet.mid.attn1.to_q_lora.down.weight": (2, 4)}, "a LoRA"),
    "LoRA of differences": ({"diffusion_model.blocks.0.self_attn.q.diff_b": (4,)}, "a LoRA"),
    "Mochi": ({"blocks.2.blocks.3.stack.5.weight": (4, 4, 3, 3, 3)}, "a Mochi VAE"),
    "Mochi encoder": ({"layers.4.layers.1.attn_block.attn.qkv.weight": (6, 2)}, "a Mochi VAE"),
    "Cosmos": ({"decoder.unpatcher3d.wavelets": (2,)}, "a Cosmos tokenizer"),
    "UNet": (UNET, "a UNet of Stable Diffusion"),
    "UNet in diffusers": (
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (4, 4)},
        "a UNet of Stable Diffusion",
    ),
    "Wan": (
        {"patch_embedding.weight": (4, 16, 1, 2, 2), "blocks.0.self_attn.q.weight": (4, 4)},
        "a transformer of Wan, the diffusion model and not its VAE",
    ),
    "Wan in diffusers": (
        {"condition_embedder.time_embedder.linear_1.weight": (4, 4)},
        "a transformer of Wan",
    ),
    "Wan of ComfyUI": (
        {"model.diffusion_model.blocks.0.self_attn.q.weight": (4, 4)},
        "a transformer of Wan",
    ),
    "Flux transformer": ({"double_blocks.0.img_attn.qkv.weight": (6, 2)}, "a transformer of Flux"),
    "Hunyuan transformer": (
        {"double_blocks.0.img_attn_qkv.weight": (6, 2)},
        "a transformer of Flux or HunyuanVideo",
    ),
    "Qwen-Image": (
        {"transformer_blocks.0.attn.add_q_proj.weight": (2, 2)},
        "a transformer of Qwen-Image",
    ),
    "T5": (T5, "a text encoder (T5 or UMT5)"),
    "UMT5 of Wan": (
        {"token_embedding.weight": (5, 4), "blocks.0.attn.q.weight": (4, 4)},
        "a text encoder (T5 or UMT5)",
    ),
    "CLIP": (CLIP, "a text encoder (CLIP)"),
    "CLIP of Wan": ({"visual.transformer.0.attn.to_qkv.weight": (6, 2)}, "an image encoder (CLIP)"),
    "CLIP vision": (
        {"vision_model.encoder.layers.0.self_attn.q_proj.weight": (2, 2)},
        "an image encoder (CLIP)",
    ),
    "Qwen": ({"model.layers.0.self_attn.q_proj.weight": (2, 2)}, "a language model"),
    "LoRA": (
        {
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight": (2, 4),
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight": (4, 2),
        },
        "a LoRA; it changes another model; merge it into that model: wanvae convert MODEL OUT",
    ),
    "LoRA of Kohya": (
        {"lora_unet_blocks_0_self_attn_q.lora_down.weight": (2, 4)},
        "a LoRA",
    ),
    "LoRA of a Wan VAE": (
        {"vae_fgr.decoder.upsamples.0.residual.2.lora_A.weight": (2, 4, 3, 3, 3)},
        "a LoRA",
    ),
    "motion": (
        {"encoder.model.0.weight": (4, 3, 3), "quantizer.layers.0.codebook": (5, 2)},
        "a motion tokenizer; python -m motion reads it",
    ),
    "latents": ({"latents_3x4x5_bfloat16": (16, 3, 4, 5)}, "latents, not a model"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_wrong_file_is_told_by_name(tmp_path: Path, name: str, suffix: str) -> None:
    shapes, expected = FILES[name]
    tensors = {name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    pattern = rf"a{suffix}: it holds no Wan VAE. It is {re.escape(expected)}"
    with pytest.raises(CheckpointError, match=pattern) as caught:
        WanVAE.from_pretrained(path)
    assert "\n" not in str(caught.value)


def test_only_the_most_particular_kind_is_told(tmp_path: Path) -> None:
    for name in ("CogVideoX", "LTX", "HunyuanVideo", "SD"):
        shapes, _ = FILES[name]
        save_file({n: torch.zeros(s) for n, s in shapes.items()}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError) as caught:
            WanVAE.from_pretrained(tmp_path / "a.safetensors")
        assert " and " not in str(caught.value)


DOWNLOADS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "a pointer of Git LFS",
    b"<!DOCTYPE html><html>": "a web page",
    b"Entry not found": "the answer of a server",
}


@pytest.mark.parametrize("content", DOWNLOADS)
def test_what_a_failed_download_leaves_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"no checkpoint: it is {DOWNLOADS[content]}"):
        WanVAE.from_pretrained(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a.npy", "an archive that torch.save did not write"), ("x/constants.pkl", "TorchScript")],
)
def test_archives_of_other_programs_are_told(tmp_path: Path, name: str, reason: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr(name, b"0")
    with pytest.raises(CheckpointError, match=reason):
        WanVAE.from_pretrained(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", 1000 * "encoder.downsamples.0.", 10**6 * "x"])
def test_strange_names_end_in_a_short_line(tmp_path: Path, name: str) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no layout of a Wan VAE") as caught:
        WanVAE.from_pretrained(tmp_path / "a.safetensors")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2000


def test_a_tensor_alone_is_told(tmp_path: Path) -> None:
    torch.save(torch.zeros(16, 1, 2, 2), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="It is latents, not a model"):
        WanVAE.from_pretrained(tmp_path / "a.pt")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="is a pipe"):
        WanVAE.from_pretrained(tmp_path / "a.pth")
