"""Tars: members are found where they lie, and give the clips that the same files give."""

import io
import tarfile
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from webdataset import TarWriter

from wanvae.folders.listing import may_be_media
from wanvae.folders.manifest import load_entries, read_folder, write_manifest
from wanvae.folders.tars import find_members
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.video import VideoError, read_video, write_video

LONG = "a" * 120  # more than the 100 characters of a plain tar header


@pytest.fixture(scope="module")
def loose(tmp_path_factory) -> Path:
    """Four videos and an image, each of its own colours."""
    folder = tmp_path_factory.mktemp("loose")
    generator = torch.Generator().manual_seed(0)
    for index, suffix in enumerate([".mp4", ".mkv", ".mp4", ".mov"]):
        video = (torch.rand(3, 8, 24, 32, generator=generator) - 0.5).cumsum(1) / 4
        write_video(folder / f"{index}{suffix}", video, Fraction(25))
    write_video(folder / "4.png", torch.rand(3, 1, 20, 20, generator=generator), Fraction(1))
    return folder


@pytest.fixture(scope="module")
def tars(loose, tmp_path_factory) -> Path:
    """The same in two tars, written by webdataset, with texts between them."""
    folder = tmp_path_factory.mktemp("tars")
    paths = sorted(loose.iterdir())
    for number, part in enumerate([paths[:2], paths[2:]]):
        with TarWriter(str(folder / f"shard-{number}.tar")) as writer:
            for path in part:
                key = path.stem if number else f"{LONG}/{path.stem}"
                content = path.read_bytes()
                writer.write({"__key__": key, path.suffix[1:]: content, "txt": "a caption"})
    return folder


def test_members_lie_where_the_index_says(loose, tars):
    parts = [
        part for path in sorted(tars.glob("*.tar")) for part in find_members(path, may_be_media)
    ]
    assert [Path(part.name).name for part in parts] == [p.name for p in sorted(loose.iterdir())]
    for part, path in zip(parts, sorted(loose.iterdir()), strict=True):
        content = part.container.read_bytes()[part.offset : part.offset + part.size]
        assert content == path.read_bytes()
        assert torch.equal(read_video(part)[0], read_video(path)[0])


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("indexed", [False, True])
def test_tars_give_the_samples_of_the_files_in_them(loose, tars, frames, indexed):
    if indexed:
        write_manifest(tars)
    config = {"frames": frames, "size": 16, "largest_scale": 2.0, "strides": (1, 2)}
    drawn = []
    for folder in (loose, tars):
        ours = DataConfig(folder=str(folder), **config)
        # The image is too short for clips of several frames.
        with pytest.warns(UserWarning, match="1 are smaller") if frames > 1 else nullcontext():
            samples = VideoCrops(ours, 0, samples_per_step=4)
        drawn.append([samples[number] for number in range(12)])
    assert all(map(torch.equal, *drawn))


def test_a_cut_tar_gives_the_members_before_the_cut(tars, tmp_path):
    content = (tars / "shard-1.tar").read_bytes()
    parts = list(find_members(tars / "shard-1.tar", may_be_media))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(content[: parts[1].offset + 10])
    with pytest.raises(VideoError, match=r"cannot read .*cut\.tar: .*complete tar"):
        list(find_members(cut, may_be_media))
    first, *broken = load_entries(tmp_path)
    assert first.member == parts[0].name and first.error is None
    assert broken and all(entry.error for entry in broken)


def test_other_archives_are_broken_files(tmp_path):
    (tmp_path / "text.tar").write_text("no tar")
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"), io.BytesIO())
    with tarfile.open(tmp_path / "texts.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    text, texts, zipped = load_entries(tmp_path)
    assert "uncompressed" in text.error and "uncompressed" in zipped.error
    assert "no videos" in texts.error


def test_the_last_member_of_a_name_counts(loose, tmp_path):
    """Texts and what macOS leaves are passed over; any other member is tried."""
    first, second = ((loose / name).read_bytes() for name in ("0.mp4", "2.mp4"))
    members = [
        ("a.mp4", first),
        ("._a.mp4", b"\0\5\26\7"),
        ("__MACOSX/a.mp4", first),
        ("b.xyz", first),
        ("a.mp4", second),
        ("c.cls", b"7"),
        ("c.json", b"{}"),
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = read_folder(tmp_path)
    assert [(entry.member, entry.error) for entry in content.entries] == [
        ("b.xyz", None),
        ("a.mp4", None),
    ]
    assert content.ignored == {".cls": 1}
    source = content.entries[1].source(tmp_path)
    assert torch.equal(read_video(source)[0], read_video(loose / "2.mp4")[0])
    heads = {entry.member: entry.head for entry in content.entries}
    assert heads["a.mp4"] != heads["b.xyz"]
