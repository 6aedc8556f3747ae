"""Data sets in the layouts of other programs: names, keys, scale and bytes; resumed and shared."""

import hashlib
import json
import os
import sqlite3
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.commands import outputs_of
from tests.helpers import launched, tiny
from wanvae import LatentDataset
from wanvae.checkpoints.latent_statistics import WAN21_MEAN, WAN21_STD
from wanvae.folders import manifest
from wanvae.video import read_video, write_video

LAYOUTS = ["musubi", "ai-toolkit", "simpletuner", "diffusion-pipe", "comfyui"]
LENGTHS = {"a.mp4": 11, "sub/b.mkv": 5}

Run = Callable[..., str]


def noise(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, frames, 24, 40, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint vae.safetensors with the latents of Wan2.1, and a folder of videos."""
    folder = tmp_path_factory.mktemp("files")
    statistics = {"latents_mean": WAN21_MEAN, "latents_std": WAN21_STD}
    tiny(z_dim=16, **statistics).float().save_pretrained(folder / "vae.safetensors")
    few(folder / "videos")
    return folder


def few(folder: Path) -> Path:
    """A folder of two videos and an image."""
    (folder / "sub").mkdir(parents=True)
    for seed, (name, length) in enumerate(LENGTHS.items()):
        write_video(folder / name, noise(length, seed), Fraction(16))
    write_video(folder / "c.png", noise(1, 2), Fraction(1))
    return folder


def command(files: Path, source: Path, target: Path, *options: object) -> list[str]:
    model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu"]
    return [str(x) for x in ("encode-dataset", source, target, *model, *options)]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], files: Path) -> Run:
    """Encode a folder (default: of ``files``); gives stdout, or stderr if it fails."""

    def run_command(
        target: Path, *options: object, source: Path = files / "videos", status: int = 0
    ) -> str:
        outputs = outputs_of(capsys, command(files, source, target, *options), status)
        return outputs[1 if status else 0]

    return run_command


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def latents_in(folder: Path) -> set[str]:
    """The names of all files but our lists."""
    lists = {"dataset.json", "index.jsonl", "failures.jsonl"}
    return contents(folder).keys() - lists


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def expected(run: Run, folder: Path) -> dict[str, Tensor]:
    """Normalized means of the clips, by the name of their source, in our own layout."""
    run(folder)
    return {clip.source: clip.latents for clip in LatentDataset(folder)}


# What is written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_back(
    tmp_path: Path, run: Run, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By ``LatentDataset``, as our own data set and as a cache of the program."""
    own = expected(run, tmp_path / "own")
    out = run(tmp_path / "out", "--layout", layout, "--store", "mean")
    assert "3 clips written, 0 were there, 0 failed" in out
    assert "note: " in out and "stores no variance of the latents and no times" in out
    dataset = LatentDataset(tmp_path / "out")
    for clip in dataset:
        assert (clip.latents - own[clip.source]).abs().max() < 2**-6
        assert clip.fps == (1 if clip.source == "c.png" else 16)
    (tmp_path / "out" / "dataset.json").unlink()
    scale = "raw" if layout == "comfyui" else None
    cache = LatentDataset(tmp_path / "out", scale=scale)
    assert len(cache) == len(dataset) == 3
    shapes = {tuple(latents.shape): latents for latents in own.values()}
    for clip in cache:
        assert clip.fps != clip.fps  # NaN
        assert (clip.latents - shapes[tuple(clip.latents.shape)]).abs().max() < 2**-6
    assert "taken as latents of Wan2.1" in caplog.text
    assert layout == "comfyui" or "its latents are normalized, as " in caplog.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_decode_reads_what_is_written(
    tmp_path: Path, files: Path, run: Run, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "out", "--layout", layout, "--store", "mean", "--store-dtype", "float32")
    run(tmp_path / "own")
    name = next(clip.file for clip in LatentDataset(tmp_path / "out").clips if "sub" in clip.source)
    path = tmp_path / "out" / name
    path = path.parent if layout == "diffusion-pipe" else path
    scale = ["--scale", "raw"] if layout == "comfyui" else []
    decoded = []
    for source, target, options in (
        (path, tmp_path / "out.mkv", scale),
        (tmp_path / "own" / "sub" / "b.mkv.safetensors", tmp_path / "own.mkv", []),
    ):
        model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu", "--crf", 0]
        arguments = [str(x) for x in ("decode", source, target, *model, *options)]
        assert ": 5 frames" in outputs_of(capsys, arguments, 0)[0]
        decoded.append(read_video(target)[0])
    assert (decoded[0] - decoded[1]).abs().max() < 5 / 255


def test_musubi_tuner(tmp_path: Path, run: Run) -> None:
    options = ["--layout", "musubi", "--frames", 5]
    run(tmp_path / "out", *options)
    assert latents_in(tmp_path / "out") == {
        "a_00000-005_0040x0024_wan.safetensors",
        "a_00005-005_0040x0024_wan.safetensors",
        "b_00000-005_0040x0024_wan.safetensors",
        "c_0040x0024_wan.safetensors",
    }
    path = tmp_path / "out" / "a_00005-005_0040x0024_wan.safetensors"
    ((name, latents),) = load_file(path).items()
    assert (name, latents.dtype) == ("latents_2x3x5_bfloat16", torch.bfloat16)
    metadata = metadata_of(path)
    assert json.loads(metadata.pop("wanvae"))["model"]
    assert metadata == {
        **{"architecture": "wan", "width": "40", "height": "24"},
        **{"format_version": "1.0.1", "frame_count": "5"},
    }
    run(tmp_path / "qi", *options, "--architecture", "qi", "--store-dtype", "float32")
    path = tmp_path / "qi" / "c_0040x0024_qi.safetensors"
    assert load_file(path).keys() == {"latents_1x3x5_float32"}
    metadata = metadata_of(path)
    assert metadata["architecture"] == "qwen_image" and "frame_count" not in metadata
    run(tmp_path / "small", *options, "--resize", "16x24")
    assert "c_0040x0024_wan.safetensors" in latents_in(tmp_path / "small")
    assert "a_00000-005_0024x0016_wan.safetensors" in latents_in(tmp_path / "small")


def test_ai_toolkit(tmp_path: Path, run: Run) -> None:
    options = ["--layout", "ai-toolkit", "--frames", 5, "--fps", 8, "--resize", "16x24"]
    out = run(tmp_path / "out", *options, "--architecture", "wan22_14b")
    assert "copy the files into the folder of the videos" in out
    # The settings of a data set of ai-toolkit with these frames, rate and bucket.
    settings = {
        **{"filename": "a.mp4", "scale_to_width": 27, "scale_to_height": 16},
        **{"crop_x": 1, "crop_y": 0, "crop_width": 24, "crop_height": 16},
        **{"latent_space_version": "wan22_14b", "latent_version": 1, "num_frames": 5, "fps": 8},
    }
    text = json.dumps(settings, sort_keys=True).encode()
    digest = hashlib.md5(text).digest()
    name = f"a_{urlsafe_b64encode(digest).decode().rstrip('=')}.safetensors"
    path = tmp_path / "out" / "_latent_cache" / name
    tensors = load_file(path)
    assert tensors.keys() == {"latent", "num_frames"}
    assert tensors["latent"].shape == (16, 2, 2, 3) and tensors["latent"].dtype == torch.bfloat16
    assert tensors["num_frames"].dtype == torch.int32 and tensors["num_frames"].item() == 5
    metadata = metadata_of(path)
    assert metadata["crop_x"] == "1" and metadata["format"] == "pt"
    assert (tmp_path / "out" / "sub" / "_latent_cache").is_dir() is False  # 5 frames at 16 are 3
    run(tmp_path / "qwen", "--layout", "ai-toolkit", "--architecture", "qwen_image")
    images = [path for path in (tmp_path / "qwen" / "_latent_cache").glob("c_*")]
    assert load_file(images[0])["latent"].shape == (16, 3, 5)
    assert [clip.shape for clip in LatentDataset(tmp_path / "qwen").clips][1] == (16, 1, 3, 5)


def test_one_clip_of_each_video(tmp_path: Path, run: Run) -> None:
    for layout in ("ai-toolkit", "simpletuner", "diffusion-pipe"):
        out = run(tmp_path / layout, "--layout", layout, "--frames", 5)
        assert "stores one clip of each video: the first; 1 other clips are left out" in out
        assert [clip.start for clip in LatentDataset(tmp_path / layout).clips] == [0, 0, 0]


def test_simpletuner(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", "--layout", "simpletuner")
    names = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abc"}
    assert latents_in(tmp_path / "out") == {
        f"{names['a']}.pt",
        f"sub/{names['b']}.pt",
        f"{names['c']}.pt",
    }
    latents = torch.load(tmp_path / "out" / f"{names['a']}.pt", weights_only=True)
    assert (tuple(latents.shape), latents.dtype) == ((16, 3, 3, 5), torch.bfloat16)


def test_diffusion_pipe(tmp_path: Path, files: Path, run: Run) -> None:
    out = run(tmp_path / "out", "--layout", "diffusion-pipe", "--frames", 5, "--shard-size", "600")
    assert "deletes a cache that does not have the fingerprint and the order" in out
    folder = tmp_path / "out" / "cache_40x24x5" / "latents"
    assert {path.name for path in folder.iterdir()} == {
        *("metadata.db", "shard_0.bin", "shard_1.bin")
    }
    with closing(sqlite3.connect(folder / "metadata.db")) as database:
        assert database.execute("SELECT value FROM fingerprint").fetchall() == [("wanvae",)]
        items = database.execute("SELECT shard, shard_index FROM items").fetchall()
        assert items == [(0, 0), (1, 0)]
        ((offset, size),) = database.execute("SELECT offset, size FROM shard_1").fetchall()
    content = (folder / "shard_1.bin").read_bytes()[offset : offset + size]
    item = torch.load(BytesIO(content), weights_only=True)
    assert item.keys() == {"latents", "image_spec", "mask", "caption"}
    assert item["latents"].shape == (16, 2, 3, 5) and item["mask"] is None
    assert item["image_spec"] == [None, str(files / "videos" / "sub" / "b.mkv")]


def test_comfyui(tmp_path: Path, run: Run) -> None:
    run(tmp_path / "out", "--layout", "comfyui", "--frames", 5)
    names = {"a.mp4.00000.latent", "a.mp4.00005.latent", "sub_b.mkv.00000.latent", "c.png.latent"}
    assert latents_in(tmp_path / "out") == names
    tensors = load_file(tmp_path / "out" / "a.mp4.00000.latent")
    assert tensors.keys() == {"latent_tensor", "latent_format_version_0"}
    assert tensors["latent_tensor"].shape == (1, 16, 2, 3, 5)
    assert tensors["latent_tensor"].dtype == torch.float32
    assert tensors["latent_format_version_0"].shape == (0,)


# Resumed, shared, edited


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_run_does_what_is_missing(tmp_path: Path, run: Run, layout: str) -> None:
    options = ["--layout", layout]
    run(tmp_path / "out", *options)
    before = contents(tmp_path / "out")
    clip = LatentDataset(tmp_path / "out").clips[-1]
    (tmp_path / "out" / clip.file).unlink()
    assert "1 clips written, 2 were there" in run(tmp_path / "out", *options)
    assert contents(tmp_path / "out") == before
    assert "0 clips written, 3 were there" in run(tmp_path / "out", *options)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "diffusion-pipe"])
