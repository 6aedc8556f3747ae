"""Latents as other programs cache them, each file as the program itself would write it."""

import gzip
import hashlib
import io
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


def musubi(folder: Path, latents: Tensor) -> Path:
    """Of musubi-tuner, with a condition of an image-to-video model."""
    channels, length, height, width = latents.shape
    latents = latents.bfloat16()
    shape = f"{length}x{height}x{width}_bfloat16"
    path = folder / "cat_00000-009_0040x0024_wan.safetensors"
    condition = torch.zeros(channels + 4, length, height, width, dtype=torch.bfloat16)
    tensors = {f"latents_image_{shape}": condition, f"latents_{shape}": latents.contiguous()}
    metadata = {"architecture": "wan", "width": "40", "height": "24", "frame_count": "9"}
    save_file(tensors, path, {**metadata, "format_version": "1.0.1"})
    save_file({"t5_bfloat16": torch.zeros(3, 4)}, folder / "cat_wan_te.safetensors")
    return path


def ai_toolkit(folder: Path, latents: Tensor) -> Path:
    """Of ai-toolkit, with the first frame."""
    path = folder / "_latent_cache" / "cat_N7yLGXkySkp4kIYmXN52MQ.safetensors"
    path.parent.mkdir()
    tensors = {
        "latent": latents.bfloat16().contiguous(),
        "first_frame_latent": latents[:, :1].bfloat16().contiguous(),
        "num_frames": torch.tensor(9, dtype=torch.int32),
    }
    save_file(tensors, path, {"filename": "cat.mp4", "latent_space_version": "wan21"})
    return path


def simpletuner(folder: Path, latents: Tensor) -> Path:
    """Of SimpleTuner."""
    path = folder / f"{hashlib.sha256(b'cat').hexdigest()}.pt"
    torch.save(latents.bfloat16(), path)
    return path


def packed_simpletuner(folder: Path, latents: Tensor) -> Path:
    """Of SimpleTuner, packed."""
    path = simpletuner(folder, latents)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def diffusion_pipe(folder: Path, latents: Tensor, *more: Tensor) -> Path:
    """Of diffusion-pipe. Returns the folder."""
    folder = folder / "cache_40x24x9" / "latents"
    folder.mkdir(parents=True)
    content, places = b"", []
    for number, clip in enumerate((latents, *more)):
        item = {
            "latents": clip.bfloat16().clone(),
            "image_spec": [None, f"/videos/cat{number or ''}.mp4"],
            "mask": None,
            "caption": ["a cat"],
        }
        buffer = io.BytesIO()
        torch.save(item, buffer)
        places.append((len(content), len(buffer.getvalue())))
        content += buffer.getvalue()
    (folder / "shard_0.bin").write_bytes(content)
    with closing(sqlite3.connect(folder / "metadata.db")) as database, database:
        database.execute("CREATE TABLE fingerprint(value)")
        database.execute("INSERT INTO fingerprint VALUES('0123456789abcdef')")
        database.execute("CREATE TABLE items(shard, shard_index)")
        database.execute("CREATE TABLE shard_0(offset, size)")
        database.executemany("INSERT INTO shard_0 VALUES(?, ?)", places)
        rows = ((0, number) for number in range(len(places)))
        database.executemany("INSERT INTO items VALUES(?, ?)", rows)
    return folder


def fastvideo(folder: Path, latents: Tensor, *more: Tensor) -> Path:
    """Of FastVideo."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    clips = [latents, *more]
    columns = {
        "id": [f"cat{number or ''}" for number in range(len(clips))],
        "vae_latent_bytes": [clip.float().numpy().tobytes() for clip in clips],
        "vae_latent_shape": [list(clip.shape) for clip in clips],
        "vae_latent_dtype": ["float32" for _ in clips],
        "caption": ["a cat" for _ in clips],
    }
    parquet.write_table(table(columns), folder / "data_chunk_0.parquet", compression="zstd")
    return folder / "data_chunk_0.parquet"


def comfyui(folder: Path, latents: Tensor) -> Path:
    """Of ComfyUI."""
    path = folder / "ComfyUI_00001_.latent"
    tensors = {
        "latent_tensor": latents[None].contiguous(),
        "latent_format_version_0": torch.empty(0),
    }
    save_file(tensors, path, {"prompt": "{}"})
    return path


def plain_pickle(folder: Path, latents: Tensor) -> Path:
    """Of people who save what a pipeline of diffusers gives."""
    torch.save(latents[None], folder / "latents.pt")
    return folder / "latents.pt"


def plain_dict(folder: Path, latents: Tensor) -> Path:
    """Of people who save a dict."""
    torch.save({"latents": latents, "prompt": "a cat"}, folder / "latents.pt")
    return folder / "latents.pt"


def plain_safetensors(folder: Path, latents: Tensor) -> Path:
    """Of people who save named tensors."""
    save_file({"latents": latents.contiguous()}, folder / "latents.safetensors")
    return folder / "latents.safetensors"


Write = Callable[[Path, Tensor], Path]
# What each program writes, and the scale that it is known to store.
PROGRAMS: dict[Write, str | None] = {
    musubi: "normalized",
    ai_toolkit: "normalized",
    simpletuner: "normalized",
    packed_simpletuner: "normalized",
    diffusion_pipe: "normalized",
    fastvideo: "raw",
    comfyui: None,
    plain_pickle: None,
    plain_dict: None,
    plain_safetensors: None,
}


def natural(channels: int = 16, length: int = 3, height: int = 8, width: int = 8) -> Tensor:
    """Normalized latents ``(channels, length, height, width)`` like the latents of a video.

    The mean and contrast of each channel are off by chance.
    """
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(channels, length, height, width, generator=generator)
    contrast = torch.rand(channels, 1, 1, 1, generator=generator) * 0.6 + 0.6
    mean = torch.randn(channels, 1, 1, 1, generator=generator) * 0.4
    return latents * contrast + mean


def raw(latents: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Raw latents of normalized ones."""
    return (
        latents * torch.tensor(std)[:, None, None, None] + (torch.tensor(mean)[:, None, None, None])
    )
