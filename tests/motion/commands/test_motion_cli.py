"""The command line of motion: every command works, and bad input is one clear line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import motion
import wanvae
from motion import cli
from motion.features.feature_files import write_features
from motion.files.formats import read_motion, write_motion
from motion.tokens import read_tokens
from tests.commands import outputs_of
from tests.helpers import LAUNCHER, occupied
from tests.motion.helpers import contents, random_clip, random_skeleton
from tests.motion.small_tokenizers import ROOTED, WALK, saved_tokenizer
from wanvae.engine.checkpoint import write_pickle
from wanvae.video import read_video

BEFORE = b"precious"

pytestmark = pytest.mark.usefixtures("new_processes")

Run = Callable[..., tuple[str, str]]
Fail = Callable[..., str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with checkpoints, and a walk, features and tokens."""
    folder = tmp_path_factory.mktemp("files")
    saved_tokenizer(folder / "model.safetensors")
    saved_tokenizer(folder / "rooted.safetensors", ROOTED)
    saved_tokenizer(folder / "humanml3d.safetensors", None)
    write_motion(folder / "walk.bvh", WALK)
    write_features(folder / "walk.npy", torch.zeros(9, 263))
    np.save(folder / "indices.npy", np.zeros((3, 2), np.int64))
    paths = folder / "walk.bvh", folder / "tokens.npz", "--checkpoint", folder / "model.safetensors"
    assert cli.main(["tokenize", *map(str, paths)]) == 0
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must end with ``status``; gives its stdout and stderr."""

    def run_command(*arguments: object, status: int = 0) -> tuple[str, str]:
        return outputs_of(capsys, list(map(str, arguments)), status, cli.main)

    return run_command


@pytest.fixture
def fail(run: Run) -> Fail:
    """Run a command that must fail with one line on stderr and nothing on stdout; gives it."""

    def run_command(*arguments: object, status: int = 1) -> str:
        out, err = run(*arguments, status=status)
        assert out == "" and err.startswith("wanvae-motion: ")
        assert err.index("\n") == len(err) - 1
        return err

    return run_command


def model(files: Path, name: str = "model") -> list[object]:
    return ["--checkpoint", files / f"{name}.safetensors"]


# What works


@pytest.mark.parametrize("name", ["walk.bvh", "walk.npz"])
def test_sample(tmp_path: Path, run: Run, name: str) -> None:
    path = tmp_path / name
    out, err = run("sample", path, "--frames", 12, "--fps", 24)
    assert (out, err) == (f"{path}: 12 frames of 55 joints\n", "")
    clip = read_motion(path)
    assert (len(clip), clip.fps) == (12, 24.0)


def test_tokens_and_back(tmp_path: Path, files: Path, run: Run) -> None:
    walk, tokens, target = files / "walk.bvh", tmp_path / "t.safetensors", tmp_path / "b.bvh"
    out, err = run("tokenize", walk, tokens, *model(files, "rooted"))
    assert (out, err) == (f"{walk} -> {tokens}: 11 tokens of 2 codes\n", "")
    out, err = run("detokenize", tokens, target, *model(files, "rooted"))
    assert (out, err) == (f"{tokens} -> {target}: 41 frames at 30 per second\n", "")
    out, err = run("reconstruct", walk, tmp_path / "c.bvh", *model(files, "rooted"))
    assert target.read_bytes() == (tmp_path / "c.bvh").read_bytes()
    first, second, *movement, third = out.splitlines()
    assert first == f"{walk} -> {tmp_path / 'c.bvh'}: 41 frames at 30 per second" and err == ""
    assert second.startswith("MPJPE ") and second.endswith(" degrees")
    assert [line.split(":")[0] for line in movement] == [
        "MPJPE with roots aligned",
        "error of acceleration",
        "jerk",
        "feet on the ground",
    ]
    assert third.startswith("11 tokens; codes that they use of the 16 of each layer: ")


def test_other_rates_are_said(tmp_path: Path, files: Path, run: Run) -> None:
    write_motion(tmp_path / "a.bvh", random_clip(WALK.skeleton, frames=9, fps=60.0))
    out, _ = run("reconstruct", tmp_path / "a.bvh", tmp_path / "b.bvh", *model(files))
    assert ": 5 frames at 30 per second (converted from 60)\n" in out


def test_options_may_come_from_a_file(tmp_path: Path, files: Path, run: Run) -> None:
    config = tmp_path / "options.yaml"
    config.write_text(f"checkpoint: {files / 'model.safetensors'}\nlayers: 1\n")
    walk = files / "walk.bvh"
    run("reconstruct", walk, tmp_path / "a.bvh", "--config", config)
    run("reconstruct", walk, tmp_path / "b.bvh", *model(files), "--layers", 1)
    assert (tmp_path / "a.bvh").read_bytes() == (tmp_path / "b.bvh").read_bytes()


def test_indices_of_another_program(tmp_path: Path, files: Path, run: Run) -> None:
    out, _ = run("detokenize", files / "indices.npy", tmp_path / "a.npz", *model(files))
    assert out.endswith(": 12 frames at 30 per second\n")
    source = files / "indices.npy", tmp_path / "a.npy"
    assert "12 frames at 20" in run("detokenize", *source, *model(files, "humanml3d"))[0]


def test_a_folder(tmp_path: Path, files: Path, run: Run) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.bvh", "b.npz"):
        write_motion(folder / name, WALK)
    command = "tokenize", folder, tmp_path / "out", *model(files), "--format", "safetensors"
    line = f"{folder} -> {tmp_path / 'out'}: "
    assert run(*command) == (f"{line}2 files of tokens written, 0 were there\n", "")
    (folder / "notes.txt").write_text("no motion")
    (folder / "a.mp4").write_bytes(b"")
    ignored = "ignored, no motion files: 1 .mp4, 1 .txt\n"
    assert run(*command) == (f"{line}0 files of tokens written, 2 were there\n{ignored}", "")
    assert ignored in run("evaluate", folder, *model(files))[0]
    (folder / "c.bvh").write_text("no motion")
    out, err = run(*command, status=1)
    first, _, second = out.splitlines()
    assert first == f"{line}0 files of tokens written, 2 were there"
    assert second.startswith(f"left out: {folder / 'c.bvh'}, line 1: ")
    assert err == "wanvae-motion: 1 of 3 files cannot be read\n"
    lists = ["dataset.json", "index.jsonl"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.safetensors", "b.safetensors", *lists]


@pytest.mark.parametrize("window", [[], ["--window", 8]])
def test_evaluate(tmp_path: Path, files: Path, run: Run, window: list[object]) -> None:
    command = "evaluate", files / "walk.bvh", *model(files), "--output", tmp_path / "report"
    out, err = run(*command, *window)
    lines = out.splitlines()
    assert lines[0] == "41 frames" and len(lines) == 9 and err == ""
    written = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert f"{written['mpjpe_mm'][1]:.2f}" in lines[3]
    # Whole files have 11 tokens; 34 windows have 2 each.
    assert sum(written["code_counts"][0]) == (34 * 2 if window else 11)
    files_of_report = ["evaluation.csv", "evaluation.json", "report.html"]
    assert sorted(os.listdir(tmp_path / "report")) == files_of_report
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<canvas") == 1 and ("windows of 8 frames" in page) == bool(window)


def test_a_report_goes_on_without_what_cannot_be_read(
    tmp_path: Path, files: Path, run: Run
) -> None:
    for name in ("a.bvh", "b.npz", "c.bvh"):
        write_motion(tmp_path / name, WALK)
    (tmp_path / "b.npz").write_bytes(b"no motion")
    target = tmp_path / "report"
    limits = "--figures", 1, "--figure-frames", 9
    out, err = run("evaluate", tmp_path, *model(files), "--output", target, *limits, status=1)
    assert out.startswith("82 frames\n")
    assert out.splitlines()[-1].startswith(f"left out: {tmp_path / 'b.npz'} is no complete")
    assert err == "wanvae-motion: 1 of 3 files cannot be read\n"
    written = json.loads((target / "evaluation.json").read_text())
    assert [file["file"] for file in written["files"]] == ["a.bvh", "c.bvh"]
    assert len(written["failures"]) == 1
    page = (target / "report.html").read_text()
    assert page.count("<canvas") == 1 and "2, and 1 left out" in page and '"frames": 9' in page


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_render(tmp_path: Path, files: Path, run: Run, name: str) -> None:
    write_motion(tmp_path / "short.bvh", WALK[:3])
    for options_ in ([], model(files)):
        out, err = run("render", tmp_path / "short.bvh", tmp_path / name, *options_)
        assert (out, err) == (f"{tmp_path / 'short.bvh'} -> {tmp_path / name}\n", "")
        height, width = read_video(tmp_path / name)[0].shape[2:]
        panels = 2 if options_ else 1
        assert (width, height) == ((480 * panels, 480) if name == "a.mp4" else (1920, 320 * panels))


def test_convert(tmp_path: Path, files: Path, run: Run) -> None:
    native, momask = files / "model.safetensors", tmp_path / "b.tar"
    out, _ = run("convert", native, momask, "--to", "momask")
    assert out.startswith("native to momask: ") and "note: not kept in the momask layout" in out
    out, _ = run("convert", momask, tmp_path / "c.safetensors", "--to", "native")
    assert out.startswith("momask to native: ")
    out, _ = run("convert", files / "walk.bvh", tmp_path / "b.npz")
    assert ": 41 frames, largest joint error " in out and out.endswith("the skeleton's size\n")
    out, _ = run("convert", files / "walk.bvh", tmp_path / "b.bvh", "--roundtrip")
    assert float(out.split("largest joint error ")[1].split(" mm")[0]) < 0.01


def test_the_scale_of_a_published_checkpoint(
    tmp_path: Path, files: Path, run: Run, fail: Fail
) -> None:
    run("convert", files / "humanml3d.safetensors", tmp_path / "a.tar", "--to", "momask")
    scale = [f"--{name}={tmp_path / f'a_{name}.npy'}" for name in ("mean", "std")]
    back = "convert", tmp_path / "a.tar", tmp_path / "b.safetensors", "--to", "native"
    assert "--mean and --std belong together" in fail(*back, scale[0])
    assert "note: normalizer: not in the file" in run(*back)[0]
    assert "note: normalizer" not in run(*back, *scale)[0]
    for name in ("a.npy", "b.npy"):
        model_path = files / "humanml3d.safetensors" if name == "a.npy" else back[2]
        run("reconstruct", files / "walk.npy", tmp_path / name, "--checkpoint", model_path)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_info(tmp_path: Path, files: Path, run: Run) -> None:
    lines = run("info", files / "model.safetensors")[0].splitlines()
    assert lines[0] == f"{files / 'model.safetensors'}: native layout"
    assert lines[2] == "tokens: 7.5 per second, each of 2 codes, of 16"
    assert lines[3].startswith("receptive field: a token sees 32 frames (14 before its own 4")
    assert lines[4].startswith("look-ahead: ") and lines[5] == "effective kernels: 3, then 3"
    assert any(line.startswith("features: rot6d rows, root False,") for line in lines)
    assert not any(line.startswith("wan:") for line in lines)
    out, _ = run("info", files / "walk.bvh")
    for line in ("frames: 41 at 30 per second, 1.37 s", "unit: 1 m, y up", "size: "):
        assert f"\n{line}" in out
    assert "\njoints: 55, from pelvis to right_thumb3\n" in out
    assert "features of HumanML3D, 263 channels" in run("info", files / "walk.npy")[0]
    out, _ = run("info", files / "tokens.npz")
    assert out.startswith(f"{files / 'tokens.npz'}: 11 tokens of 2 codes, from ")
    assert "\njoints: 55" in out and "\ncodebooks: of 16 codes, digest " in out
    assert "\norigin: not known" in run("info", files / "indices.npy")[0]


@pytest.mark.filterwarnings("default")
def test_published_checkpoints_and_what_they_do_not_tell(
    tmp_path: Path, files: Path, run: Run, fail: Fail
) -> None:
    momask = tmp_path / "model.tar"
    run("convert", files / "model.safetensors", momask, "--to", "momask")
    out, _ = run("info", momask)
    assert "momask layout" in out
    assert "\nnote: activation: relu, as published models have it\n" in out
    assert "\nnote: features: BEAT2" in out
    told = "--activation", "gelu", "--dilation-growth-rate", 2, 3, "--reverse-dilation", "false"
    out, _ = run("info", momask, *told)
    assert "\nnote: activation: gelu, as given\n" in out
    assert "\nnote: dilation_growth_rate: 2, 3, as given\n" in out
    assert "\nnote: reverse_dilation: False, as given\n" in out
    _, err = run(
        "reconstruct", files / "walk.bvh", tmp_path / "a.bvh", "--checkpoint", momask, *told
    )
    assert f"warning: {momask} has no mean and standard deviation" in err
    assert "warning: the features of the motion are not normalized" in err and err.count("\n") == 2
    assert "norm is BN as given, but" in fail("info", momask, "--norm", "BN")
    reason = "it says its architecture itself; do not give activation"
    assert reason in fail("info", files / "model.safetensors", "--activation", "gelu")


def test_training_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def train(arguments: list[str], program: str) -> int:
        given.extend([arguments, program])
        return 7

    monkeypatch.setattr("motion.train.run.main", train)
    assert cli.main(["train", "--config", "a.yaml", "--help"]) == 7
    assert given == [["--config", "a.yaml", "--help"], "wanvae-motion train"]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
        text = capsys.readouterr().out
        assert text.startswith("usage: wanvae-motion") and command in text
        assert not any(noise in text for noise in ("null", "None"))
        if "--checkpoint" in text:
            named = ("--activation", "--norm", "--dilation-growth-rate", "--reverse-dilation")
            assert all(option in text for option in (*named, "--device", "--config"))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "train or fine-tune a tokenizer" in text
    assert all(command.summary in text for command in cli.COMMANDS.values())
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"wanvae-motion {motion.__version__}\n"
    assert motion.__version__ == wanvae.__version__


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], 'expected "command" to be one of'),
        (["tokens"], "invalid choice: 'tokens'"),
        (["evaluate"], "required: input (see wanvae-motion evaluate --help)"),
        (["encode", "a"], "required: output, --checkpoint (see wanvae-motion encode --help)"),
        (["encode", "a", "b", "--config", "none.yaml"], "error: config: File does not exist"),
        (["encode", "a", "b"], "required: --checkpoint (see wanvae-motion encode --help)"),
        (["info", "--colour"], "unrecognized arguments: --colour"),
        (["convert", "a", "b", "--to", "t2m-gpt"], "argument --to: invalid choice: 't2m-gpt'"),
        (["info", "a", "--activation", "tanh"], "--activation: invalid choice: 'tanh'"),
        (["sample", "a.bvh", "--frames", "many"], "frames must be a whole number, not many"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ": error: " in line and reason in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--frames", "0"], "0 frames at 30.0 per second; both must be positive"),
        (["--fps=-1"], "240 frames at -1.0 per second; both must be positive"),
    ],
)
def test_impossible_walks(tmp_path: Path, fail: Fail, arguments: list[str], reason: str) -> None:
    assert reason in fail("sample", tmp_path / "a.bvh", *arguments)
    assert os.listdir(tmp_path) == []


def test_impossible_options(tmp_path: Path, files: Path, fail: Fail) -> None:
    tokens, target = files / "tokens.npz", tmp_path / "a.bvh"
    err = fail("detokenize", tokens, target, *model(files), "--layers", 3)
    assert "layers must be from 1 to 2, not 3" in err
    err = fail("evaluate", files / "walk.bvh", *model(files), "--window", 0)
    assert "--window must be at least 1 frame, not 0" in err
    command = "evaluate", files / "walk.bvh", *model(files), "--output", tmp_path / "report"
    assert "--figures must be at least 0, not -1" in fail(*command, "--figures=-1")
    assert "--figure-frames must be at least 1, not 0" in fail(*command, "--figure-frames=0")
    err = fail("tokenize", files / "walk.bvh", target, *model(files), "--device", "gpu")
    assert "cannot compute in float32 on device 'gpu': " in err and err.endswith("--device cpu\n")
    for source, given in (
        ("walk.bvh", ["--to", "native"]),
        ("model.safetensors", []),
        ("model.safetensors", ["--to", "native", "--roundtrip"]),
    ):
        assert "a checkpoint needs --to" in fail("convert", files / source, target, *given)
    assert os.listdir(tmp_path) == []


# Motion that cannot be used


def change_bvh(change: Callable[[list[str]], object]) -> Callable[[Path, Path], None]:
    def make(path: Path, files: Path) -> None:
        lines = (files / "walk.bvh").read_text().splitlines()
        change(lines)
        path.write_text("\n".join(lines))

    return make


def without_a_channel(lines: list[str]) -> None:
    line = next(n for n, line in enumerate(lines) if "CHANNELS 3" in line)
    lines[line] = lines[line].replace("CHANNELS 3 Zrotation", "CHANNELS 2")


def timing(lines: list[str]) -> int:
    return next(n for n, line in enumerate(lines) if line.startswith("Frame Time"))


def not_finite(lines: list[str]) -> None:
    lines[-1] = "nan " + lines[-1].split(" ", 1)[1]


def write_arrays(**changes: np.ndarray | None) -> Callable[[Path, Path], None]:
    def make(path: Path, files: Path) -> None:
        write_motion(path, WALK)
        with np.load(path) as file:
            arrays = dict(file) | changes
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return make


class Harmful:
    """Makes a directory when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


