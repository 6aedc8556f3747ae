"""Commands at addresses: what they read there is what they read on a disk, and outputs are refused
where nothing is written."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import outputs_of
from tests.helpers import tiny
from tests.video.recordings import Sound, packets_of, record
from wanvae.engine.storage import remote_file
from wanvae.engine.storage.remote_file import RemoteFile
from wanvae.engine.storage.remote_path import RemotePath
from wanvae.engine.storage.retries import RemoteError
from wanvae.video import VideoReader, VideoWriter, read_video
from wanvae.video.beside.source import beside_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def remote(tmp_path: Path) -> RemotePath:
    """A folder in the memory of this process with a copy of the video a.mp4."""
    import fsspec

    fsspec.filesystem("memory").store.clear()
    folder = RemotePath("memory://data")
    (folder / "a.mp4").upload(record(tmp_path / "a.mp4"))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> list[object]:
    tiny().float().save_pretrained(tmp_path / "vae.safetensors")
    return ["--checkpoint", tmp_path / "vae.safetensors", "--device", "cpu"]


def run(capsys: Capture, *arguments: object, status: int = 0) -> str:
    return "".join(outputs_of(capsys, [str(argument) for argument in arguments], status))


def same(one: Path, other: Path) -> bool:
    """Whether two files have the same frames and sound."""
    alike = torch.equal(read_video(one)[0], read_video(other)[0])
    return alike and packets_of(one) == packets_of(other) != []


@pytest.mark.filterwarnings("ignore:.*its sound is left out")
def test_a_video_at_an_address_keeps_its_sound(
    tmp_path: Path, capsys: Capture, remote: RemotePath, model: list[object]
) -> None:
    """Also where latents are decoded."""
    out = [tmp_path / f"{name}.mkv" for name in "bcde"]
    model = [*model, "--codec", "ffv1"]  # x264 does not always write the same bytes
    run(capsys, "reconstruct", tmp_path / "a.mp4", out[0], *model)
    run(capsys, "reconstruct", remote / "a.mp4", out[1], *model)
    assert same(out[0], out[1])
    run(capsys, "encode", remote / "a.mp4", tmp_path / "l.safetensors", *model[:-2])
    decode = "decode", tmp_path / "l.safetensors"
    run(capsys, *decode, out[2], "--audio-from", tmp_path / "a.mp4", *model)
    run(capsys, *decode, out[3], "--audio-from", remote / "a.mp4", *model)
    assert same(out[2], out[3])


def test_a_server_that_goes_away_is_no_end_of_the_sound(
    tmp_path: Path, remote: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "FIRST_PIECE", 2**10)
    monkeypatch.setattr(remote_file, "LARGEST_PIECE", 2**10)
    source = remote / "large.mkv"
    source.upload(record(tmp_path / "large.mkv", [Sound(codec="pcm_s16le")]))
    with VideoReader(source) as reader:
        beside = beside_of(reader)

    def load(*_: Any) -> bytes:
        raise RemoteError("it is gone")

    with (
        pytest.raises(RemoteError, match="it is gone"),
        VideoWriter(
            tmp_path / "b.mp4", width=16, height=16, fps=Fraction(25), beside=beside
        ) as writer,
    ):
        monkeypatch.setattr(RemoteFile, "_load", load)
        writer.write(torch.zeros(3, 75, 16, 16))
    assert not (tmp_path / "b.mp4").exists()


def test_a_folder_or_file_at_an_address_is_judged(
    tmp_path: Path, capsys: Capture, remote: RemotePath, model: list[object]
) -> None:
    found = []
    for number, source in enumerate((tmp_path / "a.mp4", remote / "a.mp4", remote)):
        output = tmp_path / f"judged-{number}"
        run(capsys, "evaluate", source, "--output", output, "--frames", 9, *model)
        (record,) = json.loads((output / "evaluation.json").read_text())["records"]
        found.append((record["name"], record["models"][0]["frame_psnr"]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "command",
    [
        ("reconstruct", "a.mp4", "memory://data/b.mp4"),
        ("encode", "a.mp4", "memory://data/l.safetensors"),
        ("decode", "l.safetensors", "s3://bucket/b.mp4"),
        ("convert", "vae.safetensors", "s3://bucket/vae", "--to", "diffusers"),
        ("evaluate", "videos", "--output", "memory://data/judged"),
    ],
)
def test_outputs_at_addresses_are_refused(capsys: Capture, command: tuple[str, ...]) -> None:
    said = run(capsys, *command, status=1)
    assert "is an address, to which only data sets of latents are written: name a file" in said
