"""The evaluation of a folder: each file has its own figures, however many processes share it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

from motion import RVQVAE
from motion.errors import MotionError
from motion.evaluate.evaluation import measure
from motion.evaluate.folder import FolderEvaluation, evaluate_folder
from motion.features.recording import read_recording
from motion.files.formats import write_motion
from tests.motion.helpers import in_processes, random_clip, random_skeleton
from tests.motion.small_tokenizers import WALK, WALKS, tiny_tokenizer


def test_an_evaluation_is_that_of_the_files(
    folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    found = evaluate_folder(model, folder, processes)
    alone = [measure(model, read_recording(folder / name, model.config)) for name in WALKS]
    assert [file.name for file in found.files] == list(WALKS) and found.failures == ()
    for file, part in zip(found.files, alone, strict=True):
        assert file.path == folder / file.name and file.summary == part.summary
    frames = [len(WALK[3 * start : 20 + start]) for start in range(4)]
    assert [file.summary.frames for file in found.files] == frames
    errors = [file.summary.mpjpe_mm[-1] for file in found.files]
    mean = sum(error * count for error, count in zip(errors, frames, strict=True)) / sum(frames)
    assert found.whole.mpjpe[-1] == pytest.approx(mean)
    assert found.whole.summary.foot_contacts == sum(part.movement.contacts for part in alone) > 0


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

    modules = "motion.evaluate.folder", "motion.evaluate.evaluation"
    for several in in_processes(monkeypatch, count, evaluated, *modules):
        assert several.failures == one.failures and len(one.failures) == 2
        assert [file.name for file in several.files] == [file.name for file in one.files]
        assert [file.summary for file in several.files] == [file.summary for file in one.files]
        torch.testing.assert_close(several.whole.errors, one.whole.errors)
        assert torch.equal(several.whole.counts, one.whole.counts)


@pytest.mark.parametrize("known", [True, False])
def test_what_cannot_be_evaluated_is_left_out(
    folder: Path, processes: PartialState, known: bool
) -> None:
    """Files of 55 other joints too, whether or not the model knows its skeleton."""
    model = tiny_tokenizer()
    if not known:
        model.skeleton = None
    (folder / "a.bvh").write_text("HIERARCHY\nROOT")
    write_motion(folder / "c.bvh", random_clip(random_skeleton(4)))
    write_motion(folder / "0.bvh", random_clip(random_skeleton(55)))
    found = evaluate_folder(model, folder, processes)
    assert [file.name for file in found.files] == list(WALKS[1:])
    first, second, third = found.failures
    reason = "has no pelvis, " if known else "has other joints than 3 files of the folder; "
    assert first.startswith(f"{folder / '0.bvh'} {reason}")
    assert second.startswith(f"{folder / 'a.bvh'}, line 2: ")
    assert f"{folder / 'c.bvh'} has 24 channels of 4 joints" in third
    (folder / "0.bvh").unlink()
    whole = evaluate_folder(model, folder, processes).whole
    torch.testing.assert_close(whole.errors, found.whole.errors)


def test_folders_that_cannot_be_evaluated(
    tmp_path: Path, folder: Path, model: RVQVAE, processes: PartialState
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MotionError, match=r"empty has no \.bvh or \.npz or \.pkl files"):
        evaluate_folder(model, tmp_path / "empty", processes)
    for name in WALKS:
        (folder / name).write_bytes(b"")
    with pytest.raises(MotionError, match=r"none of the 4 files of .*; the first: .*a\.bvh"):
        evaluate_folder(model, folder, processes)
    with pytest.raises(MotionError, match=r"^[^;]*b\.npz is no complete"):
        evaluate_folder(model, folder / "b.npz", processes)


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_names_that_are_no_text(folder: Path, model: RVQVAE, processes: PartialState) -> None:
    os.rename(folder / "a.bvh", os.fsencode(folder) + b"/\xff.bvh")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.bvh")).write_text("")
    found = evaluate_folder(model, folder, processes)
    assert found.files[-1].name == "?.bvh"
    assert found.failures[0].startswith(f"{folder}/?.bvh")


def test_a_bug_is_not_taken_for_a_bad_file_in_an_evaluation(
    folder: Path, model: RVQVAE, processes: PartialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(model, "encode", broken)
    with pytest.raises(ValueError, match="a bug"):
        evaluate_folder(model, folder, processes)


@pytest.mark.parametrize("progress", [False, True])
def test_the_progress_bar_of_an_evaluation_is_shown_if_asked_for(
    folder: Path,
    model: RVQVAE,
    processes: PartialState,
    capsys: pytest.CaptureFixture[str],
    progress: bool,
) -> None:
    evaluate_folder(model, folder, processes, progress=progress)
    assert ("4/4" in capsys.readouterr().err) == progress