def small(path: Path, files: Path) -> None:
    write_motion(path, random_clip(random_skeleton(7)))


BAD_MOTION: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "missing": ("a.bvh", lambda path, files: None, "a.bvh"),
    "empty": ("a.bvh", lambda path, files: path.touch(), "the file ends where"),
    "channel": (
        "a.bvh",
        change_bvh(without_a_channel),
        "numbers; the hierarchy has",
    ),
    "nan": ("a.bvh", change_bvh(not_finite), "a frame needs finite numbers"),
    "time": (
        "a.bvh",
        change_bvh(lambda lines: lines.__setitem__(timing(lines), "Frame Time: 0")),
        "the frame time is '0'; it must be positive",
    ),
    "frames": ("a.bvh", change_bvh(lambda lines: lines.pop()), "the file has 40 of 41 frames"),
    "truncated": ("a.bvh", change_bvh(lambda lines: lines.__delitem__(slice(50, None))), "ends"),
    "joints": ("a.bvh", small, "has 42 channels of 7 joints, but the model has 330"),
    "keys": ("a.npz", write_arrays(poses=None), "has no 'poses'; its keys are"),
    "poses": ("a.npz", write_arrays(poses=np.zeros((41, 66))), "165 numbers (SMPL-X)"),
    "trans": ("a.npz", write_arrays(trans=np.zeros((40, 3))), "trans is (40, 3); (41, 3)"),
    "not finite": ("a.npz", write_arrays(trans=np.full((41, 3), np.inf)), "finite numbers"),
    "rate": ("a.npz", write_arrays(mocap_frame_rate=np.array(0.0)), "it must be positive"),
    "pickled": (
        "a.npz",
        write_arrays(poses=np.array([Harmful()], object)),
        "is no complete .npz file of plain arrays",
    ),
    "features": ("a.npy", lambda path, files: np.save(path, np.zeros((9, 263))), "must end in"),
    "suffix": ("a.fbx", lambda path, files: path.touch(), "must end in .bvh or .npz"),
}


