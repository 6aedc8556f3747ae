"""Latents of other programs: found by content, read as stored, and refused in one line."""

import gzip
import io
import os
import pickle
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.full_disk import TOLD, fill_up
from tests.latents.caches import (
    PROGRAMS,
    Write,
    comfyui,
    diffusion_pipe,
    fastvideo,
    musubi,
    natural,
    packed_simpletuner,
    plain_pickle,
    simpletuner,
)
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.storage.temporary_files import FullDiskError
from wanvae.latents.cached import find_cache
from wanvae.latents.reading import open_latents

LATENTS = natural(length=3, height=3, width=5)


def read(path: Path, channels: int | None = 16, entry: str | None = None) -> Tensor:
    with open_latents(path, channels, entry) as latents:
        assert (latents.video, latents.times) == (None, ())
        return latents.piece(0, latents.length)[0]


@pytest.mark.parametrize("write", PROGRAMS)
@pytest.mark.parametrize("channels", [16, None])
def test_every_program_is_read(tmp_path: Path, write: Write, channels: int | None) -> None:
    path = write(tmp_path, LATENTS)
    with open_latents(path, channels) as latents:
        assert (latents.channels, latents.length, latents.height, latents.width) == (16, 3, 3, 5)
        scale = {True: "normalized", False: "raw", None: None}[latents.normalized]
        assert scale == PROGRAMS[write]
        for start, end in ((0, 1), (1, 3)):
            piece = latents.piece(start, end)
            assert piece.dtype is torch.float32
            assert (piece[0] - LATENTS[:, start:end]).abs().max() < 2**-6


@pytest.mark.parametrize("beginning", [b"\x80\x02", b"\x80\x04", b"\x80\x05"])
def test_safetensors_that_begin_as_pickles_do(tmp_path: Path, beginning: bytes) -> None:
    """Files begin with the size of their header, whose bytes may be any."""
    path = tmp_path / "a.safetensors"
    for length in range(0, 2000, 4):
        save_file({"latents_3x3x5_float32": LATENTS}, path, {"note": length * "x"})
        if path.read_bytes().startswith(beginning):
            break
    assert path.read_bytes().startswith(beginning)
    assert torch.equal(read(path), LATENTS)


@pytest.mark.parametrize("write", PROGRAMS)
def test_a_folder_is_read_like_its_file(tmp_path: Path, write: Write) -> None:
    """Other files of the program are left out."""
    write(tmp_path, LATENTS)
    save_file({"text_embeds": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    (tmp_path / "notes.txt").write_text("no latents")
    cache = find_cache(tmp_path, 16)
    assert len(cache.clips) == 1 and cache.others[".safetensors"] in (1, 2)
    assert (read(tmp_path) - LATENTS).abs().max() < 2**-6


@pytest.mark.parametrize("write", [diffusion_pipe, fastvideo])
def test_one_of_several_clips_is_named(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path, LATENTS, 2 * LATENTS, 3 * LATENTS)
    with pytest.raises(CheckpointError, match="3 clips; choose one with --entry: cat, cat1, cat2"):
        read(path)
    with pytest.raises(CheckpointError, match="no clip 'dog'; choose one with --entry: cat, cat1"):
        read(path, entry="dog")
    assert (read(path, entry="cat1") - 2 * LATENTS).abs().max() < 2**-5


def test_clips_of_a_batch_have_numbers(tmp_path: Path) -> None:
    save_file({"latent_tensor": torch.stack([LATENTS, -LATENTS])}, tmp_path / "a.latent")
    assert [clip.name for clip in find_cache(tmp_path / "a.latent", 16).clips] == ["a.0", "a.1"]
    assert torch.equal(read(tmp_path / "a.latent", entry="a.1"), -LATENTS)


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((16, 3, 3, 5), 16, [(16, 3, 3, 5)]),
        ((16, 3, 3, 5), None, [(16, 3, 3, 5)]),
        ((3, 16, 3, 5), 16, 3 * [(16, 1, 3, 5)]),
        ((3, 16, 3, 5), None, 3 * [(16, 1, 3, 5)]),
        ((1, 16, 3, 5), 16, [(16, 1, 3, 5)]),
        ((16, 16, 3, 5), 16, [(16, 16, 3, 5)]),
        ((16, 3, 5), 16, [(16, 1, 3, 5)]),
        ((2, 16, 3, 3, 5), 16, 2 * [(16, 3, 3, 5)]),
        ((2, 3, 2, 5), 2, [(2, 3, 2, 5)]),
    ],
)
def test_the_channels_of_the_model_tell_the_axes(
    tmp_path: Path, shape: tuple[int, ...], channels: int | None, expected: list[tuple[int, ...]]
) -> None:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.save(latents, tmp_path / "a.pt")
    clips = find_cache(tmp_path / "a.pt", channels).clips
    assert [clip.shape for clip in clips] == expected
    flat = torch.stack([clip.load() for clip in clips]).flatten()
    assert torch.equal(flat, latents.flatten())


