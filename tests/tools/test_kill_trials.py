"""The tool that kills runs of encode-dataset."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dataset.data_set_runs import write_inputs
from tests.storage_servers import s3_environment
from tools.kill_trials import LAUNCHER, main, object_store, parse, small_disk
from wanvae.engine.storage.remote_path import RemotePath


@pytest.mark.slow
def test_two_processes_are_started(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, pathlib\n"
        "name = os.environ['RANK'] + ' of ' + os.environ['WORLD_SIZE']\n"
        f"(pathlib.Path({str(tmp_path)!r}) / name).touch()\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*LAUNCHER, str(script)], check=True, env=environment, timeout=120)
    assert {path.name for path in tmp_path.glob("* of *")} == {"0 of 2", "1 of 2"}


def test_a_killed_store_comes_back_with_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("moto.server")
    for name, value in s3_environment("of the store").items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    folder = RemotePath("s3://bucket/run")
    with object_store(tmp_path / "objects") as server:
        (folder / ".failures/a b%2F.bin").write_bytes(b"one")
        (folder / "large.bin").write_bytes(bytes(10**6))
        (folder / "gone.bin").write_bytes(b"two")
        (folder / "gone.bin").unlink()
        server.restart(0.1)
        (folder / "large.bin").write_bytes(b"three")
        files = folder.files()
        server.restart(0.1)
        assert server.restarts == 2
        assert folder.files() == files and files.keys() == {".failures/a b%2F.bin", "large.bin"}
        assert (folder / ".failures/a b%2F.bin").read_bytes() == b"one"
        assert (folder / "large.bin").read_bytes() == b"three"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def can_mount(folder: Path) -> bool:
    """Whether this process may mount disks."""
    try:
        with small_disk(folder, "1M"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@pytest.mark.slow
def test_two_processes_fill_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not can_mount(tmp_path / "disk"):
        pytest.skip("only root may mount a small disk")
    write_inputs(tmp_path)
    checkpoint = ["--checkpoint", str(tmp_path / "vae.safetensors")]
    encoding = ["--frames", "5,9", "--buckets", "16x32,32x16"]
    arguments = [str(tmp_path / "videos"), *checkpoint, "--disk", "12KB", "--", *encoding]
    monkeypatch.setattr(sys, "argv", ["kill_trials.py", *arguments])
    with pytest.raises(SystemExit, match="no bytes differ"):
        main()
    assert "No space left on device" in capsys.readouterr().out


def test_only_a_store_has_a_server_to_restart(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["videos", "--checkpoint", "vae.pth", "--restart-server"])
    assert "--restart-server is for --store s3" in capsys.readouterr().err