@pytest.mark.parametrize("name", BAD_MOTION)
def test_bad_motion(
    tmp_path: Path, files: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file, make, reason = BAD_MOTION[name]
    make(tmp_path / file, files)
    target = tmp_path / f"b{Path(file).suffix}"
    if target.suffix not in (".bvh", ".npz"):
        target = target.with_suffix(".bvh")
    tokens = tmp_path / "b.safetensors"
    for path in (target, tokens):
        path.write_bytes(BEFORE)
    inside = sorted(os.listdir(tmp_path))
    for command, output in (("reconstruct", target), ("tokenize", tokens)):
        err = fail(command, tmp_path / file, output, *model(files))
        assert str(tmp_path / file) in err and reason in err
        assert output.read_bytes() == BEFORE
    assert reason in fail("evaluate", tmp_path / file, *model(files))
    assert sorted(os.listdir(tmp_path)) == inside


# Tokens that cannot be used


@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        (np.full((3, 2), 16), "of 2 layers of at least 17 codes, but the model has 2 of 16"),
        (np.zeros((3, 3), int), "of 3 layers of at least 1 codes, but the model has 2"),
        (np.full((3, 2), -2), "from 0, or -1 for none, not -2 to -2"),
        (np.zeros((3, 2)), "must be whole numbers, not float64 (3, 2)"),
        (np.zeros((4, 3, 2), int), "indices (4, 3, 2) are of 4 motions; write one file for each"),
        (np.zeros((1, 1, 3, 2), int), "must be (T, Q), none of them 0, not (1, 1, 3, 2)"),
        (np.zeros((0, 2), int), "not (0, 2)"),
        (np.array([[Harmful()]], object), "no complete .npy file"),
    ],
)
def test_bad_indices(
    tmp_path: Path, files: Path, fail: Fail, indices: np.ndarray, reason: str
) -> None:
    np.save(tmp_path / "t.npy", indices)
    err = fail("detokenize", tmp_path / "t.npy", tmp_path / "a.bvh", *model(files))
    assert str(tmp_path / "t.npy") in err and reason in err
    assert os.listdir(tmp_path) == ["t.npy"]