def test_an_edited_video_is_encoded_again(tmp_path: Path, run: Run, layout: str) -> None:
    """Without files of its earlier state, whose names may differ."""
    source = few(tmp_path / "in")
    run(tmp_path / "out", "--layout", layout, source=source)
    write_video(source / "a.mp4", noise(17, 9), Fraction(16))
    assert "1 clips written, 2 were there" in run(
        tmp_path / "out", "--layout", layout, source=source
    )
    run(tmp_path / "new", "--layout", layout, source=source)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_edits_that_keep_a_name_and_edits_that_change_one(tmp_path: Path, run: Run) -> None:
    """Each would delete the index, in which the other finds the files of its earlier state."""
    source, options = few(tmp_path / "in"), ["--layout", "musubi"]
    run(tmp_path / "out", *options, source=source)
    write_video(source / "a.mp4", noise(17, 9), Fraction(16))
    write_video(source / "sub" / "b.mkv", noise(LENGTHS["sub/b.mkv"], 8), Fraction(16))
    assert "2 clips written, 1 were there" in run(tmp_path / "out", *options, source=source)
    run(tmp_path / "new", *options, source=source)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_an_edited_video_is_refused_by_files_of_many_clips(tmp_path: Path, run: Run) -> None:
    source = few(tmp_path / "in")
    run(tmp_path / "out", "--layout", "diffusion-pipe", source=source)
    write_video(source / "a.mp4", noise(11, 9), Fraction(16))
    err = run(tmp_path / "out", "--layout", "diffusion-pipe", source=source, status=1)
    assert "videos were added, removed or changed" in err


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_write_the_same(tmp_path: Path, files: Path, run: Run, layout: str) -> None:
    run(tmp_path / "one", "--layout", layout)
    arguments = command(files, files / "videos", tmp_path / "two", "--layout", layout)
    result = subprocess.run(
        launched(*arguments), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [0, 30, 0.8])
