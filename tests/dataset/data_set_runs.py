"""Small models, videos and runs of ``wanvae encode-dataset`` for tests of data sets elsewhere."""

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.commands import outputs_of
from tests.helpers import tiny
from wanvae.dataset import encode
from wanvae.engine.signals import StopRequest
from wanvae.engine.storage.remote_path import RemotePath
from wanvae.video import write_video

STATISTICS = {"latents_mean": (0.5, -0.25), "latents_std": (2.0, 0.5)}
LENGTHS = {"a.mp4": 30, "b/c.mkv": 5, "b/d.mp4": 11, "e.mp4": 17, "f.mp4": 9, "h.mp4": 15}


def write_inputs(folder: Path) -> None:
    """Writes vae.safetensors, and videos of 14 clips of five frames, and of two broken clips."""
    tiny(**STATISTICS).float().save_pretrained(folder / "vae.safetensors")
    (folder / "videos" / "b").mkdir(parents=True)
    for seed, (name, length) in enumerate(LENGTHS.items()):
        generator = torch.Generator().manual_seed(seed)
        video = torch.rand(3, length, 24, 40, generator=generator) * 2 - 1
        write_video(folder / "videos" / name, video, Fraction(25))
    (folder / "videos" / "g.mp4").write_text("no video")
    content = bytearray((folder / "videos" / "h.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(500)
    (folder / "videos" / "h.mp4").write_bytes(content)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``write_inputs`` writes."""
    folder = tmp_path_factory.mktemp("files")
    write_inputs(folder)
    return folder


def upload(folder: Path, target: RemotePath) -> None:
    """Copies the files of a folder to an address."""
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).upload(path)


def encode_command(files: Path, source: object, target: object, *options: object) -> list[str]:
    """The command that encodes clips of five frames, without the name of the program."""
    model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu", "--frames", 5]
    return [str(x) for x in ("encode-dataset", source, target, *model, *options)]


def start(arguments: list[str], **more: str) -> subprocess.Popen[str]:
    """Starts wanvae in a process of its own."""
    command = [sys.executable, "-m", "wanvae", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    """Runs wanvae in this process, and returns what it printed."""
    return "".join(outputs_of(capsys, [str(x) for x in arguments], status))


def contents(folder: Path | RemotePath) -> dict[str, bytes]:
    """The files of a data set by their names, hidden ones too, without the place of the videos."""
    if isinstance(folder, RemotePath):
        found = {name: (folder / name).read_bytes() for name in folder.files()}
    else:
        paths = (path for path in folder.rglob("*") if path.is_file())
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    settings = json.loads(found["dataset.json"])
    del settings["source"]
    return found | {"dataset.json": json.dumps(settings).encode()}


def encode_parts(
    capsys: pytest.CaptureFixture[str],
    files: Path,
    folder: Path,
    parts: list[str],
    *options: object,
) -> list[Path]:
    """Encodes parts, each to a folder of its own, and returns these folders."""
    folders = [folder / part.replace("/", "-of-") for part in parts]
    for part, target in zip(parts, folders, strict=True):
        command = encode_command(files, files / "videos", target, "--part", part, *options)
        run_command(capsys, *command)
    return folders


def stop_after(monkeypatch: pytest.MonkeyPatch, clips: int, *, overdue: bool) -> list[int]:
    """Asks a run to stop while it encodes its n-th clip; returns a list of the clips it begins."""
    begun: list[int] = []
    requests: list[StopRequest] = []
    original_encode, original_handler = encode.encode_frames, encode.stopped_by_sigterm

    def encode_frames(*arguments: object):
        begun.append(1)
        if len(begun) == clips:
            requests[-1].signal = signal.SIGTERM
            requests[-1].deadline = 0 if overdue else time.monotonic() + 99
        return original_encode(*arguments)

    class Recorded:
        def __init__(self, grace: float) -> None:
            self._context = original_handler(grace)

        def __enter__(self) -> StopRequest:
            requests.append(self._context.__enter__())
            return requests[-1]

        def __exit__(self, *details: object) -> None:
            self._context.__exit__(*details)

    monkeypatch.setattr(encode, "encode_frames", encode_frames)
    monkeypatch.setattr(encode, "stopped_by_sigterm", Recorded)
    return begun
