"""Data sets of latents: the same bytes however they come about, and no clip is lost."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_iterator

from tests.commands import outputs_of, without_notice
from tests.helpers import launched, occupied, tiny
from tests.scenes import scene, write_scenes
from wanvae import WanVAE, cli
from wanvae.dataset import encode
from wanvae.dataset.files import index_file
from wanvae.dataset.settings import DatasetOptions
from wanvae.errors import UserError
from wanvae.folders.listing import MANIFEST
from wanvae.folders.manifest import write_manifest
from wanvae.latents.file import VideoShape, read_latents, video_metadata
from wanvae.latents.spool import LatentsSpool
from wanvae.selection.checks import Checks
from wanvae.video import VideoWriter, read_video, write_video

STATISTICS = {"latents_mean": (0.5, -0.25), "latents_std": (2.0, 0.5)}
CONTAINERS = ["files", "tar", "safetensors"]
LENGTHS = {"a.mp4": 30, "b/c.mkv": 5, "b/d.mp4": 11, "e.mp4": 17}
# Shards of two or three clips.
SHARDS = ["--shard-size", "3KB"]

Run = Callable[..., tuple[str, str]]


def noise(frames: int, height: int = 24, width: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, frames, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint vae.safetensors, and a folder videos of videos, an image and a tar."""
    folder = tmp_path_factory.mktemp("files")
    tiny(**STATISTICS).float().save_pretrained(folder / "vae.safetensors")
    videos = folder / "videos"
    (videos / "b").mkdir(parents=True)
    for seed, (name, length) in enumerate(LENGTHS.items()):
        write_video(videos / name, noise(length, seed=seed), Fraction(25))
    write_video(videos / "f.png", noise(1), Fraction(1))
    with tarfile.open(videos / "g.tar", "w") as tar:
        tar.add(videos / "e.mp4", "inside/e.mp4")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], files: Path) -> Run:
    """Encode a folder (default: of ``files``), ending with ``status``; gives stdout and stderr."""

    def run_command(
        target: Path, *options: object, source: Path = files / "videos", status: int = 0
    ) -> tuple[str, str]:
        return outputs_of(capsys, command(files, source, target, *options), status)

    return run_command