def test_a_video_that_may_be_images_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(natural(length=16), tmp_path / "a.pt")
    read(tmp_path / "a.pt")
    assert "a.pt: its latents are read as a video (z_dim, T, H, W), not as images" in caplog.text


# What is refused


def refused(path: Path, reason: str, channels: int | None = 16) -> None:
    with pytest.raises(CheckpointError, match=reason) as error, open_latents(path, channels):
        pass
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600


@pytest.mark.parametrize(
    ("channels", "family"),
    [
        (4, "Stable Diffusion"),
        (16, r"Wan2\.1 or Qwen-Image"),
        (48, r"Wan2\.2"),
        (128, "LTX-Video"),
        (12, "Mochi"),
    ],
)
@pytest.mark.parametrize("write", [comfyui, plain_pickle])
def test_channels_tell_whose_latents_they_are(
    tmp_path: Path, write: Write, channels: int, family: str
) -> None:
    path = write(tmp_path, natural(channels))
    other = 16 if channels != 16 else 48
    refused(path, f"{channels} channels, but this model has {other} .*{family}", other)


def test_latents_of_other_models_are_refused_by_their_names(tmp_path: Path) -> None:
    metadata = {"architecture": "hunyuan_video"}
    save_file({"latents_3x3x5_float32": LATENTS}, tmp_path / "a.safetensors", metadata)
    refused(tmp_path / "a.safetensors", "holds latents of hunyuan_video, which no model here")
    metadata = {"latent_space_version": "flux1"}
    save_file({"latent": LATENTS[:, 0].contiguous()}, tmp_path / "b.safetensors", metadata)
    refused(tmp_path / "b.safetensors", "holds latents of flux1, which no model here decodes")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(2, 3), "no latents of a known program"),
        ({"prompt_embeds": torch.zeros(1, 2, 3)}, "no latents of a known program"),
        ([1, 2], "no latents of a known program"),
        (torch.zeros(16, 2, 3, 5, dtype=torch.int32), "latents must be floating point, not"),
        (
            torch.zeros(1).expand(16, 10**6, 10**5, 10**5),
            "it claims latents .*, more than it holds",
        ),
        (torch.zeros(16, 0, 3, 5), r"must be \(C, T, H, W\), not \[16, 0, 3, 5\]"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, value: object, reason: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", reason)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"latents": LATENTS, "evil": Evil()}, tmp_path / "a.pt")
    if packed:
        (tmp_path / "a.pt").write_bytes(gzip.compress((tmp_path / "a.pt").read_bytes()))
    refused(tmp_path / "a.pt", "damaged|not loaded")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "b.pt", "damaged|not loaded")
    assert not (tmp_path / "evil").exists()


