"""Tables, JSON and plots say what an evaluation found."""

import json
import os
from pathlib import Path

import pytest
import torch

from motion.evaluation import Evaluation
from motion.report import as_json, require_plots, table_of, worst_joints, write_report
from wanvae.engine.checkpoint import CheckpointError
from wanvae.video import read_video

EVALUATION = Evaluation(
    joint_names=("hip", "knee", "foot"),
    joint_errors=torch.tensor([1.0, 5.25, 3.0]).double(),
    mpjpe=(20.0, 3.0833),
    rotation_errors=(4.5, 1.25),
    counts=torch.tensor([[4, 4, 4, 4], [16, 0, 0, 0]]),
    frames=64,
)


def test_the_table_has_a_line_for_each_layer() -> None:
    frames, head, *rows, joints = table_of(EVALUATION)
    assert frames == "64 frames"
    assert [row.split() for row in rows] == [
        ["1", "20.00", "4.500", "4.0", "4", "of", "4", "(100%)"],
        ["2", "3.08", "1.250", "1.0", "1", "of", "4", "(25%)"],
    ]
    # Numbers end where their headings do.
    for heading, number in (("(mm)", "20.00"), ("(degrees)", "4.500"), ("the last", "4.0")):
        assert head.index(heading) + len(heading) == rows[0].index(f" {number} ") + 1 + len(number)
    assert joints == "largest errors of joints (mm): knee 5.2, foot 3.0, hip 1.0"
    assert list(table_of(EVALUATION, joints=1))[-1].endswith(": knee 5.2")


def test_joints_are_sorted_by_their_errors() -> None:
    assert worst_joints(EVALUATION) == [("knee", 5.25), ("foot", 3.0), ("hip", 1.0)]


def test_everything_is_written(tmp_path: Path) -> None:
    write_report(tmp_path, EVALUATION)
    names = ["codes.png", "evaluation.json", "joints.png", "layers.png"]
    assert sorted(os.listdir(tmp_path)) == names
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written == as_json(EVALUATION)
    assert written["mpjpe_mm"] == [20.0, 3.0833] and written["code_use"] == [1.0, 0.25]
    assert written["joint_errors_mm"] == [1.0, 5.25, 3.0]
    assert sum(map(sum, written["code_counts"])) == 32
    for name in names:
        if name.endswith(".png"):
            assert read_video(tmp_path / name)[0].std() > 0.05


def test_a_report_is_complete_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"make the directory .*missing first"):
        write_report(tmp_path / "missing", EVALUATION)
    (tmp_path / "codes.png").mkdir()
    with pytest.raises(CheckpointError, match=r"codes\.png cannot be written"):
        write_report(tmp_path, EVALUATION)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    require_plots()
    monkeypatch.setattr("motion.report.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "wanvae\[train\]", or leave out --output'):
        require_plots()
