"""Folders of motion files: each file as alone, whatever happens on the way."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

from motion import RVQVAE
from motion.commands.folders import FolderEvaluation, FolderReport, evaluate_folder, tokenize_folder
from motion.commands.pipeline import tokenize_file
from motion.evaluate.evaluation import measure
from motion.features.recording import read_recording
from motion.files.clips import write_clip
from motion.skeleton.clip import ClipError
from motion.tokens import read_tokens
from tests.motion.helpers import in_processes, random_clip, random_skeleton
from tests.motion.small_tokenizers import WALK, tiny_tokenizer
from wanvae.engine.files import FileError

NAMES = ("a.bvh", "b.npz", "deep/c.bvh", "deep/er/d.npz")


@pytest.fixture(autouse=True)
def processes() -> Iterator[PartialState]:
    PartialState._reset_state()
    yield PartialState(cpu=True)
    PartialState._reset_state()


@pytest.fixture(scope="module")
def model() -> RVQVAE:
    return tiny_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for start, name in enumerate(NAMES):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, WALK[3 * start : 20 + start])
    return tmp_path / "in"


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_folder_is_its_files(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState, suffix: str
) -> None:
    report = tokenize_folder(model, folder, tmp_path / "out", suffix, processes)
    assert report == FolderReport(4, 0, ())
    targets = [str(Path(name).with_suffix(suffix)) for name in NAMES]
    assert list(contents(tmp_path / "out")) == targets
    for name, target in zip(NAMES, targets, strict=True):
        alone = tokenize_file(model, folder / name, tmp_path / f"alone{suffix}")
        found = read_tokens(tmp_path / "out" / target)
        assert torch.equal(found.indices, alone.indices) and found.origin == alone.origin


def test_an_interrupted_run_goes_on(
    tmp_path: Path,
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenize_folder(model, folder, tmp_path / "once", ".npz", processes)
    encode, calls = model.encode, []

    def interrupted(features: torch.Tensor) -> torch.Tensor:
        calls.append(features)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(features)

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenize_folder(model, folder, tmp_path / "twice", ".npz", processes)
    expected = contents(tmp_path / "once")
    assert contents(tmp_path / "twice") == dict(list(expected.items())[:2])
    # One is cut short, as by a disk that was full.
    (tmp_path / "twice" / "a.npz").write_bytes(expected["a.npz"][:-9])
    report = tokenize_folder(model, folder, tmp_path / "twice", ".npz", processes)
    assert report == FolderReport(3, 1, ())
    assert contents(tmp_path / "twice") == expected


def test_tokens_of_another_model_are_made_anew(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    tokenize_folder(tiny_tokenizer(seed=1), folder, tmp_path / "out", ".npz", processes)
    report = tokenize_folder(model, folder, tmp_path / "out", ".npz", processes)
    assert report == FolderReport(4, 0, ())
    tokenize_folder(model, folder, tmp_path / "new", ".npz", processes)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_files_that_cannot_be_read_are_left_out(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    (folder / "a.bvh").write_text("HIERARCHY\nROOT")
    (folder / "b.npz").write_bytes(b"")
    report = tokenize_folder(model, folder, tmp_path / "out", ".npz", processes)
    assert (report.written, report.kept) == (2, 0)
    first, second = report.failures
    assert first.startswith(f"{folder / 'a.bvh'}, line 2: ")
    assert second.startswith(f"{folder / 'b.npz'} is no complete .npz file")
    assert list(contents(tmp_path / "out")) == ["deep/c.npz", "deep/er/d.npz"]


def test_no_file_is_written_over_another(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    before = contents(folder)
    for target in (folder, folder / "tokens", tmp_path, folder / ".." / "in"):
        with pytest.raises(ClipError, match="must not be in"):
            tokenize_folder(model, folder, target, ".npz", processes)
    write_clip(folder / "a.npz", WALK)
    with pytest.raises(ClipError, match=r"a\.bvh and .*a\.npz would both become .*rename one"):
        tokenize_folder(model, folder, tmp_path / "out", ".npz", processes)
    os.unlink(folder / "a.npz")
    assert contents(folder) == before and os.listdir(tmp_path) == ["in"]


def test_folders_that_cannot_be(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    with pytest.raises(FileError, match=r"make the directory .*missing first"):
        tokenize_folder(model, folder, tmp_path / "missing" / "out", ".npz", processes)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file cannot be made: File exists"):
        tokenize_folder(model, folder, tmp_path / "file", ".npz", processes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipError, match=r"empty has no \.bvh or \.npz files"):
        tokenize_folder(model, tmp_path / "empty", tmp_path / "out", ".npz", processes)


def test_an_evaluation_is_that_of_the_files(
    folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    found = evaluate_folder(model, folder, processes)
    alone = [measure(model, read_recording(folder / name, model.config)) for name in NAMES]
    assert [file.name for file in found.files] == list(NAMES) and found.failures == ()
    for file, part in zip(found.files, alone, strict=True):
        assert file.path == folder / file.name and file.summary == part.summary
    frames = [len(WALK[3 * start : 20 + start]) for start in range(4)]
    assert [file.summary.frames for file in found.files] == frames
    errors = [file.summary.mpjpe_mm[-1] for file in found.files]
    mean = sum(error * count for error, count in zip(errors, frames, strict=True)) / sum(frames)
    assert found.whole.mpjpe[-1] == pytest.approx(mean)
    assert found.whole.summary.foot_contacts == sum(part.contacts for part in alone) > 0


@pytest.mark.parametrize("count", [2, 5])
def test_an_evaluation_does_not_depend_on_how_many_processes(
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    """The failures do not, either."""
    (folder / "b.npz").write_bytes(b"")
    (folder / "deep" / "z.bvh").write_text("HIERARCHY")
    one = evaluate_folder(model, folder, processes)

    def evaluated(index: int) -> FolderEvaluation:
        process = SimpleNamespace(
            num_processes=count, process_index=index, is_main_process=index == 0
        )
        return evaluate_folder(model, folder, process)

    modules = "motion.commands.folders", "motion.evaluate.evaluation"
    for several in in_processes(monkeypatch, count, evaluated, *modules):
        assert several.failures == one.failures and len(one.failures) == 2
        assert [file.name for file in several.files] == [file.name for file in one.files]
        assert [file.summary for file in several.files] == [file.summary for file in one.files]
        torch.testing.assert_close(several.whole.errors, one.whole.errors)
        assert torch.equal(several.whole.counts, one.whole.counts)


def test_what_cannot_be_evaluated_is_left_out(
    folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    (folder / "a.bvh").write_text("HIERARCHY\nROOT")
    write_clip(folder / "c.bvh", random_clip(random_skeleton(4)))
    write_clip(folder / "0.bvh", random_clip(random_skeleton(55)))
    found = evaluate_folder(model, folder, processes)
    assert [file.name for file in found.files] == list(NAMES[1:])
    first, second, third = found.failures
    assert first.startswith(f"{folder / '0.bvh'} has other joints than 3 files of the folder; ")
    assert second.startswith(f"{folder / 'a.bvh'}, line 2: ")
    assert f"{folder / 'c.bvh'} has 24 channels of 4 joints" in third
    (folder / "0.bvh").unlink()
    whole = evaluate_folder(model, folder, processes).whole
    torch.testing.assert_close(whole.errors, found.whole.errors)


def test_folders_that_cannot_be_evaluated(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipError, match=r"empty has no \.bvh or \.npz files"):
        evaluate_folder(model, tmp_path / "empty", processes)
    for name in NAMES:
        (folder / name).write_bytes(b"")
    with pytest.raises(ClipError, match=r"none of the 4 files of .*; the first: .*a\.bvh"):
        evaluate_folder(model, folder, processes)
    with pytest.raises(ClipError, match=r"^[^;]*b\.npz is no complete"):
        evaluate_folder(model, folder / "b.npz", processes)


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_names_that_are_no_text(folder: Path, model: RVQVAE, processes: PartialState) -> None:
    os.rename(folder / "a.bvh", os.fsencode(folder) + b"/\xff.bvh")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.bvh")).write_text("")
    found = evaluate_folder(model, folder, processes)
    assert found.files[-1].name == "?.bvh"
    assert found.failures[0].startswith(f"{folder}/?.bvh")


@pytest.mark.parametrize("progress", [False, True])
def test_the_bar_of_files_is_shown_if_asked_for(
    tmp_path: Path,
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    capsys: pytest.CaptureFixture[str],
    progress: bool,
) -> None:
    tokenize_folder(model, folder, tmp_path / "out", ".npz", processes, progress=progress)
    assert ("4/4" in capsys.readouterr().err) == progress
    evaluate_folder(model, folder, processes, progress=progress)
    assert ("4/4" in capsys.readouterr().err) == progress
