"""The index of a folder: what it says, what it opens again, and that it is whole or not there."""

import json
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.commands import outputs_of
from tests.helpers import occupied
from wanvae.cli import main
from wanvae.errors import UserError
from wanvae.folders.listing import JOURNAL, MANIFEST
from wanvae.folders.manifest import (
    load_entries,
    probe_files,
    read_folder,
    read_manifest,
    write_manifest,
)
from wanvae.video import VideoInfo, VideoWriter, write_video


def write(path: Path, frames: int = 3, height: int = 16, width: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, torch.zeros(3, frames, height, width), Fraction(30000, 1001))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two videos, an image and a broken file, some in subfolders."""
    folder = tmp_path / "data"
    write(folder / "b" / "video.mkv", frames=4)
    write(folder / "a.mp4")
    write(folder / "b" / "c" / "image.png", frames=1, height=9, width=5)
    (folder / "text.mp4").write_text("no video")
    (folder / "notes.txt").write_text("not even by its name")
    (folder / ".hidden.mp4").write_text("no video")
    return folder


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The names of the files that are probed from now on; the probe is a fake."""
    names: list[str] = []

    def fake(path: Path) -> VideoInfo:
        names.append(path.name)
        return VideoInfo(width=8, height=8, fps=Fraction(25), frames=9, is_image=False)

    monkeypatch.setattr("wanvae.folders.manifest.probe", fake)
    return names


