"""Tokens of a folder: each file gets the tokens that it gets alone, whatever happens on the way."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from motion import RVQVAE
from motion.commands.tokenize import tokenize_file, tokenize_folder
from motion.dataset.folder import FolderReport
from motion.dataset.plan import FolderOptions
from motion.dataset.records import INDEX, SETTINGS, TokenFormat
from motion.errors import MotionError
from motion.files.formats import write_motion
from motion.tokens import Tokens, digest_of, read_tokens, write_tokens
from tests.motion.helpers import contents
from tests.motion.small_tokenizers import WALK, WALKS, tiny_tokenizer
from wanvae.engine.files import FileError
from wanvae.errors import UserError


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_a_folder_is_its_files(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState, form: TokenFormat
) -> None:
    suffix, options = f".{form}", FolderOptions(format=form)
    report = tokenize_folder(model, folder, tmp_path / "out", processes, options=options)
    assert report == FolderReport(4, 0, ())
    targets = [str(Path(name).with_suffix(suffix)) for name in WALKS]
    assert list(contents(tmp_path / "out")) == sorted([*targets, SETTINGS, INDEX])
    for name, target in zip(WALKS, targets, strict=True):
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
    tokenize_folder(model, folder, tmp_path / "once", processes)
    encode, calls = model.encode, []

    def interrupted(features: torch.Tensor) -> torch.Tensor:
        calls.append(features)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(features)

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenize_folder(model, folder, tmp_path / "twice", processes)
    expected = contents(tmp_path / "once")
    assert contents(tmp_path / "twice") == dict(list(expected.items())[:2])
    # One is cut short, as by a disk that was full.
    (tmp_path / "twice" / "a.npz").write_bytes(expected["a.npz"][:-9])
    report = tokenize_folder(model, folder, tmp_path / "twice", processes)
    assert report == FolderReport(3, 1, ())
    assert contents(tmp_path / "twice") == expected


def test_tokens_of_another_model_are_replaced(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    tokenize_folder(tiny_tokenizer(seed=1), folder, tmp_path / "out", processes)
    report = tokenize_folder(model, folder, tmp_path / "out", processes)
    assert (report.written, report.kept, len(report.changed)) == (4, 0, 4)
    tokenize_folder(model, folder, tmp_path / "new", processes)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_files_that_cannot_be_read_are_left_out(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    (folder / "a.bvh").write_text("HIERARCHY\nROOT")
    (folder / "b.npz").write_bytes(b"")
    report = tokenize_folder(model, folder, tmp_path / "out", processes)
    assert (report.written, report.kept) == (2, 0)
    first, second = report.failures
    assert first.startswith(f"{folder / 'a.bvh'}, line 2: ")
    assert second.startswith(f"{folder / 'b.npz'} is no complete .npz file")
    assert list(contents(tmp_path / "out")) == [SETTINGS, "deep/c.npz", "deep/er/d.npz", INDEX]


def test_no_file_is_written_over_another(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    before = contents(folder)
    for target in (folder, folder / "tokens", tmp_path, folder / ".." / "in"):
        with pytest.raises(UserError, match="must not be in"):
            tokenize_folder(model, folder, target, processes)
    assert contents(folder) == before and os.listdir(tmp_path) == ["in"]


def test_a_name_twice_is_a_failure_of_one_file(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    write_motion(folder / "a.npz", WALK)
    report = tokenize_folder(model, folder, tmp_path / "out", processes)
    (line,) = report.failures
    assert line.startswith(f"{folder / 'a.npz'} would become ") and line.endswith("rename one")
    assert report.written == 4
    alone = tokenize_file(model, folder / "a.bvh", tmp_path / "alone.npz")
    assert read_tokens(tmp_path / "out" / "a.npz").origin == alone.origin


def test_an_edited_motion_file_is_tokenized_again(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    """Also if its size and its time are the same; and if it cannot be read any more."""
    out = tmp_path / "out"
    tokenize_folder(model, folder, out, processes)
    before = contents(out)
    path = folder / "a.bvh"
    text, status = path.read_text(), path.stat()
    path.write_text(text.replace("0.1", "0.2", 1))
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = tokenize_folder(model, folder, out, processes)
    assert report == FolderReport(1, 3, (), (str(path),))
    tokenize_folder(model, folder, tmp_path / "new", processes)
    assert contents(out) == contents(tmp_path / "new") != before
    path.write_text("no motion")
    report = tokenize_folder(model, folder, out, processes)
    assert (report.kept, len(report.failures), report.changed) == (3, 1, (str(path),))
    assert "a.npz" not in contents(out)


def test_another_encoder_with_the_same_codebooks_is_another_model(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    other = tiny_tokenizer()
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1.0)
    assert digest_of(other) == digest_of(model)
    tokenize_folder(other, folder, tmp_path / "out", processes)
    report = tokenize_folder(model, folder, tmp_path / "out", processes)
    assert (report.written, report.kept) == (4, 0)


def test_tokens_of_an_earlier_version_are_kept_and_counted(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    tokenize_folder(model, folder, tmp_path / "out", processes)
    path = tmp_path / "out" / "a.npz"
    tokens = read_tokens(path)
    assert tokens.origin is not None
    write_tokens(path, Tokens(tokens.indices, replace(tokens.origin, model="", source=None)))
    report = tokenize_folder(model, folder, tmp_path / "out", processes)
    assert report == FolderReport(0, 4, (), (), 1)


def test_what_systems_leave_in_folders_is_passed_over(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    (folder / "._a.bvh").write_bytes(b"\0\5\26\7")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.bvh").write_bytes(b"\0\5\26\7")
    report = tokenize_folder(model, folder, tmp_path / "out", processes)
    assert report == FolderReport(4, 0, ())


def test_folders_that_cannot_be(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    with pytest.raises(FileError, match=r"make the directory .*missing first"):
        tokenize_folder(model, folder, tmp_path / "missing" / "out", processes)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file cannot be created: File exists"):
        tokenize_folder(model, folder, tmp_path / "file", processes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MotionError, match=r"empty has no \.bvh or \.npz or \.pkl files"):
        tokenize_folder(model, tmp_path / "empty", tmp_path / "out", processes)


def test_tokens_that_cannot_be_written_end_the_run(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    """The motion file is not to blame, so it is not left out as one that cannot be read."""
    (tmp_path / "out" / "b.npz").mkdir(parents=True)
    with pytest.raises(UserError, match=r"b\.npz cannot be written: it is a directory"):
        tokenize_folder(model, folder, tmp_path / "out", processes)


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug")])
def test_a_bug_is_not_taken_for_a_bad_file(
    tmp_path: Path,
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(model, "encode", broken)
    with pytest.raises(type(error), match="a bug"):
        tokenize_folder(model, folder, tmp_path / "out", processes)


@pytest.mark.parametrize("progress", [False, True])
def test_the_progress_bar_is_shown_if_asked_for(
    tmp_path: Path,
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    capsys: pytest.CaptureFixture[str],
    progress: bool,
) -> None:
    tokenize_folder(model, folder, tmp_path / "out", processes, progress=progress)
    assert ("4/4" in capsys.readouterr().err) == progress
