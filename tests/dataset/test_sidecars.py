"""Captions, metadata, first frames and controls: what a data set has besides the latents."""

import csv
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from tests.commands import outputs_of
from tests.helpers import tiny
from tests.scenes import scene, write_scenes
from wanvae import LatentDataset, WanVAE, cli
from wanvae.dataset import encode as encoding
from wanvae.dataset.own import OwnLatents
from wanvae.errors import UserError
from wanvae.folders.manifest import write_manifest
from wanvae.selection.checks import Checks
from wanvae.video import read_video, write_video

CONTAINERS = ["files", "tar", "safetensors"]

Encode = Callable[..., str]


def noise(frames: int, seed: int, height: int = 16, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, frames, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "vae.safetensors"
    statistics = {"latents_mean": (0.5, -0.25), "latents_std": (2.0, 0.5)}
    torch.manual_seed(0)
    tiny(**statistics).float().save_pretrained(path)
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Three videos, one of them in a folder."""
    folder = tmp_path / "videos"
    (folder / "b").mkdir(parents=True)
    for seed, name in enumerate(["a.mp4", "b/c.mkv", "d.mp4"]):
        write_video(folder / name, noise(9, seed), Fraction(25))
    return folder


@pytest.fixture
def encode(tmp_path: Path, checkpoint: Path, videos: Path, capsys) -> Encode:
    """Encode the videos with options, ending with ``status``; gives what is printed."""

    def run(*options: object, name: str = "out", source: Path = videos, status: int = 0) -> str:
        model = ["--checkpoint", checkpoint, "--device", "cpu"]
        command = ["encode-dataset", source, tmp_path / name, *model, *options]
        return "".join(outputs_of(capsys, list(map(str, command)), status))

    return run


def described(folder: Path) -> dict[str, object]:
    """The sidecars of each clip."""
    return {clip.name: clip.sidecars for clip in LatentDataset(folder).clips}


# Captions and metadata


@pytest.mark.parametrize("container", CONTAINERS)
def test_captions_beside_videos(
    tmp_path: Path, videos: Path, encode: Encode, container: str
) -> None:
    (videos / "a.txt").write_text("a cat\n")
    (videos / "a.mp4.json").write_text('{"tags": ["cat", 1.5, null], "caption": "unused"}')
    (videos / "b" / "c.caption").write_bytes("\ufeffein Käfer".encode())
    (videos / "b" / "d.txt").write_text("of no video here")
    out = encode("--container", container, "--frames", 5)
    assert "ignored, no videos or images: 1 .txt\n" in out and "note" not in out
    cat = {"txt": "a cat\n", "json": {"tags": ["cat", 1.5, None], "caption": "unused"}}
    assert described(tmp_path / "out") == {
        "a.mp4.00000": cat,
        "b/c.mkv.00000": {"caption": "ein Käfer"},
        "d.mp4.00000": {},
    }
    dataset = LatentDataset(tmp_path / "out")
    assert [clip.caption for clip in dataset.clips] == ["a cat", "ein Käfer", None]
    (batch,) = DataLoader(dataset, batch_size=3)
    assert list(batch.caption) == ["a cat", "ein Käfer", ""]
    assert batch.first_frame.shape == batch.control.shape == (3, 2, 0, 2, 3)


ROWS = [
    {"file_name": "a.mp4", "text": "a, cat", "stars": 5},
    {"file_name": "b/c.mkv", "text": 'a "dog"', "stars": 4},
    {"file_name": "gone.mp4", "text": "nothing", "stars": 3},
]


def write_table(path: Path, rows: list[dict[str, object]], name: str = "file_name") -> None:
    rows = [{name if key == "file_name" else key: row[key] for key in row} for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("name", ["file_name", "video"])
def test_rows_of_a_table(
    tmp_path: Path, videos: Path, encode: Encode, suffix: str, name: str
) -> None:
    write_table(videos / f"metadata{suffix}", ROWS, name)
    (videos / "a.txt").write_text("said beside it")
    out = encode()
    assert "ignored" not in out
    assert "note: tables of metadata describe files that are not there: gone.mp4\n" in out
    stars: list[object] = ["5", "4"] if suffix == ".csv" else [5, 4]
    assert described(tmp_path / "out") == {
        "a.mp4": {"txt": "said beside it", "metadata": {"text": "a, cat", "stars": stars[0]}},
        "b/c.mkv": {"metadata": {"text": 'a "dog"', "stars": stars[1]}},
        "d.mp4": {},
    }
    captions = [clip.caption for clip in LatentDataset(tmp_path / "out").clips]
    assert captions == ["said beside it", 'a "dog"', None]


def test_a_table_of_a_subfolder_names_files_from_there(
    tmp_path: Path, videos: Path, encode: Encode
) -> None:
    write_table(videos / "b" / "metadata.csv", [{"file_name": "./c.mkv", "text": "near"}])
    write_table(videos / "metadata.jsonl", [{"file_name": "b/c.mkv", "text": "far"}])
    out = encode()
    told = "b/metadata.csv: 1 rows are of a video that has another row, which they replace"
    assert f"note: {told}\n" in out
    assert described(tmp_path / "out")["b/c.mkv"] == {"metadata": {"text": "near"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", b'{"file_name": "a.mp4"}\n[1]\n', "line 2: it is no JSON object"),
        ("metadata.jsonl", b'{"file_name": "a.mp4", "x": NaN}', "line 1: it is no JSON .NaN"),
        ("metadata.csv", b"file_name,text\na.mp4,a,b\n", "line 2 has more values"),
        ("metadata.csv", b"file_name,text\na.mp4,\xff\n", "can't decode byte 0xff"),
        ("metadata.parquet", b"PAR1", "damaged Parquet file"),
    ],
)
def test_a_damaged_table_is_refused_before_work(
    tmp_path: Path, videos: Path, encode: Encode, name: str, content: bytes, message: str
) -> None:
    (videos / name).write_bytes(content)
    error = encode(status=1)
    assert f"{videos / name} cannot be read: " in error and error.count("\n") == 1
    assert re.search(message, error)
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_a_damaged_caption_is_told_and_left_out(
    tmp_path: Path, videos: Path, encode: Encode
) -> None:
    (videos / "a.json").write_text('{"caption": "a cat"')
    (videos / "a.txt").write_bytes(b"\xff\xfea\0")
    (videos / "b" / "c.txt").write_text("x" * 2**21)
    (videos / "metadata.csv").write_text("who,what\na,b\n")
    out = encode()
    assert "note: a.json: it is no JSON (" in out
    assert "note: a.txt: it is not UTF-8 text (invalid start byte at byte 0); left out" in out
    assert "note: b/c.txt: it cannot be read, or has more than 1048576 bytes; left out" in out
    assert "note: metadata.csv names no videos, because it has no column file_name, file" in out
    assert set(map(str, described(tmp_path / "out").values())) == {"{}"}


def test_members_of_a_sample_in_a_tar(tmp_path: Path, videos: Path, encode: Encode) -> None:
    source = tmp_path / "tars"
    source.mkdir()
    members = {"0.txt": b"a cat", "0.json": b'{"n": 1}', "0.cls": b"7", "0.meta.json": b"[2]"}
    members |= {"0.npy": b"\x93NUMPY\0\xff", "1.txt": b"a dog", "2.txt": b"nobody"}
    with tarfile.open(source / "s.tar", "w") as tar:
        tar.add(videos / "a.mp4", "x/0.mp4")
        tar.add(videos / "d.mp4", "x/1.mp4")
        for name, content in members.items():
            (tmp_path / "member").write_bytes(content)
            tar.add(tmp_path / "member", f"x/{name}")
    (source / "metadata.jsonl").write_text('{"file": "s.tar/x/1.mp4", "stars": 5}\n')
    out = encode(source=source)
    assert "note: 1 files .npy in tars are neither text nor JSON: left out\n" in out
    assert "ignored" not in out
    assert described(tmp_path / "out") == {
        "s.tar/x/0.mp4": {"txt": "a cat", "json": {"n": 1}, "cls": "7", "meta.json": [2]},
        "s.tar/x/1.mp4": {"txt": "a dog", "metadata": {"stars": 5}},
    }


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_changed_caption_changes_the_index_alone(
    tmp_path: Path,
    videos: Path,
    encode: Encode,
    container: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (videos / "a.txt").write_text("a cat")
    write_table(videos / "metadata.jsonl", ROWS)
    assert "captions or metadata are new" not in encode("--container", container)
    assert "captions or metadata are new" not in encode("--container", container)
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("**/*.[st]a*")}
    monkeypatch.setattr(encoding, "encode_frames", lambda *_: pytest.fail("encoded again"))
    (videos / "a.txt").write_text("a dog")
    (videos / "d.caption").write_text("new")
    out = encode("--container", container)
    told = "latents are kept, but captions or metadata are new: "
    assert f"{told}a.mp4\n{told}d.mp4\n" in out and "b/c.mkv" not in out
    captions = [clip.caption for clip in LatentDataset(tmp_path / "out").clips]
    assert captions == ["a dog", 'a "dog"', "new"]
    (videos / "a.txt").unlink()
    encode("--container", container)
    assert LatentDataset(tmp_path / "out").clips[0].caption == "a, cat"
    assert before and all(path.read_bytes() == content for path, content in before.items())


def test_an_index_without_captions_is_as_before(tmp_path: Path, encode: Encode) -> None:
    encode()
    lines = (tmp_path / "out" / "index.jsonl").read_text().splitlines()
    fields = ["name", "source", "start", "fps", "frames", "height", "width", "file", "offset"]
    assert [list(json.loads(line)) for line in lines] == 3 * [[*fields, "shape", "stamp"]]


# First frames and controls


def latents_of(checkpoint: Path, video: Tensor) -> Tensor:
    """The normalized mean of the latents of a video."""
    vae = WanVAE.from_pretrained(checkpoint)
    return vae.normalize(vae.encode(video[None]).mode())[0]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("store", ["moments", "mean", "sample"])
def test_first_frames_and_controls_are_those_of_the_model(
    tmp_path: Path, videos: Path, encode: Encode, checkpoint: Path, container: str, store: str
) -> None:
    control = tmp_path / "depth"
    (control / "b").mkdir(parents=True)
    for seed, name in enumerate(["a.mp4", "b/c.mp4", "d.mp4"]):
        # Longer than its video, and twice as large.
        write_video(control / name, noise(13, seed + 9, 32, 48), Fraction(25))
    options = ["--store", store, "--container", container, "--shard-size", "1KB"]
    conditions = ["--conditioning", "first_frame", "--control", control]
    encode(*options, *conditions, "--resize", "16")
    dataset = LatentDataset(tmp_path / "out")
    plain = encode(*options, "--resize", "16", name="plain")
    assert "3 clips written" in plain
    for clip, before in zip(dataset, LatentDataset(tmp_path / "plain"), strict=True):
        assert torch.equal(clip.latents, before.latents)
        assert clip.first_frame.shape == (2, 1, 2, 3)
        assert clip.control.shape == clip.latents.shape == (2, 3, 2, 3)
    if store == "sample":
        assert not torch.equal(dataset[0].first_frame, dataset[0].latents[:, :1])
        return
    for number, name in enumerate(["a.mp4", "b/c.mkv", "d.mp4"]):
        video, _ = read_video(videos / name)
        alone = latents_of(checkpoint, video[:, :1])
        torch.testing.assert_close(dataset[number].first_frame, alone, atol=1e-5, rtol=1e-5)
    second, _ = read_video(control / "a.mp4")
    small = torch.nn.functional.interpolate(
        second[:, :9].transpose(0, 1), (16, 24), mode="bilinear", antialias=True
    )
    expected = latents_of(checkpoint, small.transpose(0, 1))
    torch.testing.assert_close(dataset[0].control, expected, atol=2e-2, rtol=2e-2)


def test_a_sample_is_drawn_of_conditions_too(tmp_path: Path, encode: Encode, videos: Path) -> None:
    control = tmp_path / "same"
    shutil.copytree(videos, control)
    encode("--conditioning", "first_frame", "--control", control)
    drawing = LatentDataset(tmp_path / "out", sample=True)
    first, second = drawing[0], drawing[0]
    assert not torch.equal(first.first_frame, second.first_frame)
    assert not torch.equal(first.control, second.control)
    raw = OwnLatents(tmp_path / "out", sample=False)
    stored = raw.read_stored(raw.clips[0])
    assert torch.equal(stored[1], stored[0][:, :, :1]) and torch.equal(stored[2], stored[0])


@pytest.mark.parametrize("options", [[], ["--fps", 10]])
def test_a_control_is_cut_at_the_times_of_its_clips(
    tmp_path: Path, encode: Encode, options: list[object]
) -> None:
    source, control = tmp_path / "long", tmp_path / "depth"
    source.mkdir()
    control.mkdir()
    ramp = torch.linspace(-1, 1, 60)[:, None, None].expand(3, 60, 16, 24)
    write_video(source / "a.mkv", ramp, Fraction(30))
    # Half of the rate: each frame is shown as long as two of the video.
    write_video(control / "a.mkv", ramp[:, ::2], Fraction(15))
    encode("--frames", 5, *options, "--control", control, source=source)
    encode("--frames", 5, *(options or ["--fps", 30]), name="alone", source=control)
    clips, alone = LatentDataset(tmp_path / "out"), LatentDataset(tmp_path / "alone")
    assert len(clips) == (4 if options else 12)
    # The control may be shown for longer than the last clip.
    for number, clip in enumerate(clips):
        assert torch.equal(clip.control, alone[number].latents)


def test_scenes_share_the_captions_and_controls_of_their_video(
    tmp_path: Path, encode: Encode
) -> None:
    source, control = tmp_path / "long", tmp_path / "depth"
    parts = scene(1, 20, speed=2), scene(2, 18, speed=2)
    video = torch.nn.functional.pad(torch.cat(parts, dim=1) + 1, (0, 0, 16, 16)) - 1
    write_scenes(source / "a.mp4", video)
    # Twice as large.
    write_scenes(control / "a.mp4", video.repeat_interleave(2, 2).repeat_interleave(2, 3))
    (source / "a.txt").write_text("a cat")
    write_manifest(source, checks=Checks())
    options = ["--frames", "13,5", "--buckets", "32x32,48x32", "--store", "mean"]
    encode(*options, "--control", control, source=source)
    dataset = LatentDataset(tmp_path / "out")
    assert [(clip.name, clip.frames) for clip in dataset.clips] == [
        (f"a.mp4.{first}.{number:05}", frames)
        for first in ("000000", "000020")
        for number, frames in enumerate((13, 5))
    ]
    # Without its bars the video is square.
    assert {(clip.height, clip.width, clip.caption) for clip in dataset.clips} == {
        (32, 32, "a cat")
    }
    latents = torch.stack([clip.latents[:, :2] for clip in dataset])
    for number, clip in enumerate(dataset):
        distances = (latents - clip.control[:, :2]).abs().flatten(1).mean(1)
        assert distances.argmin() == number
        assert distances[number] < 0.1


def test_controls_that_do_not_fit_are_failures(
    tmp_path: Path, videos: Path, encode: Encode
) -> None:
    control = tmp_path / "depth"
    control.mkdir()
    write_video(control / "a.mp4", noise(5, 0), Fraction(25))
    write_video(control / "d.mp4", noise(9, 0, 24, 16), Fraction(25))
    out = encode("--control", control, "--store", "mean", status=1)
    assert "a.mp4: its control a.mp4: it has 5 frames, but the clip has 9" in out
    assert "failed: b/c.mkv: there is no video of the name b/c in the folder of controls" in out
    assert "d.mp4 has 16x24 pixels, but the video has 24x16: other proportions" in out
    failures = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in failures] == ["a.mp4", "b/c.mkv", "d.mp4"]
    write_video(control / "a.mp4", noise(9, 0), Fraction(25))
    out = encode("--control", control, "--store", "mean")
    assert "1 clips written, 0 were there, 2 failed" in out


def test_a_changed_control_is_encoded_again(tmp_path: Path, videos: Path, encode: Encode) -> None:
    control = tmp_path / "depth"
    shutil.copytree(videos, control)
    encode("--control", control)
    assert "0 clips written, 3 were there" in encode("--control", control)
    write_video(control / "a.mp4", noise(9, 7), Fraction(25))
    out = encode("--control", control)
    assert "1 clips written, 2 were there" in out
    assert "encoded again, because it has changed: a.mp4" in out
    encode("--control", control, "--container", "tar", name="tars")
    write_video(control / "a.mp4", noise(9, 8), Fraction(25))
    out = encode("--control", control, "--container", "tar", name="tars", status=1)
    assert "videos were added, removed or changed" in out


def test_other_conditions_are_refused(tmp_path: Path, videos: Path, encode: Encode) -> None:
    control = tmp_path / "depth"
    shutil.copytree(videos, control)
    encode("--conditioning", "first_frame")
    assert "conditioning" in encode(status=1)
    assert "control" in encode("--conditioning", "first_frame", "--control", control, status=1)
    inside = encode("--control", videos / "b", name="other", status=1)
    assert "lies in" in inside and "move it out" in inside
    missing = encode("--control", tmp_path / "missing", name="other", status=1)
    assert "it is not a folder" in missing
    assert not (tmp_path / "other" / "dataset.json").exists()


def test_a_file_with_conditions_is_decoded(
    tmp_path: Path, videos: Path, encode: Encode, checkpoint: Path
) -> None:
    encode("--conditioning", "first_frame")
    path = tmp_path / "out" / "a.mp4.safetensors"
    names = ["first_frame_logvar", "first_frame_mean", "logvar", "mean", "times"]
    assert sorted(load_file(path)) == names
    command = ["decode", path, tmp_path / "a.mkv", "--checkpoint", checkpoint]
    assert cli.main(list(map(str, command))) == 0
    assert read_video(tmp_path / "a.mkv")[0].shape == (3, 9, 16, 24)


def test_files_of_other_programs(tmp_path: Path, videos: Path, encode: Encode) -> None:
    control = tmp_path / "depth"
    shutil.copytree(videos, control)
    (videos / "a.txt").write_text("a cat")
    first = ["--conditioning", "first_frame"]
    model = ["--architecture", "wan22_5b"]
    out = encode(*first, "--layout", "ai-toolkit", *model, name="toolkit")
    assert "note: captions and metadata are in index.jsonl alone, which ai-toolkit does not" in out
    dataset = LatentDataset(tmp_path / "toolkit")
    assert dataset[0].caption == "a cat"
    tensors = load_file(tmp_path / "toolkit" / dataset.clips[0].file)
    assert sorted(tensors) == ["first_frame_latent", "latent", "num_frames"]
    assert torch.equal(tensors["first_frame_latent"].float(), dataset[0].first_frame)
    plain = encode("--layout", "ai-toolkit", *model, name="plain")
    assert "3 clips written" in plain
    # The name is another, because ai-toolkit caches with do_i2v under another name.
    assert LatentDataset(tmp_path / "plain").clips[0].file != dataset.clips[0].file

    encode("--control", control, "--layout", "musubi", "--architecture", "wan", name="musubi")
    dataset = LatentDataset(tmp_path / "musubi")
    tensors = load_file(tmp_path / "musubi" / dataset.clips[0].file)
    assert sorted(tensors) == ["latents_3x2x3_bfloat16", "latents_control_3x2x3_bfloat16"]
    assert torch.equal(tensors["latents_control_3x2x3_bfloat16"].float(), dataset[0].control)

    for layout, options in [
        ("musubi", [*first, "--architecture", "wan"]),
        ("musubi", ["--control", control, "--architecture", "qi"]),
        ("simpletuner", first),
        ("diffusion-pipe", first),
        ("comfyui", ["--control", control]),
        ("ai-toolkit", ["--control", control, *model]),
    ]:
        error = encode("--layout", layout, *options, name="none", status=1)
        assert "has no place for the latents of" in error and "or write --layout wanvae" in error
        assert not (tmp_path / "none" / "dataset.json").exists()


# Long lists


def test_lines_are_read_when_asked_for(tmp_path: Path, encode: Encode) -> None:
    encode()
    dataset = LatentDataset(tmp_path / "out")
    assert [clip.name for clip in dataset.clips] == ["a.mp4", "b/c.mkv", "d.mp4"]
    assert [clip.name for clip in dataset.clips[1:]] == ["b/c.mkv", "d.mp4"]
    assert dataset.clips[-1].name == "d.mp4" and dataset.shapes == 3 * [(2, 3, 2, 3)]
    with pytest.raises(IndexError):
        dataset.clips[3]
    index = tmp_path / "out" / "index.jsonl"
    lines = index.read_text().splitlines()
    # Written by another program, without spaces, and with a damaged line.
    compact = json.dumps(json.loads(lines[0]), separators=(",", ":"))
    index.write_text("\n".join([compact, '{"name": "b"}', lines[2]]))
    os.utime(index, ns=(0, 0))
    with pytest.raises(UserError, match=r"index.jsonl has changed since it was opened"):
        dataset.clips[0]
    dataset = LatentDataset(tmp_path / "out")
    assert len(dataset) == 3 and dataset[0].latents.shape == dataset[2].latents.shape
    with pytest.raises(UserError, match=r"is damaged \(line 2: .* delete it, and run wanvae"):
        dataset[1]
    with pytest.raises(UserError, match=r"is damaged \(line 2: "):
        dataset.shapes  # noqa: B018
