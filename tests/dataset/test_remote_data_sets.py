"""Data sets and their videos at addresses: the same bytes as on a disk, through failing servers."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.dataset.data_set_runs import (
    contents,
    encode_command,
    files,
    run_command,
    start,
    upload,
)
from tests.storage_servers import bucket, s3_environment, s3_server, web_server
from wanvae import LatentDataset
from wanvae.engine.storage import retries
from wanvae.engine.storage.remote_path import location
from wanvae.folders.listing import MANIFEST
from wanvae.folders.manifest import read_folder
from wanvae.latents.spool import LatentsSpool
from wanvae.video import read_video

__all__ = ["bucket", "files", "s3_server"]

SHARDS = ["--shard-size", "3KB"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers here fail for a moment only."""
    monkeypatch.setattr(retries, "PAUSES", (0.001,) * 5)


@pytest.mark.parametrize(
    "container",
    ["tar", *(pytest.param(other, marks=pytest.mark.slow) for other in ("files", "safetensors"))],
)
def test_an_object_store_is_as_good_as_a_disk(
    tmp_path: Path, capsys: Capture, files: Path, bucket: str, container: str
) -> None:
    options = ["--container", container, *SHARDS]
    run_command(capsys, *encode_command(files, files / "videos", tmp_path / "local", *options))
    command = encode_command(files, files / "videos", f"{bucket}/out", *options)
    run_command(capsys, *command)
    target = location(f"{bucket}/out")
    expected = contents(tmp_path / "local")
    assert contents(target) == expected
    assert "0 clips written, 14 were there" in run_command(capsys, *command)
    assert contents(target) == expected
    # What is missing is written again, and the index after it.
    for name in ("index.jsonl", next(name for name in expected if name.endswith(("tar", "rs")))):
        (target / name).unlink()
    run_command(capsys, *command)
    assert contents(target) == expected
    local, remote = LatentDataset(tmp_path / "local"), LatentDataset(f"{bucket}/out")
    assert len(local) == len(remote) == 14
    for one, other in zip(local, remote, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert (one.fps, one.source, one.caption) == (other.fps, other.source, other.caption)


def test_videos_in_an_object_store(
    tmp_path: Path, capsys: Capture, files: Path, bucket: str
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(files / "videos", videos)
    subprocess.run(["tar", "cf", videos / "i.tar", "-C", videos, "e.mp4"], check=True)
    upload(videos, location(f"{bucket}/videos"))
    expected = encode(capsys, files, videos, tmp_path / "local")
    assert encode(capsys, files, f"{bucket}/videos", tmp_path / "out") == expected
    out = run_command(capsys, "index", f"{bucket}/videos")
    assert f"{bucket}/videos/{MANIFEST}: 7 videos, 0 images, 1 that cannot be read" in out
    assert (location(f"{bucket}/videos") / MANIFEST).exists()
    assert encode(capsys, files, f"{bucket}/videos", tmp_path / "again") == expected
    manifest = f"{bucket}/videos/{MANIFEST}"
    assert encode(capsys, files, manifest, tmp_path / "named") == expected


def encode(capsys: Capture, files: Path, source: object, target: Path) -> dict[str, bytes]:
    """Encodes a folder, and returns the latents, which do not tell times of files."""
    run_command(capsys, *encode_command(files, source, target))
    dataset = LatentDataset(target)
    return {clip.name: dataset[n].latents.numpy().tobytes() for n, clip in enumerate(dataset.clips)}


@pytest.mark.parametrize("ranges", [True, False])
def test_videos_of_a_web_server_that_fails_at_times(
    tmp_path: Path, capsys: Capture, files: Path, ranges: bool
) -> None:
    expected = encode(capsys, files, files / "videos", tmp_path / "local")
    with web_server(files / "videos", every=10, ranges=ranges) as server:
        assert encode(capsys, files, server.address, tmp_path / "out") == expected
        video, info = read_video(f"{server.address}/a.mp4")
        assert torch.equal(video, read_video(files / "videos" / "a.mp4")[0]) and info.width == 40
        assert server.failures > 3
        out = run_command(capsys, "index", server.address, status=1)
        assert "web servers only give files" in out


def test_a_manifest_stands_for_a_list_of_a_web_server(
    tmp_path: Path, capsys: Capture, files: Path
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(files / "videos", videos)
    run_command(capsys, "index", videos)
    expected = encode(capsys, files, videos, tmp_path / "local")
    with web_server(videos, every=10) as server:
        (videos / "unlisted.mp4").write_bytes((videos / "f.mp4").read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = encode(capsys, files, f"{server.address}/{MANIFEST}", tmp_path / "out")
        assert found == expected
        # A file that has changed since is a failure.
        (videos / "f.mp4").write_bytes((videos / "e.mp4").read_bytes())
        command = encode_command(files, server.address, tmp_path / "changed")
        assert "f.mp4.00000: it has changed since it was listed" in run_command(capsys, *command)


def test_a_server_that_is_gone_is_no_broken_video(
    tmp_path: Path, capsys: Capture, files: Path
) -> None:
    videos, target = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(files / "videos", videos)
    run_command(capsys, "index", videos)
    with web_server(videos) as server:
        command = encode_command(files, server.address, target)
        folder = location(server.address)
        run_command(capsys, *command)
        expected = contents(target)
        (target / "index.jsonl").unlink()
        (target / "a.mp4.00001.safetensors").unlink()
        server.every = 1
        out = run_command(capsys, *command, status=1)
        assert "also after 5 further tries" in out
        assert (target / "failures.jsonl").read_bytes() == expected["failures.jsonl"]
        server.every = 0
        run_command(capsys, *command)
        assert contents(target) == expected
        assert len(read_folder(folder).entries) == 7


@pytest.mark.parametrize("method", ["write", "write_file"])
def test_a_full_folder_of_temporary_files(
    capsys: Capture, files: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fill_up(self: LatentsSpool, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = f"memory://full-{method}"
    command = encode_command(files, files / "videos", target)
    with monkeypatch.context() as patch:
        patch.setattr(LatentsSpool, method, fill_up)
        out = run_command(capsys, *command, status=1)
    assert (
        f"temporary files, {tempfile.gettempdir()}, is full; make room there, or set TMPDIR" in out
    )
    assert not [name for name in location(target).files() if name.endswith(".safetensors")]
    assert "14 clips written, 0 were there" in run_command(capsys, *command)


def test_parts_in_an_object_store(
    tmp_path: Path, capsys: Capture, files: Path, bucket: str
) -> None:
    options = ["--container", "tar", *SHARDS]
    run_command(capsys, *encode_command(files, files / "videos", tmp_path / "whole", *options))
    target = f"{bucket}/out"
    for number in (1, 0):
        part = ["--part", f"{number}/2"]
        run_command(capsys, *encode_command(files, files / "videos", target, *options, *part))
    run_command(capsys, "merge-index", target, target)
    found = contents(location(target))
    lists = {name for name in found if name.startswith("index.part-")}
    assert len(lists) == 2
    expected = contents(tmp_path / "whole")
    assert {name: found[name] for name in found.keys() - lists} == expected
    run_command(capsys, "merge-index", target, tmp_path / "here")
    assert contents(tmp_path / "here") == expected


def test_what_an_address_cannot_do(tmp_path: Path, capsys: Capture, files: Path) -> None:
    for target, options, message in (
        ("https://127.0.0.1:9/out", [], "web servers only give files"),
        ("memory://out", ["--layout", "diffusion-pipe"], "reads its database only on a disk"),
        ("unknown://out", [], "Protocol not known"),
    ):
        command = encode_command(files, files / "videos", target, *options)
        assert message in run_command(capsys, *command, status=1)
    command = encode_command(files, "memory://empty", tmp_path / "out")
    assert "there are no files in a folder of this name" in run_command(capsys, *command, status=1)
    command = encode_command(files, "memory://videos", "memory://videos/out")
    assert "must not be in memory://videos" in run_command(capsys, *command, status=1)


# A server that ends and comes back


@contextmanager
def restartable_server():
    """A relay to an object store, whose connections break when it stops; and its address."""
    program = Path(__file__).parents[2] / "tools" / "object_store.py"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, program, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        assert server.stdout.readline() == "started\n"
        yield server, f"http://127.0.0.1:{port}"
        server.stdin.close()


@pytest.mark.slow
def test_a_server_that_is_restarted(tmp_path: Path, capsys: Capture, files: Path) -> None:
    options = ["--container", "tar", *SHARDS]
    run_command(capsys, *encode_command(files, files / "videos", tmp_path / "whole", *options))
    with restartable_server() as (server, address):
        environment = os.environ | s3_environment(address)
        command = encode_command(files, files / "videos", "s3://bucket/out", *options)
        with start(command, env=environment) as process:
            for _ in range(3):
                time.sleep(2)
                for word in ("stop", "start"):
                    print(word, file=server.stdin, flush=True)
                    assert server.stdout.readline()
                    time.sleep(0.5)
            _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        with pytest.MonkeyPatch.context() as patch:
            import fsspec

            for name, value in s3_environment(address).items():
                patch.setenv(name, value)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            assert contents(location("s3://bucket/out")) == contents(tmp_path / "whole")
            fsspec.get_filesystem_class("s3").clear_instance_cache()