def files(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [f"{index}.mp4" for index in range(count)]
    for name in names:
        (folder / name).write_text(name)
    return names


def test_every_file_is_described(folder):
    entries = {entry.path: entry for entry in write_manifest(folder).entries}
    assert list(entries) == ["a.mp4", "b/c/image.png", "b/video.mkv", "text.mp4"]
    video = entries["b/video.mkv"]
    assert (video.width, video.height, video.frames, video.is_image) == (24, 16, 4, False)
    assert video.fps == 30000 / 1001
    assert video.size == (folder / "b" / "video.mkv").stat().st_size
    image = entries["b/c/image.png"]
    assert (image.width, image.height, image.frames, image.is_image) == (5, 9, 1, True)
    assert "not a video" in entries["text.mp4"].error and "\n" not in entries["text.mp4"].error


def test_what_is_written_is_read_back(folder):
    found = load_entries(folder)
    assert write_manifest(folder).entries == found
    assert read_manifest(folder) == load_entries(folder) == found
    lines = (folder / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [entry.path for entry in found]


def test_files_of_a_manifest_are_not_opened_again(tmp_path, opened):
    files(tmp_path / "data", 500)
    entries = write_manifest(tmp_path / "data").entries
    opened.clear()
    assert load_entries(tmp_path / "data") == entries
    assert opened == []


def test_a_manifest_follows_its_folder(tmp_path, opened):
    folder = tmp_path / "data"
    files(folder, 5)
    write_manifest(folder)
    opened.clear()
    (folder / "1.mp4").write_text("longer than before")
    os.utime(folder / "2.mp4", ns=(0, 0))
    (folder / "3.mp4").unlink()
    (folder / "later.mp4").write_text("new")
    with pytest.warns(UserWarning, match=r"3 files were added or changed, and 1 are gone.* index"):
        entries = load_entries(folder)
    assert sorted(opened) == ["1.mp4", "2.mp4", "later.mp4"]
    assert [entry.path for entry in entries] == ["0.mp4", "1.mp4", "2.mp4", "4.mp4", "later.mp4"]
    assert entries == write_manifest(folder).entries


def test_a_manifest_of_an_earlier_version_is_read(folder):
    found = write_manifest(folder).entries
    assert all(len(entry.head) == 16 for entry in found)
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    texts = [json.dumps({k: v for k, v in line.items() if k != "head"}) for line in lines]
    (folder / MANIFEST).write_text("\n".join(texts) + "\n")
    old = load_entries(folder)
    assert [replace(entry, head="") for entry in found] == old
    assert all(a.stamp.matches(b.stamp) for a, b in zip(found, old, strict=True))


def test_every_file_is_tried_that_is_not_plainly_something_else(tmp_path, capsys):
    folder = tmp_path / "data"
    video = write(folder / "a.mp4").read_bytes()
    for name in ("b.ts", "c.xyz", "d", "e.GIF", "f.m2ts"):
        (folder / name).write_bytes(video)
    texts = ("g.txt", "h.TXT", "i.json", "j.xyz", "README", "k.m3u8", "broken.ts")
    for name in texts:
        (folder / name).write_text("#EXTM3U\nno video")
    for name in ("._a.mp4", "Thumbs.db", "desktop.ini", "__MACOSX/a.mp4", ".cache/b.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(video)
    assert main(["index", str(folder)]) == 0
    out = capsys.readouterr().out
    counts, *others = out.splitlines()
    assert counts.endswith("6 videos, 0 images, 1 that cannot be read")
    assert others[0] == (
        "ignored, no videos or images: 2 .txt, 1 without suffix, 1 .json, 1 .m3u8, 1 .xyz"
    )
    assert len(others) == 2 and others[1].startswith("cannot read broken.ts: ")
    again = read_folder(folder)  # no warning: the manifest knows them all
    names = ["a.mp4", "b.ts", "broken.ts", "c.xyz", "d", "e.GIF", "f.m2ts"]
    assert [entry.path for entry in again.entries] == names
    assert again.ignored == {".txt": 2, "": 1, ".json": 1, ".m3u8": 1, ".xyz": 1}
    (folder / MANIFEST).unlink()
    assert read_folder(folder) == again


def test_captions_beside_videos_are_passed_over_in_silence(tmp_path, capsys):
    folder = tmp_path / "data"
    write(folder / "more" / "a.b.mp4")
    for name in ("a.b.txt", "a.b.json", "a.b.mp4.txt", "A.txt", "a.txt", "a.b.srt"):
        (folder / "more" / name).write_text("a cat on a bench")
    (folder / "a.b.caption").write_text("a video of another folder")
    assert main(["index", str(folder)]) == 0
    counts, *others = capsys.readouterr().out.splitlines()
    assert counts.endswith("1 videos, 0 images, 0 that cannot be read")
    assert others == ["ignored, no videos or images: 2 .txt, 1 .caption, 1 .srt"]


def test_frames_are_counted_where_the_header_does_not_count_them(tmp_path):
    path = tmp_path / "data" / "a.mkv"
    path.parent.mkdir()
    with VideoWriter(path, width=16, height=16, fps=Fraction(25)) as writer:
        writer.write(torch.zeros(3, 23, 16, 16), [n * 0.01 + (n > 20) * 9 for n in range(23)])
    (entry,) = load_entries(path.parent)
    assert entry.frames == 23


def test_only_new_and_changed_files_are_opened_again(tmp_path, opened):
    folder = tmp_path / "data"
    files(folder, 4)
    write_manifest(folder)
    assert sorted(opened) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    opened.clear()
    (folder / "1.mp4").write_text("longer than before")
    os.utime(folder / "2.mp4", ns=(0, 0))
    (folder / "3.mp4").unlink()
    (folder / "4.mp4").write_text("new")
    entries = write_manifest(folder).entries
    assert sorted(opened) == ["1.mp4", "2.mp4", "4.mp4"]
    assert [entry.path for entry in entries] == ["0.mp4", "1.mp4", "2.mp4", "4.mp4"]
    assert read_manifest(folder) == entries
    opened.clear()
    assert write_manifest(folder).entries == entries
    assert opened == []


def test_what_could_not_be_read_is_tried_again(folder):
    target = folder.parent / "later.mp4"
    (folder / "link.mp4").symlink_to(target)
    assert len([entry for entry in write_manifest(folder).entries if entry.error]) == 2
    write(target)
    assert [entry.path for entry in write_manifest(folder).entries if entry.error] == ["text.mp4"]


def test_an_interrupted_index_goes_on_where_it_was(tmp_path, opened, monkeypatch, capsys):
    folder = tmp_path / "data"
    names = files(folder, 9)

    def interrupted(*arguments: object):
        for number, entries in enumerate(probe_files(*arguments)):
            if number == 5:
                raise KeyboardInterrupt
            yield entries

    with monkeypatch.context() as patch:
        patch.setattr("wanvae.folders.manifest.probe_files", interrupted)
        _, err = outputs_of(capsys, ["index", str(folder)], 130)
    assert err == "wanvae: interrupted; run it again to go on from there\n"
    assert not (folder / MANIFEST).exists()
    # As after a power failure: a line that was not written to its end.
    with (folder / JOURNAL).open("a") as journal:
        journal.write('[{"path": "5.mp4", "si')
    opened.clear()
    entries = write_manifest(folder).entries
    assert sorted(opened) == names[5:]
    assert [entry.path for entry in entries] == names
    assert sorted(os.listdir(folder)) == sorted([*names, MANIFEST])


def test_a_failed_index_leaves_the_manifest_as_it_was(folder, monkeypatch):
    write_manifest(folder)
    before = (folder / MANIFEST).read_bytes()
    write(folder / "new.mp4")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wanvae.engine.files.os.fsync", full)
    assert main(["index", str(folder)]) == 1
    assert (folder / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("content", ["[1]", '{"path": "a"}', "text", '{"colour": 1}'])
def test_another_file_of_that_name_is_refused_and_kept(folder, content, capsys):
    (folder / MANIFEST).write_text(content)
    _, error = outputs_of(capsys, ["index", str(folder)], 1)
    assert error.count("\n") == 1 and "is not a manifest" in error
    assert (folder / MANIFEST).read_text() == content


def test_nothing_to_index_is_one_line(tmp_path, capsys):
    _, err = outputs_of(capsys, ["index", str(tmp_path)], 1)
    assert err.startswith("wanvae: nothing to index in ") and err.count("\n") == 1
    assert os.listdir(tmp_path) == []
    _, err = outputs_of(capsys, ["index", str(tmp_path / "missing")], 1)
    assert "it is not a folder" in err


def test_the_command_counts_and_lists_broken_files(folder, capsys):
    assert main(["index", str(folder)]) == 0
    first, ignored, *broken = capsys.readouterr().out.splitlines()
    assert ignored == "ignored, no videos or images: 1 .txt"
    assert first == f"{folder / MANIFEST}: 2 videos, 1 images, 1 that cannot be read"
    assert len(broken) == 1 and broken[0].startswith("cannot read text.mp4: it is not a video")


def test_linked_folders_are_followed_once(folder, tmp_path, opened):
    write(tmp_path / "other" / "d.mp4")
    (folder / "elsewhere").symlink_to(tmp_path / "other")
    (folder / "b" / "loop").symlink_to(folder)
    paths = [entry.path for entry in load_entries(folder)]
    assert paths == ["a.mp4", "b/c/image.png", "b/video.mkv", "elsewhere/d.mp4", "text.mp4"]


def test_a_folder_that_cannot_be_searched_is_named(folder, monkeypatch):
    scandir = os.scandir

    def denied(path: str) -> object:
        if Path(path).name == "c":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    # Permissions do not bind root.
    monkeypatch.setattr("os.scandir", denied)
    with pytest.warns(UserWarning, match="c cannot be searched: Permission denied"):
        entries = load_entries(folder)
    assert [entry.path for entry in entries] == ["a.mp4", "b/video.mkv", "text.mp4"]


def test_any_failure_of_a_probe_is_an_entry(tmp_path, monkeypatch):
    files(tmp_path / "data", 1)

    def huge(_: Path) -> VideoInfo:
        raise MemoryError

    monkeypatch.setattr("wanvae.folders.manifest.probe", huge)
    assert [entry.error for entry in write_manifest(tmp_path / "data").entries] == ["MemoryError"]


def test_an_unexpected_failure_of_a_probe_is_named(tmp_path, monkeypatch):
    files(tmp_path / "data", 1)

    def stumble(_: Path) -> VideoInfo:
        raise TypeError("one argument\nis missing")

    monkeypatch.setattr("wanvae.folders.manifest.probe", stumble)
    (entry,) = write_manifest(tmp_path / "data").entries
    assert entry.error == "TypeError: one argument is missing"


def test_two_processes_do_not_index_one_folder(folder: Path) -> None:
    with occupied(folder), pytest.raises(UserError, match="another process works in"):
        write_manifest(folder)
    assert not (folder / MANIFEST).exists() and not (folder / JOURNAL).exists()