def command(files: Path, source: Path, target: Path, *options: object) -> list[str]:
    model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu"]
    return [str(x) for x in ("encode-dataset", source, target, *model, *options)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files by their names, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metadata_of(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


def vae_of(files: Path) -> WanVAE:
    return WanVAE.from_pretrained(files / "vae.safetensors")


# What is written


def test_a_file_for_each_clip(tmp_path: Path, files: Path, run: Run) -> None:
    out, err = run(tmp_path / "out")
    assert out.startswith(
        f"{files / 'videos'} -> {tmp_path / 'out'}: 6 clips written, 0 were there"
    )
    assert ", 0 failed; " in out and " bytes written, " in out and out.count("\n") == 1
    assert err == ""
    names = [*LENGTHS, "f.png", "g.tar/inside/e.mp4"]
    latents = {f"{name}.safetensors" for name in names}
    assert set(contents(tmp_path / "out")) == latents | {
        "dataset.json",
        "index.jsonl",
        "failures.jsonl",
    }
    index = lines(tmp_path / "out" / "index.jsonl")
    assert [clip["name"] for clip in index] == sorted(names)
    assert [clip["frames"] for clip in index] == [29, 5, 9, 17, 1, 17]


@pytest.mark.filterwarnings("default:.*is not up to date")
def test_a_manifest_stands_for_its_folder(tmp_path: Path, files: Path, run: Run) -> None:
    source = tmp_path / "videos"
    shutil.copytree(files / "videos", source)
    assert cli.main(["index", str(source)]) == 0
    (source / "a.mp4").rename(source / "later.mp4")
    out, err = run(tmp_path / "out", source=source / "wanvae-manifest.jsonl")
    assert "6 clips written, 0 were there, 0 failed" in out
    assert "is not up to date: 1 files were added or changed, and 1 are gone" in err
    assert (tmp_path / "out" / "later.mp4.safetensors").exists()


def test_latents_are_those_of_the_model(tmp_path: Path, files: Path, run: Run) -> None:
    run(tmp_path / "out")
    video, _ = read_video(files / "videos" / "a.mp4")
    expected = vae_of(files).encode(video[None, :, :29])
    path = tmp_path / "out" / "a.mp4.safetensors"
    tensors = load_file(path)
    torch.testing.assert_close(tensors["mean"], expected.mean[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tensors["logvar"], expected.logvar[0], atol=1e-5, rtol=1e-5)
    assert tensors["times"].tolist() == pytest.approx([number / 25 for number in range(29)])
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["video"]) == {
        **{"width": 40, "height": 24, "fps": "25", "source": "a.mp4"}
    }
    origin = json.loads(metadata["clip"])
    settings = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert origin["checkpoint"] == settings["checkpoint"] and len(origin["checkpoint"]) == 64
    assert origin["latents_std"] == [2.0, 0.5]


@pytest.mark.parametrize("scale", ["raw", "normalized"])
@pytest.mark.parametrize("store", ["moments", "mean", "sample"])
def test_decode_reads_what_is_written(
    tmp_path: Path, files: Path, run: Run, store: str, scale: str
) -> None:
    run(tmp_path / "out", "--store", store, "--scale", scale)
    run(tmp_path / "plain", "--store", "sample" if store == "sample" else "mean")
    for name in ("out", "plain"):
        arguments = [tmp_path / name / "b/d.mp4.safetensors", tmp_path / f"{name}.mkv"]
        model = ["--checkpoint", files / "vae.safetensors", "--codec", "ffv1"]
        assert cli.main([str(x) for x in ("decode", *arguments, *model)]) == 0
    decoded, info = read_video(tmp_path / "out.mkv")
    assert (decoded.shape, info.fps) == ((3, 9, 24, 40), 25)
    assert (decoded - read_video(tmp_path / "plain.mkv")[0]).abs().max() < 5 / 255


def test_a_clip_is_decoded_by_a_model_with_the_same_encoder(
    tmp_path: Path, files: Path, run: Run, recwarn: pytest.WarningsRecorder
) -> None:
    """A copy that was rounded is one, and so is the decoder alone."""
    run(tmp_path / "out")
    whole, clip = files / "vae.safetensors", tmp_path / "out" / "b/d.mp4.safetensors"
    for name, options in (("rounded", ["--dtype", "bfloat16"]), ("half", ["--only", "decoder"])):
        model = tmp_path / f"{name}.safetensors"
        assert cli.main([str(x) for x in ("convert", whole, model, *options)]) == 0
        arguments = [clip, tmp_path / f"{name}.mkv", "--checkpoint", model]
        assert cli.main([str(x) for x in ("decode", *arguments)]) == 0
    assert not recwarn.list


def test_files_of_many_clips_hold_the_clips_of_the_files(tmp_path: Path, run: Run) -> None:
    for container in CONTAINERS:
        run(tmp_path / container, "--container", container, *SHARDS)
    expected = {
        name.removesuffix(".safetensors"): load(content)
        for name, content in contents(tmp_path / "files").items()
        if name.endswith(".safetensors")
    }
    members: dict[str, dict[str, Tensor]] = {}
    shards = sorted((tmp_path / "tar").glob("shard-*.tar"))
    assert [shard.name for shard in shards] == [f"shard-0000{n}.tar" for n in range(len(shards))]
    assert 1 < len(shards) < len(expected)
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                names = json.loads(metadata_of(content)["clip"])
                members[names["name"]] = load(content)
    tensors: dict[str, Tensor] = {}
    for shard in sorted((tmp_path / "safetensors").glob("shard-*.safetensors")):
        tensors |= load_file(shard)
    assert members.keys() == expected.keys()
    for name, clip in expected.items():
        for key, tensor in clip.items():
            assert torch.equal(members[name][key], tensor)
            assert torch.equal(tensors[f"{name}/{key}"], tensor)
    assert len(tensors) == 3 * len(expected)


def test_options_come_from_a_file_too(tmp_path: Path, run: Run) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("frames: 5\nfps: 12\nresize: 16\nstore: mean\nprogress: true\n")
    out, err = run(tmp_path / "out", "--config", config)
    assert "7 clips written" in out and "7/7" in err and "clip/s" in err
    index = lines(tmp_path / "out" / "index.jsonl")
    assert all((clip["height"], clip["width"]) == (16, 24) for clip in index)
    rates = {clip["name"].split(".")[1]: clip["fps"] for clip in index}
    assert rates == {"mp4": "12", "png": "1", "tar/inside/e": "12"}


def test_clips_are_cut_in_a_row(tmp_path: Path, files: Path, run: Run) -> None:
    out, _ = run(tmp_path / "out", "--frames", 5)
    index = lines(tmp_path / "out" / "index.jsonl")
    assert len(index) == 6 + 1 + 2 + 3 + 1 + 3
    assert "16 clips written" in out and "too short" not in out
    assert [clip["frames"] for clip in index if clip["source"] == "f.png"] == [1]
    assert [clip["start"] for clip in index[:6]] == [n / 5 for n in range(6)]
    video, _ = read_video(files / "videos" / "a.mp4")
    for number in range(6):
        latents = load_file(tmp_path / "out" / f"a.mp4.0000{number}.safetensors")["mean"]
        expected = vae_of(files).encode(video[None, :, 5 * number : 5 * number + 5]).mean[0]
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_samples_are_of_their_clip_alone(tmp_path: Path, files: Path, run: Run) -> None:
    other = tmp_path / "videos"
    other.mkdir()
    os.link(files / "videos" / "e.mp4", other / "e.mp4")
    options = ["--store", "sample"]
    run(tmp_path / "all", *options)
    run(tmp_path / "one", *options, source=other)
    run(tmp_path / "seed", *options, "--seed", 1, source=other)
    moments = tmp_path / "moments"
    run(moments, source=other)
    name = "e.mp4.safetensors"
    sample = load_file(tmp_path / "all" / name)["latents"]
    assert torch.equal(sample, load_file(tmp_path / "one" / name)["latents"])
    assert not torch.equal(sample, load_file(tmp_path / "seed" / name)["latents"])
    posterior = load_file(moments / name)
    drawn = (sample - posterior["mean"]) / torch.exp(posterior["logvar"] / 2)
    assert abs(drawn.mean()) < 0.4 and 0.7 < drawn.std() < 1.3


# However it comes about, the bytes are the same


SLOW_BUT_ONE = [pytest.param(name, marks=pytest.mark.slow) for name in ("files", "safetensors")]


@pytest.mark.parametrize("container", ["tar", *SLOW_BUT_ONE])
def test_two_processes_write_the_same(
    tmp_path: Path, files: Path, run: Run, container: str
) -> None:
    options = ["--container", container, *SHARDS, "--frames", 5, "--store-dtype", "bfloat16"]
    one, _ = run(tmp_path / "one", *options)
    arguments = command(files, files / "videos", tmp_path / "two", *options)
    result = subprocess.run(
        launched(*arguments), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "16 clips written, 0 were there, 0 failed" in one and "16 clips written" in result.stdout
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_order_of_processes_does_not_matter(
    tmp_path: Path, files: Path, run: Run, container: str
) -> None:
    options = ["--container", container, *SHARDS, "--store", "sample"]
    run(tmp_path / "one", *options)
    for rank in (2, 1):
        encode.encode_dataset(
            vae_of(files),
            files / "vae.safetensors",
            files / "videos",
            tmp_path / "more",
            DatasetOptions(container=container, shard_size=3 * 2**10, store="sample"),
            SimpleNamespace(process_index=rank, num_processes=3, is_main_process=False),
        )
        assert not (tmp_path / "more" / "index.jsonl").exists()
    written = sorted(contents(tmp_path / "more").keys() - {"dataset.json", "failures.jsonl"})
    assert written
    run(tmp_path / "more", *options)
    assert contents(tmp_path / "one") == contents(tmp_path / "more")


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_second_run_does_what_is_missing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    options = ["--container", container, *SHARDS]
    run(tmp_path / "out", *options)
    before = contents(tmp_path / "out")
    file = sorted(name for name in before if name.endswith((".safetensors", ".tar")))[1]
    clips = len(index_file(tmp_path / "out", file))
    (tmp_path / "out" / file).unlink()
    encoded = []
    original = encode.encode_frames
    monkeypatch.setattr(encode, "encode_frames", lambda *args: encoded.append(1) or original(*args))
    out, _ = run(tmp_path / "out", *options)
    assert f"{clips} clips written, {6 - clips} were there" in out
    assert len(encoded) == clips
    assert contents(tmp_path / "out") == before
    assert "0 clips written, 6 were there" in run(tmp_path / "out", *options)[0]
    assert len(encoded) == clips


def test_a_killed_process_loses_nothing(tmp_path: Path, files: Path, run: Run) -> None:
    source, target = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    for number in range(60):
        os.link(files / "videos" / "a.mp4", source / f"{number:02}.mp4")
    (source / "99.mp4").write_text("no video")
    arguments = launched(*command(files, source, target))
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (target / "31.mp4.safetensors").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in err
    # The other process is told to stop, or misses the one that is gone.
    assert "run it again to go on from there" in err
    assert not (target / "index.jsonl").exists()
    (target / ".12.mp4.0123abcd.safetensors").write_bytes(b"half a file")
    with (target / "failures.jsonl").open("a") as file:
        file.write('{"name": "half a li')
    done = len(list(target.glob("*.mp4.safetensors")))
    assert 0 < done < 60
    out, _ = run(target, source=source)
    assert f"{60 - done} clips written, {done} were there, 1 failed" in out
    run(tmp_path / "undisturbed", source=source)
    assert contents(target) == contents(tmp_path / "undisturbed")


def process_of_rank(launcher: int, rank: int) -> int:
    """The id of a process that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("method", ["write", "copy_to"])
def test_a_full_disk_stops_the_run(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, container: str, method: str
) -> None:
    options = ["--container", container, *SHARDS]
    original, calls = getattr(LatentsSpool, method), []

    def fill_up(self: LatentsSpool, *arguments: object) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LatentsSpool, method, fill_up)
        out, err = run(tmp_path / "out", *options, status=1)
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"wanvae: {tmp_path / 'out'}") and "No space left on device" in err
    assert not [name for name in contents(tmp_path / "out") if Path(name).name.startswith(".")]
    run(tmp_path / "out", *options)
    run(tmp_path / "undisturbed", *options)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_no_memory_is_no_broken_video(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run_out(*_: object) -> None:
        raise error

    monkeypatch.setattr("wanvae.folders.frames.fitted", run_out)
    assert "out of memory; try" in run(tmp_path / "out", status=1)[1]
    assert not (tmp_path / "out" / "failures.jsonl").exists()


# What cannot be encoded


@pytest.fixture
def broken(tmp_path: Path, files: Path) -> Path:
    """A folder of two good videos and four that are broken, each in its own way."""
    folder = tmp_path / "broken"
    folder.mkdir()
    os.link(files / "videos" / "a.mp4", folder / "1.mp4")
    content = (files / "videos" / "a.mp4").read_bytes()
    (folder / "2.mp4").write_bytes(content[: len(content) // 2])
    (folder / "3.mp4").write_text("no video")
    write_video(folder / "4.mkv", noise(60), Fraction(25))
    content = (folder / "4.mkv").read_bytes()
    (folder / "4.mkv").write_bytes(content[: len(content) * 2 // 3])
    (folder / "5.tar").write_text("no tar")
    os.link(files / "videos" / "a.mp4", folder / "6.mp4")
    return folder


@pytest.mark.parametrize("container", CONTAINERS)
def test_broken_videos_are_recorded(tmp_path: Path, run: Run, broken: Path, container: str) -> None:
    options = ["--container", container, *SHARDS]
    out, err = run(tmp_path / "out", *options, source=broken)
    assert err == "" and "2 clips written, 0 were there, 4 failed" in out
    failures = {line["name"]: line["reason"] for line in lines(tmp_path / "out" / "failures.jsonl")}
    assert sorted(failures) == ["2.mp4", "3.mp4", "4.mkv", "5.tar"]
    assert "not a video" in failures["3.mp4"] and "damaged or cut short" in failures["4.mkv"]
    assert f"failed: 4.mkv: {failures['4.mkv']}\n" in out
    before = contents(tmp_path / "out")
    again, _ = run(tmp_path / "out", *options, source=broken)
    assert "0 clips written, 2 were there, 4 failed" in again
    assert contents(tmp_path / "out") == before


def test_the_good_clips_of_a_broken_video(tmp_path: Path, run: Run, broken: Path) -> None:
    run(tmp_path / "out", "--frames", 9, source=broken)
    names = [clip["name"] for clip in lines(tmp_path / "out" / "index.jsonl")]
    assert "4.mkv.00000" in names and "4.mkv.00005" not in names
    failed = [line["name"] for line in lines(tmp_path / "out" / "failures.jsonl")]
    assert "4.mkv.00005" in failed
    assert len({*names, *failed}) == 3 + 6 + 3 + 3


def test_a_mended_video_is_encoded_by_the_next_run(
    tmp_path: Path, files: Path, run: Run, broken: Path
) -> None:
    run(tmp_path / "out", source=broken)
    for name in ("2.mp4", "3.mp4"):
        (broken / name).write_bytes((files / "videos" / "e.mp4").read_bytes())
    assert "2 clips written, 2 were there, 2 failed" in run(tmp_path / "out", source=broken)[0]


def test_nothing_but_broken_videos(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    (source / "a.mp4").write_text("no video")
    out, err = run(tmp_path / "out", source=source, status=1)
    assert out == "" and f"nothing to encode in {source}: 1 files cannot be read" in err
    assert not (tmp_path / "out").exists()


def test_a_hostile_tar_writes_nothing_elsewhere(tmp_path: Path, files: Path, run: Run) -> None:
    source, content = tmp_path / "in" / "videos", (files / "videos" / "b/c.mkv").read_bytes()
    source.mkdir(parents=True)
    names = [
        "../../../x.mkv",
        f"{tmp_path}/y.mkv",
        "./a/../z.mkv",
        "new\nline\\.mkv",
        "é" * 130 + ".mkv",
    ]
    with tarfile.open(source / "a.tar", "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    before = set(contents(tmp_path))
    out, _ = run(tmp_path / "in" / "out", source=source)
    assert "5 clips written" in out
    new = set(contents(tmp_path)) - before
    assert all(name.startswith("in/out/") for name in new)
    assert "in/out/a.tar/__/__/__/x.mkv.safetensors" in new
    assert "in/out/a.tar/a/__/z.mkv.safetensors" in new
    assert "in/out/a.tar/new_line_.mkv.safetensors" in new
    assert max(len(Path(name).name.encode()) for name in new) < 255
    with tarfile.open(source / "a.tar", "w") as tar:
        for name in ("a.mkv", "./a.mkv"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    out, _ = run(tmp_path / "in" / "more", source=source)
    assert "1 clips written, 0 were there, 1 failed" in out
    assert "a.tar/./a.mkv: it would become a.tar/a.mkv, as a.tar/a.mkv does; rename one" in out


# What is refused


def test_other_settings_are_refused(tmp_path: Path, files: Path, run: Run) -> None:
    run(tmp_path / "out", "--container", "tar")
    before = contents(tmp_path / "out")
    options = ["--frames", 5, "--store", "mean"]
    _, err = run(tmp_path / "out", "--container", "tar", *options, status=1)
    assert f"{tmp_path / 'out'} was written with other settings: " in err
    assert "frames is None, not 5; store is 'moments', not 'mean'" in err
    tiny(**{**STATISTICS, "dim": 8}).float().save_pretrained(tmp_path / "vae.safetensors")
    model = ["--checkpoint", tmp_path / "vae.safetensors"]
    _, err = run(tmp_path / "out", "--container", "tar", *model, status=1)
    assert "checkpoint is '" in err
    other = tmp_path / "videos"
    other.mkdir()
    os.link(files / "videos" / "a.mp4", other / "a.mp4")
    _, err = run(tmp_path / "out", "--container", "tar", source=other, status=1)
    assert "source is '" in err and "videos were added, removed or changed" in err
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", 6], "a clip must have 1 + 4n frames, not 6: drop frames to 5"),
        (["--frames", 0], "a clip must have 1 + 4n frames, not 0: one is the least"),
        (["--fps", "fast"], "fps must be a rate like 25"),
        (["--resize", "12x16"], "height and width must be multiples of 8, not 12x16"),
        (["--resize", "big"], "resize must be a height and a width like 480x832, or"),
        (["--resize", "4"], "resize must be 8 or more, not '4'"),
        (["--shard-size", "much"], "cannot read 'much' as memory"),
        (["--resize", "4", "--frames", 101], "resize must be 8 or more"),
        (["--max-memory", "1KB"], "memory"),
    ],
)
def test_impossible_options(tmp_path: Path, run: Run, options: list[object], message: str) -> None:
    out, err = run(tmp_path / "out", *options, status=1)
    assert out == "" and message in err and err.count("\n") == 1


def test_unusable_folders(tmp_path: Path, files: Path, run: Run) -> None:
    videos = files / "videos"
    assert "would be overwritten" in run(videos, status=1)[1]
    for target in (videos / "out", files):
        _, err = run(target, status=1)
        assert f"{target} must not be in {videos}, nor around it; name another" in err
    _, err = run(tmp_path / "a" / "b", status=1)
    assert f"{tmp_path / 'a/b'} cannot be created: make the directory {tmp_path / 'a'} first" in err
    (tmp_path / "file").touch()
    assert "has other files in it" in run(tmp_path, status=1)[1]
    assert "cannot be created" in run(tmp_path / "file", status=1)[1]
    _, err = run(tmp_path / "out", source=tmp_path / "missing", status=1)
    assert "it is not a folder" in err


@pytest.mark.slow
def test_an_error_before_the_start_is_said_once(tmp_path: Path, files: Path) -> None:
    arguments = command(files, files / "videos", tmp_path / "out", "--frames", 6)
    result = subprocess.run(
        launched(*arguments), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.count("wanvae: a clip must have 1 + 4n frames") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize(
    "sent", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_interruption_leaves_complete_files(tmp_path: Path, files: Path, sent: int) -> None:
    source, target = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    for number in range(300):
        os.link(files / "videos" / "a.mp4", source / f"{number:03}.mp4")
    arguments = [sys.executable, "-m", "wanvae", *command(files, source, target)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and not list(target.glob("00*.safetensors")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent, err
    line = "wanvae: interrupted; files that were written are complete; run it again to go on"
    assert without_notice(err, "encode-dataset") == f"{line} from there\n"
    done = [name for name in contents(target) if name != "dataset.json"]
    assert 0 < len(done) < 300 and not any(name.startswith(".") for name in done)
    assert all(load_file(target / name) for name in done)


# Videos that change


def few(folder: Path) -> Path:
    """A folder of two videos, an image and a text."""
    folder.mkdir()
    write_video(folder / "a.mp4", noise(11), Fraction(25))
    write_video(folder / "b.mkv", noise(6, seed=1), Fraction(25))
    write_video(folder / "c.png", noise(1, seed=2), Fraction(1))
    (folder / "d.txt").write_text("a caption")
    return folder


def edit(path: Path, frames: int, *, keep: bool) -> None:
    """Replaces a video by another one, if possible with the same size and time to ``keep``."""
    status = path.stat()
    write_video(path, noise(frames, seed=9), Fraction(50))
    content = path.read_bytes()
    rest = status.st_size - len(content)
    if keep and rest >= 8:
        path.write_bytes(content + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.filterwarnings("default:.*is not up to date")
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("frames", [5, 6, 16])
def test_an_edited_video_is_encoded_again(
    tmp_path: Path, run: Run, frames: int, indexed: bool
) -> None:
    """Without clips of its earlier state, which was longer or shorter."""
    source = few(tmp_path / "in")
    if indexed:
        assert cli.main(["index", str(source)]) == 0
    run(tmp_path / "out", "--frames", 5, source=source)
    first = contents(tmp_path / "out")
    edit(source / "a.mp4", frames, keep=not indexed)
    out, _ = run(tmp_path / "out", "--frames", 5, source=source)
    assert "encoded again, because it has changed: a.mp4" in out
    assert "ignored, no videos or images: 1 .txt" in out
    run(tmp_path / "new", "--frames", 5, source=source)
    new = contents(tmp_path / "new")
    assert contents(tmp_path / "out") == new
    name = "a.mp4.00000.safetensors"
    assert first[name] != new[name] and first["b.mkv.00000.safetensors"] in new.values()
    out, _ = run(tmp_path / "out", "--frames", 5, source=source)
    assert "0 clips written" in out and "encoded again" not in out
    assert contents(tmp_path / "out") == new


def test_videos_that_are_gone_are_named(tmp_path: Path, run: Run) -> None:
    """A disk may be missing today: the latents of its videos wait for them."""
    source = few(tmp_path / "in")
    run(tmp_path / "out", "--frames", 5, source=source)
    index = lines(tmp_path / "out" / "index.jsonl")
    (source / "a.mp4").rename(tmp_path / "a.mp4")
    told = "not in the folder any more, so the index leaves out its clips: a.mp4\n"
    for known in (True, False):
        out, _ = run(tmp_path / "out", "--frames", 5, source=source)
        assert (told in out) == known
        left = lines(tmp_path / "out" / "index.jsonl")
        assert left == [clip for clip in index if clip["source"] != "a.mp4"]
    (tmp_path / "a.mp4").rename(source / "a.mp4")
    out, _ = run(tmp_path / "out", "--frames", 5, source=source)
    assert "0 clips written" in out and told not in out
    assert lines(tmp_path / "out" / "index.jsonl") == index


def test_a_video_that_was_edited_and_cannot_be_read_keeps_no_latents(
    tmp_path: Path, run: Run
) -> None:
    source = few(tmp_path / "in")
    write_video(source / "b.mkv", noise(60), Fraction(25))
    run(tmp_path / "out", source=source)
    assert (tmp_path / "out" / "b.mkv.safetensors").exists()
    content = (source / "b.mkv").read_bytes()
    (source / "b.mkv").write_bytes(content[: len(content) * 2 // 3])
    out, _ = run(tmp_path / "out", source=source)
    assert "0 clips written, 2 were there, 1 failed" in out
    assert not (tmp_path / "out" / "b.mkv.safetensors").exists()
    names = [clip["name"] for clip in lines(tmp_path / "out" / "index.jsonl")]
    assert names == ["a.mp4", "c.png"]


@pytest.mark.parametrize("container", ["tar", "safetensors"])
def test_an_edited_video_is_refused_by_files_of_many_clips(
    tmp_path: Path, run: Run, container: str
) -> None:
    source = few(tmp_path / "in")
    options = ["--frames", 5, "--container", container]
    run(tmp_path / "out", *options, source=source)
    before = contents(tmp_path / "out")
    status = (source / "a.mp4").stat()
    write_video(source / "a.mp4", noise(11, seed=9), Fraction(25))
    os.utime(source / "a.mp4", ns=(0, status.st_mtime_ns))
    _, err = run(tmp_path / "out", *options, source=source, status=1)
    assert "videos were added, removed or changed, as only --container files allows" in err
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_data_set_of_an_earlier_version_goes_on(
    tmp_path: Path, files: Path, run: Run, container: str
) -> None:
    """It has no stamps, and no digest of the model; where there is nothing, nothing differs."""
    source, out = few(tmp_path / "in"), tmp_path / "out"
    options = ["--frames", 5, "--container", container]
    run(out, *options, source=source)
    settings = json.loads((out / "dataset.json").read_text())
    assert settings.pop("model") and bool(settings.pop("stamps")) == (container != "files")
    (out / "dataset.json").write_text(json.dumps(settings))
    for path in out.glob("*.*"):
        content = path.read_bytes()
        stamp = re.compile(rb'(\\*)"stamp\1": {[^}]*}, ')
        path.write_bytes(stamp.sub(lambda match: b" " * len(match[0]), content))
    text, _ = run(out, *options, source=source)
    assert "0 clips written, 4 were there" in text
    assert text.count("4 clips are of an earlier version") == 1
    shutil.copy(files / "vae.safetensors", tmp_path / "other.safetensors")
    other = tiny(**{**STATISTICS, "dim": 8}).float()
    other.save_pretrained(tmp_path / "other.safetensors")
    model = ["--checkpoint", tmp_path / "other.safetensors"]
    assert "checkpoint is '" in run(out, *options, *model, source=source, status=1)[1]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_model_in_another_file_goes_on(
    tmp_path: Path, files: Path, run: Run, container: str
) -> None:
    source = few(tmp_path / "in")
    options = ["--container", container]
    run(tmp_path / "out", *options, source=source)
    content = load_file(files / "vae.safetensors")
    metadata = {**metadata_of((files / "vae.safetensors").read_bytes()), "note": "saved again"}
    save_file(content, tmp_path / "again.safetensors", metadata)
    model = ["--checkpoint", tmp_path / "again.safetensors"]
    out, _ = run(tmp_path / "out", *options, *model, source=source)
    assert "0 clips written, 4 were there" in out or "0 clips written, 3 were there" in out


# Clips of variable rates


def test_clips_tell_their_times(tmp_path: Path, run: Run) -> None:
    """fps is the mean over the clip where the rate varies, and the rate where it does not."""
    source = tmp_path / "in"
    source.mkdir()
    times = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3, 1.3, 1.4, 1.5, 1.6]
    with VideoWriter(source / "a.mkv", width=40, height=24, fps=Fraction(25)) as writer:
        writer.write(noise(11), times)
    run(tmp_path / "out", "--frames", 5, source=source)
    first, second = lines(tmp_path / "out" / "index.jsonl")
    assert (first["start"], second["start"]) == (0.0, pytest.approx(0.2))
    assert float(Fraction(first["fps"])) == pytest.approx(25, rel=0.01)
    assert float(Fraction(second["fps"])) == pytest.approx(4 / 1.3, rel=0.01)
    stored = load_file(tmp_path / "out" / second["file"])["times"]
    assert stored.tolist() == pytest.approx([0.0, 0.1, 1.1, 1.2, 1.3], abs=2e-3)
    for clip, end in ((first, 0.2), (second, 1.4)):
        with read_latents(tmp_path / "out" / clip["file"]) as latents:
            assert latents.end == pytest.approx(end, abs=2e-3)


# Latents that are not finite


def test_latents_that_are_not_finite_are_failures(tmp_path: Path, files: Path, run: Run) -> None:
    source = few(tmp_path / "in")
    vae = vae_of(files)
    with torch.no_grad():
        vae.encoder.conv1.weight.mul_(1e7)
    vae.save_pretrained(tmp_path / "large.safetensors")
    model = ["--checkpoint", tmp_path / "large.safetensors", "--encode-dtype"]
    out, _ = run(tmp_path / "half", *model, "float16", source=source, status=1)
    reason = "not finite (NaN or infinite) in float16: encode in bfloat16"
    assert "3 failed" in out and out.count(reason) == 3
    assert not list((tmp_path / "half").rglob("*.safetensors"))
    assert "0 failed" in run(tmp_path / "whole", *model, "float32", source=source)[0]


def test_latents_that_a_dtype_cannot_hold_are_failures(
    tmp_path: Path, files: Path, run: Run
) -> None:
    source = few(tmp_path / "in")
    vae = vae_of(files)
    with torch.no_grad():
        vae.conv1.bias[:1] = 1e5
    vae.save_pretrained(tmp_path / "large.safetensors")
    model = ["--checkpoint", tmp_path / "large.safetensors", "--store-dtype"]
    out, _ = run(tmp_path / "half", *model, "float16", source=source, status=1)
    assert out.count("the latents do not fit into float16; use --store-dtype bfloat16 or") == 3
    assert "0 failed" in run(tmp_path / "brain", *model, "bfloat16", source=source)[0]


# Tars for webdataset


def test_webdataset_reads_a_sample_for_each_clip(tmp_path: Path, run: Run) -> None:
    source = few(tmp_path / "in")
    for name in ("a.b.mp4", "a_b.mp4"):
        shutil.copy(source / "a.mp4", source / name)
    run(tmp_path / "out", "--frames", 5, "--container", "tar", source=source)
    samples = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with path.open("rb") as file:
            members = ({**member, "__url__": path.name} for member in tar_file_iterator(file))
            samples += group_by_keys(members)
    index = lines(tmp_path / "out" / "index.jsonl")
    assert len(samples) == len(index) == 2 + 2 + 2 + 1 + 1
    names = [json.loads(metadata_of(each["safetensors"])["clip"])["name"] for each in samples]
    assert names == [clip["name"] for clip in index]
    assert len({each["__key__"] for each in samples}) == len(samples)


def test_a_file_without_latents_is_damaged(tmp_path: Path) -> None:
    video = VideoShape(width=8, height=8, fps="25", source="a.mp4")
    clip = {"clip": json.dumps({"name": "a", "start": 0.0})}
    metadata = video_metadata(video) | clip
    save_file({"times": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match=r"is damaged .*; delete it"):
        index_file(tmp_path, "a.safetensors")


def test_two_jobs_do_not_write_one_data_set(tmp_path: Path, run: Run) -> None:
    with occupied(tmp_path / "out"):
        _, err = run(tmp_path / "out", status=1)
    assert err.startswith(f"wanvae: another process works in {tmp_path / 'out'} (process 1 on ")
    assert not contents(tmp_path / "out").keys() - {".lock"}
    run(tmp_path / "out")
    assert ".lock" not in contents(tmp_path / "out")


# Scenes


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A video of two scenes, and a still one."""
    source = tmp_path / "scenes"
    write_scenes(source / "a.mp4", scene(1, 20, speed=2), scene(2, 18, speed=2))
    write_scenes(source / "still.mp4", scene(3, 20, speed=0))
    return source


def test_clips_are_cut_from_scenes(tmp_path: Path, run: Run, scenes: Path) -> None:
    run(tmp_path / "before", "--frames", 9, source=scenes)
    write_manifest(scenes, checks=Checks())
    out, _ = run(tmp_path / "out", "--frames", 9, source=scenes)
    assert "note: 1 scenes are left out, because nothing moves in them" in out
    index = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text().splitlines()]
    assert [clip["name"] for clip in index] == [
        f"a.mp4.{name}" for name in ("000000.00000", "000000.00001", "000020.00000", "000020.00001")
    ]
    assert [clip["cut_from"] for clip in index] == ["0+20", "0+20", "20+18", "20+18"]
    assert index[2]["start"] == pytest.approx(0.8)
    assert "cut_from" not in (tmp_path / "before/index.jsonl").read_text()


def test_other_scenes_are_noticed(tmp_path: Path, run: Run, scenes: Path) -> None:
    whole = [tmp_path / "files", tmp_path / "tar"]
    for target, container in zip(whole, ("files", "tar"), strict=True):
        run(target, "--frames", 9, "--container", container, source=scenes)
    write_manifest(scenes, checks=Checks())
    out, _ = run(whole[0], "--frames", 9, source=scenes)
    assert "encoded again, because it has changed: a.mp4" in out and "4 clips written" in out
    run(tmp_path / "fresh", "--frames", 9, source=scenes)
    for name in ("index.jsonl", "a.mp4.000020.00001.safetensors"):
        assert (whole[0] / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert not (whole[0] / "a.mp4.00000.safetensors").exists()
    err = run(whole[1], "--frames", 9, "--container", "tar", source=scenes, status=1)[1]
    assert "other scenes in their manifest are a change too" in err
    # Another crop of the same frames.
    lines = (
        (scenes / MANIFEST)
        .read_text()
        .replace('"version": 1', '"box": [8, 0, 48, 64], "version": 1')
    )
    (scenes / MANIFEST).write_text(lines)
    out, _ = run(whole[0], "--frames", 9, source=scenes)
    assert "encoded again, because it has changed: a.mp4" in out and "4 clips written" in out
    out, _ = run(whole[0], "--frames", 9, source=scenes)
    assert "0 clips written, 4 were there" in out