@pytest.mark.filterwarnings("default:.*other codebooks")
def test_tokens_of_other_codebooks_are_worth_a_warning(
    tmp_path: Path, files: Path, run: Run
) -> None:
    _, err = run("detokenize", files / "tokens.npz", tmp_path / "a.bvh", *model(files, "rooted"))
    assert err.startswith("wanvae-motion: warning: ") and "with other codebooks" in err
    assert err.count("\n") == 1


# Checkpoints that cannot be used


def test_checkpoints_that_are_none(tmp_path: Path, files: Path, fail: Fail) -> None:
    missing, text, other = (tmp_path / name for name in ("a.tar", "b.tar", "c.pth"))
    text.write_text("no checkpoint")
    write_pickle(other, {"conv1.weight": torch.zeros(1)})
    reasons = {
        missing: "does not exist",
        text: "is no checkpoint",
        other: "no layout of a motion tokenizer has tensors like conv1.weight",
    }
    inside = sorted(os.listdir(tmp_path))
    for path, reason in reasons.items():
        for command in (
            ["info", path],
            ["convert", path, tmp_path / "d.safetensors", "--to", "native"],
            ["tokenize", files / "walk.bvh", tmp_path / "t.npz", "--checkpoint", path],
            ["reconstruct", files / "walk.bvh", tmp_path / "b.bvh", "--checkpoint", path],
            ["evaluate", files / "walk.bvh", "--checkpoint", path],
            ["render", files / "walk.bvh", tmp_path / "b.mp4", "--checkpoint", path],
        ):
            err = fail(*command)
            assert str(path) in err and reason in err
    assert sorted(os.listdir(tmp_path)) == inside


