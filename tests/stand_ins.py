"""Small stand-ins for the models, pipelines and videos that people have."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.helpers import randomize
from wanvae import WanVAE, WanVAEConfig
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert
from wanvae.video import write_video

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing these says is not ours
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

# Width of the texts of a pipeline.
TEXT = 16


def small_model() -> WanVAE:
    """One of few channels, but for its latents, in float32."""
    torch.manual_seed(0)
    vae = WanVAE(WanVAEConfig(dim=4, num_res_blocks=1))
    randomize(vae)
    return vae.eval()


def write_official(vae: WanVAE, path: Path) -> None:
    """Write a checkpoint as the official one is."""
    vae.save_pretrained(path.with_suffix(".safetensors"))
    convert(path.with_suffix(".safetensors"), path, Layout.WAN)
    path.with_suffix(".safetensors").unlink()


def write_waves(path: Path, frames: int, height: int, width: int, fps: int) -> None:
    """Write a video of colours that move."""
    t, y, x = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
    video = torch.stack([torch.sin(x / 9 + t / 3 + c) * torch.cos(y / 7) for c in range(3)])
    write_video(path, video, Fraction(fps))


def write_pipeline(vae: WanVAE, folder: Path) -> None:
    """Write a text-to-video pipeline with this VAE, as diffusers has it on the Hub."""
    torch.manual_seed(0)
    words = {"<pad>": 0, "<unk>": 1, "cat": 2, "grass": 3}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    text = UMT5Config(
        vocab_size=len(words), d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    pipeline = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=vae.as_diffusers(),
        scheduler=UniPCMultistepScheduler(flow_shift=3.0),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=vae.config.z_dim,
            out_channels=vae.config.z_dim,
            text_dim=TEXT,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=32,
        ).eval(),
    )
    pipeline.save_pretrained(folder)
