"""The table of a manifest: it opens quickly, says the same as the manifest, and knows when not."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wanvae.cli import main
from wanvae.folders.catalog import Entries, name_in, names_of, numbers_of, open_folder
from wanvae.folders.listing import MANIFEST, TABLE
from wanvae.folders.manifest import Entry, read_folder, to_json
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.video import write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An indexed folder of videos, an image, a broken file, another file and a tar."""
    folder = tmp_path / "data"
    (folder / "b").mkdir(parents=True)
    for name, frames in {"a.mp4": 9, "b/ä.mkv": 5, "c.png": 1}.items():
        write_video(folder / name, torch.zeros(3, frames, 16, 24), Fraction(25))
    (folder / "broken.mp4").write_text("no video")
    (folder / "other").write_text("no video by its name either")
    (folder / "notes.pdf").write_text("")
    with tarfile.open(folder / "d.tar", "w") as tar:
        tar.add(folder / "a.mp4", "x.mp4")
    assert main(["index", str(folder)]) == 0
    return folder


def is_quick(folder: Path) -> bool:
    return isinstance(open_folder(folder).entries, Entries)


def test_a_table_says_what_the_manifest_says(folder: Path) -> None:
    quick, whole = open_folder(folder), read_folder(folder)
    assert isinstance(quick.entries, Entries) and not isinstance(whole.entries, Entries)
    assert list(quick.entries) == whole.entries and quick.ignored == whole.ignored
    assert quick.entries[1:3] == whole.entries[1:3] and quick.entries[-1] == whole.entries[-1]
    assert (numbers_of(quick.entries) == numbers_of(whole.entries)).all()
    names = ["a.mp4", "b/ä.mkv", "broken.mp4", "c.png", "d.tar/x.mp4"]
    assert list(names_of(quick.entries)) == list(names_of(whole.entries)) == names


TEXTS = st.text(min_size=1) | st.sampled_from(
    ['", "member": "', '{"path": "a', "a\\", 'a"', "\x00\n"]
)


@given(TEXTS, TEXTS | st.none(), st.none() | TEXTS)
def test_a_name_is_found_in_a_line_without_parsing_it(
    path: str, member: str | None, error: str | None
) -> None:
    entry = Entry(path=path, size=9, mtime=8, member=member, error=error)
    for separators in (None, (",", ":")):
        line = json.dumps(to_json(entry), separators=separators).encode() + b"\n"
        assert name_in(line) == entry.name


def test_training_sees_the_same(folder: Path) -> None:
    def crops() -> VideoCrops:
        config = DataConfig(folder=str(folder), frames=5, size=16, crops_per_clip=2)
        with pytest.warns(UserWarning, match="1 files .* cannot be read and 1 are smaller"):
            return VideoCrops(config, 0, samples_per_step=2)

    quick = crops()
    assert isinstance(quick.sources[0].entries, Entries)
    (folder / TABLE).unlink()
    slow = crops()
    assert not isinstance(slow.sources[0].entries, Entries)
    described = [list(each.describe()[str(folder)]) for each in (quick, slow)]
    assert described[0] == described[1] and len(described[0]) == 3
    assert all(torch.equal(quick[number], slow[number]) for number in range(6))


def add(folder: Path) -> None:
    write_video(folder / "b" / "new.mp4", torch.zeros(3, 5, 16, 24), Fraction(25))


def add_folder(folder: Path) -> None:
    (folder / "e" / "f").mkdir(parents=True)
    write_video(folder / "e" / "f" / "new.mp4", torch.zeros(3, 5, 16, 24), Fraction(25))


def append(folder: Path) -> None:
    with tarfile.open(folder / "d.tar", "a") as tar:
        tar.add(folder / "a.mp4", "y.mp4")


CHANGES: list[Callable[[Path], object]] = [
    add,
    add_folder,
    append,
    lambda folder: (folder / "a.mp4").unlink(),
    lambda folder: (folder / "a.mp4").rename(folder / "b" / "a.mp4"),
]


@pytest.mark.filterwarnings("ignore:.*is not up to date")
@pytest.mark.parametrize("change", CHANGES)
def test_what_came_or_went_is_seen(folder: Path, change: Callable[[Path], object]) -> None:
    change(folder)
    assert not is_quick(folder)
    assert open_folder(folder).entries == read_folder(folder).entries
    assert main(["index", str(folder)]) == 0
    assert is_quick(folder)


def test_what_is_no_video_by_its_name_does_not_matter(folder: Path) -> None:
    for name in (".hidden.mp4", "Thumbs.db", "b/.cache"):
        (folder / name).write_text("")
    assert is_quick(folder)


