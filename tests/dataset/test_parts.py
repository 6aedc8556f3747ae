"""Parts of a data set, encoded apart: joined, they are the whole, and nothing is lost."""

import json
import shutil
import signal
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from tests.dataset.data_set_runs import (
    contents,
    encode_command,
    encode_parts,
    files,
    run_command,
    start,
    stop_after,
)
from tests.helpers import occupied
from wanvae import LatentDataset, cli
from wanvae.dataset.parts import DatasetPart, digest_of_plan, parse_part
from wanvae.dataset.stored import LatentsFilePlan
from wanvae.errors import UserError
from wanvae.folders.clips import Clip
from wanvae.folders.manifest import Entry
from wanvae.selection.bars import Box
from wanvae.selection.excerpt import Excerpt

__all__ = ["files"]

CONTAINERS = ["files", "tar", "safetensors"]
# Shards of two or three clips.
SHARDS = ["--shard-size", "3KB"]

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("container", CONTAINERS)
def test_parts_together_are_the_whole(
    tmp_path: Path, capsys: Capture, files: Path, container: str
) -> None:
    options = ["--container", container, *SHARDS]
    run_command(capsys, *encode_command(files, files / "videos", tmp_path / "whole", *options))
    parts = [f"{number}/3" for number in range(3)]
    folders = encode_parts(capsys, files, tmp_path, parts, *options)
    for folder in folders:
        assert not (folder / "index.jsonl").exists()
        with pytest.raises(UserError, match="merge-index"):
            LatentDataset(folder)
    out = run_command(capsys, "merge-index", *folders, tmp_path / "merged")
    assert "14 clips, 3 failed" in out, out
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert len(LatentDataset(tmp_path / "merged")) == 14
    # In the order of the whole, whatever the order of the folders, and again.
    run_command(capsys, "merge-index", *reversed(folders), tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_parts_in_one_folder(tmp_path: Path, capsys: Capture, files: Path) -> None:
    run_command(capsys, *encode_command(files, files / "videos", tmp_path / "whole"))
    target = tmp_path / "out"
    for number in (1, 0):
        command = encode_command(files, files / "videos", target, "--part", f"{number}/2")
        run_command(capsys, *command)
        run_command(capsys, *command)
    assert "0 files were copied" in run_command(capsys, "merge-index", target, target)
    found = contents(target)
    for number in range(2):
        del found[f"index.part-{number:05}-of-00002.jsonl"]
    assert found == contents(tmp_path / "whole")


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_lost_part_is_encoded_by_the_next_run(
    tmp_path: Path, capsys: Capture, files: Path, container: str
) -> None:
    options = ["--container", container, *SHARDS]
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    run_command(capsys, *encode_command(files, files / "videos", whole, *options))
    folders = encode_parts(capsys, files, tmp_path, ["0/3", "2/3"], *options)
    out = run_command(capsys, "merge-index", *folders, merged, status=1)
    assert "missing, and so are its clips: part: 1/3" in out and "clips are missing" in out
    assert not (merged / "index.jsonl").exists()
    out = run_command(capsys, *encode_command(files, files / "videos", merged, *options))
    there = len(contents(merged)) and int(out.split(" were there")[0].split()[-1])
    assert 0 < there < 14 and f"{14 - there} clips written" in out
    assert contents(merged) == contents(whole)


def test_missing_files_are_named(tmp_path: Path, capsys: Capture, files: Path) -> None:
    folders = encode_parts(capsys, files, tmp_path, ["0/2", "1/2"])
    (folders[0] / "a.mp4.00001.safetensors").unlink()
    out = run_command(capsys, "merge-index", *folders, tmp_path / "merged", status=1)
    assert "a.mp4.00001.safetensors is not there, although the list of its part names it" in out


def test_parts_of_other_data_sets_are_refused(tmp_path: Path, capsys: Capture, files: Path) -> None:
    (first,) = encode_parts(capsys, files, tmp_path, ["0/2"])
    (other,) = encode_parts(capsys, files, tmp_path, ["1/2"], "--store", "mean")
    out = run_command(capsys, "merge-index", first, other, tmp_path / "merged", status=1)
    assert "was written with other settings than" in out and "store is 'mean'" in out
    shutil.copytree(files / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "a.mp4").unlink()
    target = tmp_path / "fewer"
    run_command(capsys, *encode_command(files, tmp_path / "videos", target, "--part", "1/2"))
    out = run_command(capsys, "merge-index", first, target, tmp_path / "merged", status=1)
    assert "is of other clips than part 0/2" in out
    whole = tmp_path / "whole"
    run_command(capsys, *encode_command(files, files / "videos", whole))
    out = run_command(capsys, "merge-index", first, whole, tmp_path / "merged", status=1)
    assert f"{whole} has no list of a part" in out
    assert not (tmp_path / "merged").exists()


def test_copies_of_videos_are_told(tmp_path: Path, capsys: Capture, files: Path) -> None:
    (first,) = encode_parts(capsys, files, tmp_path, ["0/2"])
    shutil.copytree(files / "videos", tmp_path / "videos")
    target = tmp_path / "second"
    run_command(capsys, *encode_command(files, tmp_path / "videos", target, "--part", "1/2"))
    out = run_command(capsys, "merge-index", first, target, tmp_path / "merged")
    assert f"note: {target} is of the videos in {tmp_path / 'videos'}" in out
    assert "14 clips" in out


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "a/b", "1/2/3", "0/0", "1/0"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="part must be a part from 0 on") as error:
        parse_part(text)
    assert "the last is -1" not in str(error.value)


