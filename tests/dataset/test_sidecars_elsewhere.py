"""Captions, metadata, first frames and controls in parts, after stops, and at addresses."""

import json
import pickle
import shutil
import tarfile
from pathlib import Path

import fsspec
import pytest
import torch

from tests.dataset.data_set_runs import (
    contents,
    encode_command,
    encode_parts,
    run_command,
    stop_after,
    upload,
    write_inputs,
)
from tests.storage_servers import web_server
from wanvae import LatentDataset
from wanvae.engine.json_lines import JsonLines
from wanvae.engine.storage.remote_path import RemotePath, location
from wanvae.errors import UserError
from wanvae.folders.failure import Failure
from wanvae.folders.listing import MANIFEST
from wanvae.video.common import is_pipe
from wanvae.video.reading.animated_webp import find_animation
from wanvae.video.reading.sequence import DEFAULT_RATE, find_sequence

Capture = pytest.CaptureFixture[str]

CONTAINERS = ["files", "tar", "safetensors"]
ROW = {"file_name": "b/d.mp4", "stars": 5}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``write_inputs``, with captions, a table, a tar of a sample, and controls."""
    folder = tmp_path_factory.mktemp("files")
    write_inputs(folder)
    videos, controls = folder / "videos", folder / "controls"
    (videos / "a.txt").write_text("a cat")
    (videos / "b" / "c.mkv.json").write_text('{"caption": "a dog"}')
    (videos / "metadata.jsonl").write_text(json.dumps(ROW) + "\n")
    (videos / "metadata.csv").write_text("file_name,text\nf.mp4,a bird\n")
    shutil.copytree(videos, controls, ignore=shutil.ignore_patterns("g.mp4", "e.mp4", "*.t*"))
    (folder / "i.txt").write_text("a mouse")
    with tarfile.open(videos / "i.tar", "w") as tar:
        tar.add(videos / "f.mp4", "i.mp4")
        tar.add(folder / "i.txt", "i.txt")
    shutil.copy(videos / "f.mp4", controls / "e.mp4")
    shutil.copytree(videos, controls / "i.tar", ignore=lambda folder, names: set(names) - {"f.mp4"})
    (controls / "i.tar" / "f.mp4").rename(controls / "i.tar" / "i.mp4")
    return folder


def options_of(files: Path, container: str, control: object = None) -> list[object]:
    """Options for clips of several lengths and sizes, in shards of few clips, with conditions."""
    conditions = ["--conditioning", "first_frame", "--control", control or files / "controls"]
    shapes = ["--frames", "9,5", "--buckets", "16x32,24x40"]
    return ["--container", container, "--shard-size", "6KB", *conditions, *shapes]


def captions(folder: object) -> dict[str, str]:
    """The captions in a data set by the name of the clip, and what else its tables tell."""
    clips = LatentDataset(str(folder)).clips
    assert next(c.sidecars for c in clips if c.source == "b/d.mp4") == {"metadata": {"stars": 5}}
    return {clip.name: clip.caption for clip in clips if clip.caption is not None}


EXPECTED = {"a.mp4": "a cat", "b/c.mkv": "a dog", "f.mp4": "a bird", "i.tar/i.mp4": "a mouse"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_parts_have_sidecars_and_conditions(
    tmp_path: Path, capsys: Capture, files: Path, container: str
) -> None:
    options = options_of(files, container)
    out = run_command(
        capsys, *encode_command(files, files / "videos", tmp_path / "whole", *options)
    )
    assert "its control e.mp4" in out, out
    assert {name.split(".0")[0]: text for name, text in captions(tmp_path / "whole").items()} == (
        EXPECTED
    )
    folders = encode_parts(capsys, files, tmp_path, ["0/3", "1/3", "2/3"], *options)
    run_command(capsys, "merge-index", *folders, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    shapes = {clip.latents.shape for clip in LatentDataset(tmp_path / "merged")}
    assert {shape[1] for shape in shapes} == {2, 3}


def test_parts_of_other_controls_are_refused(tmp_path: Path, capsys: Capture, files: Path) -> None:
    other = tmp_path / "controls"
    shutil.copytree(files / "controls", other)
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    controls = ["--control", files / "controls"], ["--control", other], []
    for number, (target, control) in enumerate(zip(folders, controls, strict=True)):
        part = ["--part", f"{number % 2}/2", *control]
        run_command(capsys, *encode_command(files, files / "videos", target, *part))
    out = run_command(capsys, "merge-index", *folders[:2], tmp_path / "merged")
    assert f"note: {folders[1]} is of the controls in {other}" in out
    out = run_command(capsys, "merge-index", *folders[1:], tmp_path / "none", status=1)
    assert "control is None" in out
    # Fewer controls give other clips.
    (other / "f.mp4").unlink()
    part, target = ["--part", "1/2", "--control", other], tmp_path / "fewer"
    run_command(capsys, *encode_command(files, files / "videos", target, *part))
    out = run_command(capsys, "merge-index", folders[0], target, tmp_path / "none", status=1)
    assert "is of other clips than part 0/2" in out


def test_captions_that_changed_between_parts(tmp_path: Path, capsys: Capture, files: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(files / "videos", videos)
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, target in enumerate(folders):
        (videos / "a.txt").write_text(f"cat {number}")
        run_command(capsys, *encode_command(files, videos, target, "--part", "0/1"))
    out = run_command(capsys, "merge-index", *folders, tmp_path / "merged")
    assert "note: 6 clips have other captions or metadata in another part" in out
    assert captions(tmp_path / "merged")["a.mp4.00000"] == "cat 0"


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("overdue", [False, True])
@pytest.mark.parametrize("begun", [1, 4, 7])
def test_a_stop_keeps_clips_with_their_conditions(
    tmp_path: Path,
    capsys: Capture,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    container: str,
    begun: int,
    overdue: bool,
) -> None:
    command, whole = (
        encode_command(files, files / "videos", tmp_path / name, *options_of(files, container))
        for name in ("out", "whole")
    )
    run_command(capsys, *whole)
    first = stop_after(monkeypatch, begun, overdue=overdue)
    run_command(capsys, *command, status=143)
    # The control of a clip under way is still encoded.
    assert len(first) == (begun if overdue else begun + begun % 2)
    monkeypatch.undo()
    second = stop_after(monkeypatch, 99, overdue=False)
    run_command(capsys, *command)
    monkeypatch.undo()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # A clip and its control, which were under way, are all that is encoded twice.
    assert len(first) + len(second) <= total_of(monkeypatch, capsys, whole, tmp_path) + 2


def total_of(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, command: list[str], folder: Path
) -> int:
    """How many clips and controls a whole run encodes."""
    shutil.rmtree(folder / "whole")
    encoded = stop_after(monkeypatch, 99, overdue=False)
    run_command(capsys, *command)
    return len(encoded)


# At addresses


@pytest.fixture
def memory() -> RemotePath:
    """An empty folder at an address in the memory of this process."""
    fsspec.filesystem("memory").store.clear()
    return location("memory://data")


def test_sidecars_at_an_address(
    tmp_path: Path, capsys: Capture, files: Path, memory: RemotePath
) -> None:
    upload(files / "videos", memory / "videos")
    upload(files / "controls", memory / "controls")
    options = options_of(files, "tar")
    run_command(capsys, *encode_command(files, files / "videos", tmp_path / "local", *options))
    expected = captions(tmp_path / "local")
    options = options_of(files, "tar", memory / "controls")
    command = encode_command(files, memory / "videos", memory / "out", *options)
    run_command(capsys, *command)
    assert captions(memory / "out") == expected
    for one, other in zip(
        LatentDataset(tmp_path / "local"), LatentDataset(str(memory / "out")), strict=True
    ):
        assert torch.equal(one.latents, other.latents) and torch.equal(one.control, other.control)
        assert torch.equal(one.first_frame, other.first_frame) and one.caption == other.caption
    # With a manifest, which does not name captions, they are found too.
    run_command(capsys, "index", memory / "videos")
    assert (memory / "videos" / MANIFEST).exists()
    run_command(capsys, *encode_command(files, memory / "videos", tmp_path / "listed", *options))
    assert captions(tmp_path / "listed") == expected
    caption = tmp_path / "caption"
    caption.write_text("another cat")
    (memory / "videos" / "a.txt").upload(caption)
    assert "captions or metadata are new: a.mp4" in run_command(capsys, *command)
    assert captions(memory / "out")["a.mp4.00000"] == "another cat"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_tables_at_an_address(
    tmp_path: Path, capsys: Capture, files: Path, memory: RemotePath, suffix: str
) -> None:
    rows = [
        {"file_name": "a.mp4", "text": "é, cat\nin two lines"},
        {"file_name": f"{memory}/b/c.mkv", "text": "a dog"},
    ]
    table = tmp_path / f"metadata.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), table)
    elif suffix == "csv":
        table.write_bytes('\ufefffile_name,text\r\na.mp4,"é, cat\nin two lines"\r\n'.encode())
        with table.open("a") as file:
            file.write(f"{memory}/b/c.mkv,a dog\n")
    else:
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.mp4", "b/c.mkv"):
        (memory / name).upload(files / "videos" / name)
    (memory / table.name).upload(table)
    run_command(capsys, *encode_command(files, memory, tmp_path / "out"))
    found = {clip.source: clip.caption for clip in LatentDataset(tmp_path / "out").clips}
    assert found == {"a.mp4": "é, cat\nin two lines", "b/c.mkv": "a dog"}


def test_sidecars_of_a_web_server(tmp_path: Path, capsys: Capture, files: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(files / "videos", videos)
    shutil.copy(videos / "f.mp4", videos / "b" / "two words.mp4")
    (videos / "b" / "two words.txt").write_text("a horse")
    run_command(capsys, *encode_command(files, videos, tmp_path / "local"))
    run_command(capsys, "index", videos)
    with web_server(videos) as server:
        run_command(capsys, *encode_command(files, server.address, tmp_path / "out"))
    assert captions(tmp_path / "out") == captions(tmp_path / "local")
    assert "a horse" in captions(tmp_path / "out").values()


def test_a_server_without_lists_is_told(
    tmp_path: Path, capsys: Capture, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(files / "videos", videos)
    run_command(capsys, "index", videos)
    monkeypatch.setattr(RemotePath, "files", lambda path: {})
    with web_server(videos) as server:
        out = run_command(capsys, *encode_command(files, server.address, tmp_path / "out"))
    message = f"note: captions and metadata in {server.address} are left out, if there are any: "
    assert message + "the server does not list them" in out


def test_lines_at_an_address(tmp_path: Path, memory: RemotePath) -> None:
    file, path = tmp_path / "lines", memory / "lines"
    text = [json.dumps({"name": str(n), "source": "s", "reason": "é"}) + "\n" for n in range(9)]
    file.write_text("".join(text))
    path.upload(file)
    lines = JsonLines(path, Failure, "mend it")
    assert len(lines) == 9 and lines[-1] == Failure("8", "s", "é")
    assert list(pickle.loads(pickle.dumps(lines))) == list(lines)
    content = pickle.dumps(lines)
    file.write_text("".join(text[:5]))
    path.upload(file)
    assert len(list(lines)) == 9
    with pytest.raises(UserError, match="has changed since it was opened"):
        pickle.loads(content)
    with pytest.raises(FileNotFoundError):
        JsonLines(memory / "none", Failure, "mend it")


def test_an_address_is_one_file(memory: RemotePath) -> None:
    path = memory / "%05d.png"
    assert not is_pipe(path) and find_sequence(path, DEFAULT_RATE) is None
    assert find_animation(path) is None