def test_a_damaged_file_stops_the_next_run(
    tmp_path: Path, run: Run, layout: str, kept: float
) -> None:
    run(tmp_path / "out", "--layout", layout)
    path = tmp_path / "out" / LatentDataset(tmp_path / "out").clips[0].file
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    err = run(tmp_path / "out", "--layout", layout, status=1)
    assert f"{path} is damaged (" in err and err.count("\n") == 1


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["musubi", "--store", "moments"], "store must be mean or sample with layout 'musubi'"),
        (["musubi", "--scale", "raw"], "scale must be normalized with layout 'musubi', because"),
        (["comfyui", "--scale", "normalized"], "scale must be raw with layout 'comfyui'"),
        (["simpletuner", "--container", "tar"], "container must be files with layout"),
        (["musubi", "--architecture", "flux"], "architecture must be wan or qi or kr2"),
        (["comfyui", "--architecture", "wan"], "ComfyUI does not tell models apart; leave out"),
        (["wanvae", "--architecture", "wan"], "architecture must be empty with layout"),
    ],
)
def test_what_a_layout_cannot_hold(
    tmp_path: Path, run: Run, options: list[str], message: str
) -> None:
    assert message in run(tmp_path / "out", "--layout", *options, status=1)


def test_a_model_that_a_program_does_not_know(tmp_path: Path, run: Run) -> None:
    tiny().float().save_pretrained(tmp_path / "vae.safetensors")
    options = ["--layout", "musubi", "--checkpoint", tmp_path / "vae.safetensors"]
    err = run(tmp_path / "out", *options, status=1)
    assert "no model of musubi-tuner is known whose latents have 2 channels; name it with" in err


def test_files_with_one_name_are_failures(tmp_path: Path, run: Run) -> None:
    source = few(tmp_path / "in")
    os.link(source / "a.mp4", source / "sub" / "a.mp4")
    out = run(tmp_path / "out", "--layout", "musubi", source=source)
    assert "3 clips written, 0 were there, 1 failed" in out
    assert "musubi-tuner would call its latents a_00000-009_0040x0024_wan.safetensors" in out
    assert "like the latents of a.mp4; rename one of them" in out


def test_a_wrong_number_of_frames_in_a_header_is_a_failure(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the file would tell it."""
    source = few(tmp_path / "in")
    probe = manifest.probe

    def lie(path: Path) -> object:
        info = probe(path)
        return replace(info, frames=17) if str(path).endswith("a.mp4") else info

    monkeypatch.setattr(manifest, "probe", lie)
    out = run(tmp_path / "out", "--layout", "musubi", source=source)
    assert "2 clips written, 0 were there, 1 failed" in out
    assert "it has 9 frames, not 17 as its header says" in out