def test_more_parts_than_files(tmp_path: Path, capsys: Capture, files: Path) -> None:
    parts = [f"{number}/20" for number in range(20)]
    assert parse_part(parts[3]) == DatasetPart(3, 20)
    folders = encode_parts(capsys, files, tmp_path, parts[3:4])
    assert "index.part-00003-of-00020.jsonl" in contents(folders[0])


# Locks


def test_parts_work_side_by_side_but_not_beside_a_whole_run(
    tmp_path: Path, capsys: Capture, files: Path
) -> None:
    target = tmp_path / "out"
    part = encode_command(files, files / "videos", target, "--part", "0/2")
    whole = encode_command(files, files / "videos", target)
    target.mkdir()
    with occupied(target, ".lock.part-00001-of-00002"):
        run_command(capsys, *part)
        assert "another process works in" in run_command(capsys, *whole, status=1)
        assert not (target / ".lock").exists()
    with occupied(target):
        assert "another process works in" in run_command(capsys, *part, status=1)
    with occupied(target, ".lock.part-00000-of-00002"):
        assert "another process works in" in run_command(capsys, *part, status=1)
    run_command(capsys, *part)
    run_command(capsys, *whole)


def test_temporary_files_of_other_parts_stay(tmp_path: Path, capsys: Capture, files: Path) -> None:
    target = tmp_path / "out"
    command = encode_command(files, files / "videos", target, "--part", "0/2")
    run_command(capsys, *command)
    own = json.loads((target / "index.part-00000-of-00002.jsonl").read_text().splitlines()[1])
    left = target / f".{own['file'].removesuffix('.safetensors')}.0123abcd.safetensors"
    other = target / ".h.mp4.00001.0123abcd.safetensors"
    left.touch()
    other.touch()
    run_command(capsys, *command)
    assert other.exists() and not left.exists()


# An end that is announced


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("clips", [1, 4, 9])
def test_a_stop_between_clips_keeps_them(
    tmp_path: Path,
    capsys: Capture,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    container: str,
    clips: int,
) -> None:
    options = ["--container", container, "--shard-size", "5KB"]
    whole, target = tmp_path / "whole", tmp_path / "out"
    run_command(capsys, *encode_command(files, files / "videos", whole, *options))
    command = encode_command(files, files / "videos", target, *options)
    begun = stop_after(monkeypatch, clips, overdue=False)
    out = run_command(capsys, *command, status=143)
    assert "interrupted; files that were written are complete; run it again" in out
    assert len(begun) == clips and not (target / "index.jsonl").exists()
    monkeypatch.undo()
    begun = stop_after(monkeypatch, 99, overdue=False)
    run_command(capsys, *command)
    # Clips that were encoded are not encoded again, also in the middle of a shard.
    assert len(begun) <= 16 - clips
    assert contents(target) == contents(whole)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_clip_that_takes_too_long_is_given_up(
    tmp_path: Path, capsys: Capture, files: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    options = ["--container", container, *SHARDS]
    whole, target = tmp_path / "whole", tmp_path / "out"
    run_command(capsys, *encode_command(files, files / "videos", whole, *options))
    command = encode_command(files, files / "videos", target, *options)
    begun = stop_after(monkeypatch, 5, overdue=True)
    run_command(capsys, *command, status=143)
    assert len(begun) == 5
    monkeypatch.undo()
    run_command(capsys, *command)
    assert contents(target) == contents(whole)


def test_a_stopped_part_lists_its_clips(
    tmp_path: Path, capsys: Capture, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = encode_parts(capsys, files, tmp_path, ["0/2"])
    target, merged = tmp_path / "second", tmp_path / "merged"
    stop_after(monkeypatch, 3, overdue=False)
    command = encode_command(files, files / "videos", target, "--part", "1/2")
    run_command(capsys, *command, status=143)
    monkeypatch.undo()
    out = run_command(capsys, "merge-index", first, target, merged, status=1)
    assert "missing: " in out and "clips are missing" in out
    run_command(capsys, *command)
    out = run_command(capsys, "merge-index", first, target, merged)
    run_command(capsys, *encode_command(files, files / "videos", tmp_path / "whole"))
    assert contents(merged) == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS)
def test_sigterm_ends_a_process_in_time(
    tmp_path: Path, capsys: Capture, files: Path, container: str
) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(20):
        shutil.copy(files / "videos" / "a.mp4", source / f"{number:02}.mp4")
    options = ["--container", container, "--shard-size", "20KB"]
    command = encode_command(files, source, tmp_path / "out", *options)
    with start(command) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").glob("*.mp4.*")) + list(
            (tmp_path / "out").glob("shard-00000*")
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and "run it again to go on" in err
    assert cli.main(command) == 0
    assert cli.main(encode_command(files, source, tmp_path / "whole", *options)) == 0
    capsys.readouterr()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_scenes_are_other_clips() -> None:
    scene = Excerpt(first=0, begin=0.0, until=0.4, box=None, whole=(24, 40))
    digests = set()
    for excerpt in (None, scene, replace(scene, box=Box(2, 0, 20, 40)), replace(scene, first=5)):
        entry = Entry(path="a", size=1, mtime=1, frames=10, excerpt=excerpt)
        clip = Clip(name="a", entry=entry, fps=Fraction(25), scaled=(16, 16), size=(16, 16))
        digests.add(digest_of_plan([LatentsFilePlan("a.safetensors", (clip,))]))
    assert len(digests) == 4