def bomb(path: Path) -> None:
    """An archive of zeros that unpacks to very much more than it is."""
    buffer = io.BytesIO()
    torch.save(torch.zeros(16, 40, 60, 60), buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w", 8) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))


def test_bombs_are_refused(tmp_path: Path) -> None:
    bomb(tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "compressed")
    (tmp_path / "b.pt").write_bytes(gzip.compress(bytes(10**8)))
    refused(tmp_path / "b.pt", "unpacks to much more than it is")


def test_a_parquet_bomb_is_refused(tmp_path: Path) -> None:
    path = fastvideo(tmp_path, torch.zeros(16, 8, 60, 60), torch.zeros(16, 8, 60, 60))
    refused(path, "claims .* bytes, but the file has only")


def test_parquet_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fastvideo(tmp_path, LATENTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, r"a Parquet file, which needs pyarrow: pip install 'wanvae\[parquet\]'")


@pytest.mark.parametrize("write", PROGRAMS)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_damaged_files_are_told_in_a_line(tmp_path: Path, write: Write, kept: float) -> None:
    path = write(tmp_path, LATENTS)
    file = path / "shard_0.bin" if path.is_dir() else path
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    refused(path, "damaged|cannot be read|no checkpoint|not loaded|ends too early")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DROP TABLE items", "has no table of clips"),
        ("DROP TABLE shard_0", "names a clip 0 of shard 0 that is not there"),
        ("UPDATE items SET shard_index = 5", "names a clip 5 of shard 0 that is not there"),
        ("UPDATE items SET shard = 'x; DROP'", "names a clip 0 of shard 'x; DROP'"),
        ("UPDATE items SET shard = -1", "names a clip 0 of shard -1"),
        ("UPDATE shard_0 SET offset = 10000000", "shard_0.bin ends too early"),
        ("UPDATE shard_0 SET offset = -1", "names a clip 0 of shard 0 that is not there"),
        ("UPDATE shard_0 SET size = 10000000000000", "shard_0.bin ends too early"),
        (
            "UPDATE shard_0 SET offset = 1, size = size - 1",
            "a clip of it is (damaged|no checkpoint)",
        ),
        (
            "DROP TABLE items; CREATE VIEW items AS WITH RECURSIVE n(shard, shard_index) AS "
            "(SELECT 0, 0 UNION ALL SELECT 0, shard_index + 1 FROM n) SELECT * FROM n",
            "has no table of clips",
        ),
    ],
)
def test_hostile_databases(tmp_path: Path, statement: str, reason: str) -> None:
    path = diffusion_pipe(tmp_path, LATENTS)
    with closing(sqlite3.connect(path / "metadata.db")) as database, database:
        database.executescript(statement)
    refused(path, reason)


def test_a_damaged_database(tmp_path: Path) -> None:
    path = diffusion_pipe(tmp_path, LATENTS)
    (path / "metadata.db").write_bytes(b"no database" * 1000)
    refused(path, "metadata.db is damaged")


def test_text_embeddings_of_diffusion_pipe_are_left_out(tmp_path: Path) -> None:
    diffusion_pipe(tmp_path, LATENTS)
    other = diffusion_pipe(tmp_path / "x", LATENTS)
    buffer = io.BytesIO()
    torch.save({"text_embeddings": torch.zeros(3, 4)}, buffer)
    (other / "shard_0.bin").write_bytes(buffer.getvalue())
    with closing(sqlite3.connect(other / "metadata.db")) as database, database:
        database.execute("UPDATE shard_0 SET size = ?", (len(buffer.getvalue()),))
    assert len(find_cache(tmp_path, 16).clips) == 1
    refused(other, "no latents of a known program")


def test_folders_without_latents(tmp_path: Path) -> None:
    refused(tmp_path, "holds no latents of a known program; check the path")
    save_file({"text_embeds": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    refused(tmp_path, r"its files hold other things: \{'.safetensors': 1\}")
    refused(tmp_path / "missing", "does not exist; check the path")


def test_a_file_that_changes_is_told(tmp_path: Path) -> None:
    path = simpletuner(tmp_path, LATENTS)
    (clip,) = find_cache(path, 16).clips
    torch.save(LATENTS[:, :1].bfloat16(), path)
    with pytest.raises(CheckpointError, match=r"it has \[16, 1, 3, 5\] now, not \[16, 3, 3, 5\]"):
        clip.load()


def test_nothing_is_left_of_what_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert read(diffusion_pipe(tmp_path, LATENTS)).shape == LATENTS.shape
    path = simpletuner(tmp_path, LATENTS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path).shape == LATENTS.shape
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("write", [packed_simpletuner, diffusion_pipe])
def test_a_full_folder_of_temporary_files_is_no_fault_of_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    path = write(tmp_path, LATENTS)
    (clip,) = find_cache(path, 16).clips
    fill_up(monkeypatch)
    for use in (lambda: read(path), clip.load):
        with pytest.raises(FullDiskError, match=TOLD):
            use()


def test_the_names_of_musubi_tuner(tmp_path: Path) -> None:
    path = musubi(tmp_path, LATENTS)
    (clip,) = find_cache(tmp_path, 16).clips
    assert (clip.name, clip.program) == (path.stem, "musubi-tuner")


def test_pipes_in_a_folder_are_not_waited_for(tmp_path: Path) -> None:
    musubi(tmp_path, natural())
    os.mkfifo(tmp_path / "a.pt")
    assert len(find_cache(tmp_path, None).clips) == 1