# Files that cannot be written


@pytest.mark.parametrize("name", ["missing/b{}", "directory{}", "b.xyz"])
@pytest.mark.parametrize(
    "command", ["sample", "tokenize", "detokenize", "reconstruct", "render", "convert"]
)
def test_unwritable_outputs(
    tmp_path: Path, files: Path, fail: Fail, command: str, name: str
) -> None:
    walk, checkpoint = files / "walk.bvh", model(files)
    before, after, suffix = {
        "sample": ([], [], ".bvh"),
        "tokenize": ([walk], checkpoint, ".npz"),
        "detokenize": ([files / "tokens.npz"], checkpoint, ".bvh"),
        "reconstruct": ([walk], checkpoint, ".bvh"),
        "render": ([walk], [], ".png"),
        "convert": ([walk], [], ".bvh"),
    }[command]
    (tmp_path / f"directory{suffix}").mkdir()
    target = tmp_path / name.format(suffix)
    assert str(target) in fail(command, *before, target, *after)
    assert os.listdir(tmp_path) == [f"directory{suffix}"]


def test_a_report_needs_a_place(tmp_path: Path, files: Path, fail: Fail) -> None:
    target = tmp_path / "missing" / "report"
    err = fail("evaluate", files / "walk.bvh", *model(files), "--output", target)
    assert f"{target} cannot be created: make the directory {target.parent} first" in err