def test_another_manifest_or_table_is_not_believed(folder: Path) -> None:
    before = read_folder(folder)
    table = (folder / TABLE).read_bytes()
    for content in (b"", b"PK\3\4", table[:-100], b"\x93NUMPY"):
        (folder / TABLE).write_bytes(content)
        assert not is_quick(folder) and open_folder(folder) == before
    (folder / TABLE).write_bytes(table)
    assert is_quick(folder)
    lines = (folder / MANIFEST).read_text().splitlines(keepends=True)
    (folder / MANIFEST).write_text("".join(lines))
    os.utime(folder / MANIFEST, ns=(1, 1))
    assert not is_quick(folder) and open_folder(folder) == before


def test_a_manifest_that_is_replaced_stays_as_it_was_for_a_run(folder: Path) -> None:
    entries = open_folder(folder).entries
    (folder / "b" / "ä.mkv").unlink()
    assert main(["index", str(folder)]) == 0
    assert [entry.path for entry in entries][1] == "b/ä.mkv"


# Opens a list in a process of its own, and prints CPU seconds, and MB more than its imports.
MEASURE = """
import json, resource, sys, time
from pathlib import Path
from wanvae import LatentDataset
from wanvae.engine.training.record import make_record
from wanvae.folders.catalog import open_folder
from wanvae.train.crops import DataConfig, VideoCrops
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start, before = time.process_time(), most()
folder = sys.argv[2]
if sys.argv[1] == "index":
    found = LatentDataset(folder)
    opened = time.process_time() - start
    assert len(set(found.shapes)) == 2 and found[777_777].caption == "clip 777777"
else:
    found = open_folder(Path(folder)).entries
    opened = time.process_time() - start
    crops = VideoCrops(DataConfig(folder=folder, frames=5, size=64), 0, samples_per_step=1)
    assert make_record(crops.describe(), 1, "").data_count == len(found)
print(json.dumps([len(found), opened, time.process_time() - start, most() - before]))
"""


def measured(kind: str, folder: Path) -> tuple[float, ...]:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return tuple(json.loads(result.stdout))


@pytest.mark.slow
def test_a_manifest_of_a_million_clips_opens_in_a_moment(tmp_path: Path) -> None:
    from wanvae.folders.catalog import read_names, write_table

    for number in range(100):
        (tmp_path / f"{number:02}.tar").write_bytes(b"")
    with (tmp_path / MANIFEST).open("w") as lines:
        for number in range(1_000_000):
            tar = tmp_path / f"{number // 10_000:02}.tar"
            entry = {"path": tar.name, "size": 0, "mtime": tar.stat().st_mtime_ns}
            entry |= {"head": f"{number:016x}", "member": f"clips/{number:09}.mp4"}
            entry |= {"offset": 512 * number, "length": 9000, "width": 832, "height": 480}
            lines.write(json.dumps({**entry, "frames": 81, "fps": 24.0}) + "\n")
    write_table(tmp_path, read_names(tmp_path), {})
    count, opened, started, memory = measured("manifest", tmp_path)
    # With the record of a run, it takes about 0.3, 2 and 130 on a slow core.
    assert count == 1_000_000 and opened < 2 and started < 5 and memory < 300


@pytest.mark.slow
def test_an_index_of_a_million_clips_opens_in_a_moment(tmp_path: Path) -> None:
    from wanvae.dataset.settings import SETTINGS, DatasetOptions, DatasetSettings
    from wanvae.engine.json_files import write_value

    settings = DatasetSettings(
        options=DatasetOptions(store="mean"),
        source="videos",
        checkpoint="0" * 64,
        compute_dtype="float32",
        latents_mean=(),
        latents_std=(),
    )
    write_value(tmp_path / SETTINGS, settings)
    (tmp_path / "shard").write_bytes(bytes(4 * 2 * 3 * 2 * 3))
    with (tmp_path / "index.jsonl").open("w") as lines:
        for number in range(1_000_000):
            name = f"{number // 1000:03}/video-{number:09}.mp4"
            clip = {"name": name, "source": name, "start": 0.0, "fps": "24", "frames": 9}
            clip |= {"height": 16, "width": 24, "file": "shard", "offset": 0}
            clip |= {"shape": [2, 3, 2 + number % 2, 3], "stamp": {"size": 9, "mtime": number}}
            clip["shape"][2] = 2 if number == 777_777 else clip["shape"][2]
            lines.write(json.dumps({**clip, "sidecars": {"txt": f"clip {number}"}}) + "\n")
    count, opened, started, memory = measured("index", tmp_path)
    # It takes about 0.2, 1 and 30 on a slow core.
    assert count == 1_000_000 and opened < 2 and started < 5 and memory < 300
