"""Commands that write a video: as what, where, and what is refused before the model is loaded."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers import random_video, tiny
from tests.video.recordings import SIZE, record
from wanvae import cli
from wanvae.commands import options
from wanvae.commands.writing import OUTPUT_HELP
from wanvae.video import probe, write_video
from wanvae.video.writing.formats import formats

FRAMES = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint vae.safetensors, a video a.mkv and its latents l.safetensors."""
    folder = tmp_path_factory.mktemp("files")
    tiny().float().save_pretrained(folder / "vae.safetensors")
    write_video(folder / "a.mkv", random_video(FRAMES, 64, 96)[0].float(), Fraction(24))
    model = ["--checkpoint", str(folder / "vae.safetensors"), "--device", "cpu"]
    assert cli.main(["encode", str(folder / "a.mkv"), str(folder / "l.safetensors"), *model]) == 0
    return folder


def arguments_of(command: str, files: Path, output: object, *more: str) -> list[str]:
    source = files / ("a.mkv" if command == "reconstruct" else "l.safetensors")
    model = ["--checkpoint", f"{files / 'vae.safetensors'}", "--device", "cpu"]
    return [command, str(source), str(output), *model, *more]


@pytest.mark.parametrize("command", ["reconstruct", "decode"])
@pytest.mark.parametrize(
    ("name", "more", "codec", "pixels"),
    [
        ("b.mp4", ["--bits", "10"], "h264", "yuv420p10le"),
        ("b.mov", ["--codec", "prores"], "prores", "yuv444p12le"),
        ("b.mkv", ["--codec", "ffv1", "--bits", "16"], "ffv1", "gbrp16le"),
        ("b.webm", ["--bits", "10"], "av1", "yuv420p10le"),
        ("b.gif", [], "gif", "bgra"),
    ],
)
def test_codec_and_bits_are_as_the_options_say(
    tmp_path: Path, files: Path, command: str, name: str, more: list[str], codec: str, pixels: str
) -> None:
    assert cli.main(arguments_of(command, files, tmp_path / name, *more)) == 0
    assert probe(tmp_path / name).frames == FRAMES
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
        assert next(container.decode(video=0)).format.name == pixels


def test_arrays_of_16_bits_hold_more_than_8(tmp_path: Path, files: Path) -> None:
    assert cli.main(arguments_of("decode", files, tmp_path / "b.npy", "--bits", "16")) == 0
    array = np.load(tmp_path / "b.npy")
    assert (array.dtype, array.shape) == (np.uint16, (FRAMES, 64, 96, 3))
    assert len(np.unique(array)) > 256


@pytest.mark.filterwarnings("default:.*cannot hold its sound")
@pytest.mark.parametrize("name", ["b.npy", "b.y4m", "b.gif", "b.webp", "f/%03d.tiff"])
def test_sound_is_told_where_it_cannot_be_kept(
    tmp_path: Path, files: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "a.mp4", end=Fraction(1, 5))
    command = arguments_of("reconstruct", files, tmp_path / name)
    command[1] = str(tmp_path / "a.mp4")
    capsys.readouterr()
    assert cli.main(command) == 0
    suffix = Path(name).suffix
    assert f"{suffix} cannot hold its sound (aac" in capsys.readouterr().err
    if suffix == ".npy":
        array = np.load(tmp_path / name)
        assert array.shape == (5, SIZE, SIZE, 3)
        assert (tmp_path / name).stat().st_size == 128 + array.nbytes


@pytest.mark.parametrize("command", ["reconstruct", "decode"])
@pytest.mark.parametrize(
    ("more", "name", "codec"),
    [
        ([], "yuv4mpegpipe", "rawvideo"),
        (["--stdout", "mkv"], "matroska,webm", "h264"),
        (["--stdout", "mkv", "--codec", "ffv1", "--bits", "10"], "matroska,webm", "ffv1"),
    ],
)
def test_stdout_gets_the_video_and_stderr_the_messages(
    files: Path,
    command: str,
    more: list[str],
    name: str,
    codec: str,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    capsysbinary.readouterr()
    assert cli.main(arguments_of(command, files, "-", "--progress", *more)) == 0
    out, err = capsysbinary.readouterr()
    with av.open(io.BytesIO(out)) as container:
        stream = container.streams.video[0]
        assert container.format.name == name
        assert (stream.codec_context.name, stream.average_rate) == (codec, 24)
        assert len(list(container.decode(video=0))) == FRAMES
    assert f"-> -: {FRAMES} frames".encode() in err
    assert f"{FRAMES}/".encode() in err or b"100%" in err


def test_a_terminal_gets_no_video(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(arguments_of("decode", files, "-")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "stdout is a terminal" in err


@pytest.mark.slow
def test_nobody_reads_to_the_end(files: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", torch.zeros(3, 40, 128, 128), Fraction(24))
    command = arguments_of("reconstruct", files, "-")
    command[1] = str(tmp_path / "a.mkv")
    program = subprocess.Popen(
        [sys.executable, "-m", "wanvae", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert program.stdout is not None and program.stderr is not None
    assert program.stdout.read(9) == b"YUV4MPEG2"
    program.stdout.close()
    err = program.stderr.read().decode()
    program.stderr.close()
    assert program.wait(120) == 141  # as for any program before "| head"
    assert err.count("\n") == 1  # what is done, and no more


@pytest.mark.parametrize("command", ["reconstruct", "decode"])
@pytest.mark.parametrize(
    ("output", "more", "answer"),
    [
        ("b.avi", [], "its suffix is '.avi'; use one of .mp4"),
        ("b.webm", ["--codec", "h264"], ".webm holds no h264; it holds vp9 or av1"),
        ("b.mp4", ["--bits", "16"], ".mp4 holds no 16 bits; it holds 8 or 10"),
        ("b.mp4", ["--stdout", "mkv"], "its suffix says what it is"),
        ("no/b.mp4", [], "the folder no does not exist"),
        ("-", ["--codec", "h264"], ".y4m holds no h264"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    output: str,
    more: list[str],
    answer: str,
) -> None:
    def load(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(options, "load_model", load)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(arguments_of(command, files, output, *more)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert answer in err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("command", ["reconstruct", "decode"])
def test_an_image_of_a_video_is_refused_before_work(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    capsys.readouterr()
    assert cli.main(arguments_of(command, files, tmp_path / "b.png")) == 1
    assert "an image holds one frame" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_the_help_names_all_suffixes() -> None:
    assert all(f"{one.suffix}" in OUTPUT_HELP for one in formats())