# Processes and Ctrl-C


def test_ctrl_c_leaves_the_figures_of_a_report(
    tmp_path: Path, files: Path, fail: Fail, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = "evaluate", files / "walk.bvh", *model(files), "--output", tmp_path
    with monkeypatch.context() as patch:
        patch.setattr("motion.evaluate.side_by_side.read_recording", interrupted)
        _, err = run(*command, status=130)
        line = "interrupted; evaluation.json and evaluation.csv are complete, report.html was not "
        assert err == f"wanvae-motion: {line}written\n"
        assert sorted(os.listdir(tmp_path)) == ["evaluation.csv", "evaluation.json"]
    run(*command)
    before = contents(tmp_path)
    monkeypatch.setattr("motion.evaluate.folder.read_recording", interrupted)
    assert "interrupted; nothing was written" in fail(*command, status=130)
    assert contents(tmp_path) == before


def launch(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [*LAUNCHER, "--num_processes", str(processes), "-m", "motion"]
    command += [*map(str, arguments), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_two_processes_share_a_folder(tmp_path: Path, files: Path, run: Run) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for start in range(5):
        write_motion(folder / f"{start}.bvh", WALK[start : 20 + 3 * start])
    (folder / "3.bvh").write_text("no motion")
    one, _ = run("tokenize", folder, tmp_path / "one", *model(files), status=1)
    result = launch("tokenize", folder, tmp_path / "two", *model(files))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("*.npz"))) == 4
    assert result.stdout == one.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert result.returncode == 1
    assert result.stderr.count("wanvae-motion: 1 of 5 files cannot be read\n") == 1
    command = "evaluate", folder, *model(files), "--output"
    one, err = run(*command, tmp_path / "report-1", status=1)
    result = launch(*command, tmp_path / "report-2")
    assert (result.stdout, result.returncode) == (one, 1) and err in result.stderr
    first, second = (
        json.loads((tmp_path / f"report-{number}" / "evaluation.json").read_text())
        for number in (1, 2)
    )
    assert first["failures"] == second["failures"] and first["code_counts"] == second["code_counts"]
    assert first["joint_errors_mm"] == pytest.approx(second["joint_errors_mm"], rel=1e-4)
    for ours, theirs in zip(first["files"], second["files"], strict=True):
        assert ours["file"] == theirs["file"]
        assert ours["mpjpe_mm"] == pytest.approx(theirs["mpjpe_mm"], rel=1e-4)
        assert ours["jerk_m_s3"] == pytest.approx(theirs["jerk_m_s3"], rel=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_leaves_complete_files(tmp_path: Path, files: Path, run: Run) -> None:
    folder, target = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(300):
        os.link(files / "walk.bvh", folder / f"{number:03}.bvh")
    command = [sys.executable, "-m", "motion", "tokenize", str(folder), str(target)]
    command += [*map(str, model(files)), "--progress"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=0) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and not list(target.glob("00*.npz")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    *bars, line, rest = err.split("\n")
    assert line.startswith("wanvae-motion: interrupted; files that were written are complete")
    assert rest == "" and "Traceback" not in "".join(bars)
    done = sorted(os.listdir(target))
    assert 0 < len(done) < 300 and all(name.endswith(".npz") for name in done)
    assert all(read_tokens(target / name).origin for name in done)
    assert not [name for name in done if name.startswith(".")]


@pytest.mark.parametrize("command", ["tokenize", "evaluate"])
def test_two_jobs_do_not_write_one_folder(
    tmp_path: Path, files: Path, fail: Fail, command: str
) -> None:
    target = tmp_path / "out"
    (tmp_path / "in").mkdir()
    write_motion(tmp_path / "in" / "a.bvh", WALK)
    option = ["--output"] if command == "evaluate" else []
    with occupied(target):
        err = fail(command, tmp_path / "in", *option, target, *model(files))
    assert f"another process works in {target} (process 1 on there)" in err
    assert set(os.listdir(target)) <= {".lock"}
