"""The tokenizer of the package: any biped whose joints have names, with no training."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from motion import RVQVAE, cli, read_motion, write_motion
from motion.features.recording import read_recording
from motion.files.reading import GUESSED
from motion.models import packaged_weights
from motion.skeleton.packaged import HUMANML3D, SMPLX
from motion.skeleton.sample import walk
from tests.motion.helpers import random_clip, random_skeleton

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object, status: int = 0) -> tuple[str, str]:
    """Runs the program without a progress bar, and returns what it prints."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main([*map(str, words), "--device", "cpu"]) == status
    return capsys.readouterr()


@pytest.fixture
def walking(tmp_path: Path) -> Path:
    path = tmp_path / "walk.bvh"
    write_motion(path, walk(90))
    return path


def test_the_file_is_small_and_knows_its_body() -> None:
    assert packaged_weights().stat().st_size < 8e6
    model = RVQVAE.from_pretrained(packaged_weights())
    assert model.skeleton is not None and model.skeleton.names == HUMANML3D.names


def test_a_file_is_reconstructed_without_a_checkpoint(
    walking: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, err = run(capsys, "reconstruct", walking, tmp_path / "again.bvh")
    (line,) = (line for line in out.splitlines() if line.startswith("MPJPE with roots aligned"))
    assert float(line.split()[4]) < 60
    assert "the body of the model, of 22 joints, moves as it moves" in err
    positions = read_motion(tmp_path / "again.bvh").pose.positions
    names = read_motion(tmp_path / "again.bvh").skeleton.names
    height = positions[:, names.index("head"), 1] - positions[..., 1].amin(1)
    assert height.min() > 1.2 and positions[..., 1].amin(1).abs().max() < 0.15


def test_a_folder_is_judged_without_a_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    """Whose errors they are is told, and also written: not None, and no path of this machine."""
    folder = tmp_path / "files"
    folder.mkdir()
    write_motion(folder / "a.bvh", walk(30))
    out, _ = run(capsys, "evaluate", folder, "--output", tmp_path / "judged")
    told = "the tokenizer of the package, of a body of 22 joints"
    assert out.splitlines()[0] == f"note: without --checkpoint, the errors are of {told}"
    assert json.loads((tmp_path / "judged" / "evaluation.json").read_text())["model"] == told
    given = "--checkpoint", packaged_weights(), "--retarget"
    named, _ = run(capsys, "evaluate", folder, *given)
    assert out.splitlines()[1:] == named.splitlines()


def test_tokens_keep_the_path(tmp_path: Path) -> None:
    """Without feedback a walk of 10 seconds ends far from where it ended."""
    write_motion(tmp_path / "walk.bvh", walk(300))
    model = RVQVAE.from_pretrained(packaged_weights())
    reading = replace(GUESSED, retarget=True)
    with pytest.warns(UserWarning, match="moves as it moves"):
        recording = read_recording(tmp_path / "walk.bvh", model.config, reading, model.skeleton)
    assert recording.clip is not None
    errors = []
    for rounds in (0, model.config.path_rounds):
        model.config = replace(model.config, path_rounds=rounds)
        features = model.decode(model.encode(recording.features[None]), len(recording))[0]
        moved = recording.restore(features).root_positions - recording.clip.root_positions
        errors.append(moved.norm(dim=1).mean().item())
    assert errors[1] < 0.06 and errors[1] < errors[0] / 2


def test_tokens_and_back_are_the_reconstruction(
    walking: Path, tmp_path: Path, capsys: Capture
) -> None:
    run(capsys, "reconstruct", walking, tmp_path / "one.bvh")
    run(capsys, "tokenize", walking, tmp_path / "tokens.npz")
    run(capsys, "detokenize", tmp_path / "tokens.npz", tmp_path / "other.bvh")
    assert (tmp_path / "one.bvh").read_bytes() == (tmp_path / "other.bvh").read_bytes()


def test_a_body_without_names_is_refused(tmp_path: Path, capsys: Capture) -> None:
    write_motion(tmp_path / "a.bvh", random_clip(random_skeleton(12), 20))
    _, err = run(capsys, "reconstruct", tmp_path / "a.bvh", tmp_path / "b.bvh", status=1)
    assert "a.bvh with the skeleton of the model: " in err
    assert not (tmp_path / "b.bvh").exists()


def test_a_folder_of_other_skeletons_is_tokenized_once(tmp_path: Path, capsys: Capture) -> None:
    """Also where --unit and --root name what the body of the model does not have."""
    folder = tmp_path / "in"
    folder.mkdir()
    names = tuple("Hips" if name == "pelvis" else name for name in SMPLX.names)
    clip = walk(20)
    centimetres = replace(clip.skeleton, unit=0.01, names=names)
    write_motion(folder / "a.bvh", replace(clip, skeleton=centimetres))
    words = "tokenize", folder, tmp_path / "out", "--unit", 0.01, "--root", "Hips", "--up", "y"
    out, err = run(capsys, *words)
    assert "1 files of tokens written, 0 were there" in out and "the body of the model" in err
    out, _ = run(capsys, *words)
    assert "0 files of tokens written, 1 were there" in out and "again" not in out
    out, _ = run(capsys, *words[:3], "--unit", 0.02)
    assert "1 files of tokens written" in out and "or how it is read has changed" in out


def test_tokens_become_joints(walking: Path, tmp_path: Path, capsys: Capture) -> None:
    """Of the body of the model, as in a BVH file; the command says what they do not tell."""
    run(capsys, "tokenize", walking, tmp_path / "tokens.npz")
    run(capsys, "detokenize", tmp_path / "tokens.npz", tmp_path / "a.bvh")
    out, _ = run(capsys, "detokenize", tmp_path / "tokens.npz", tmp_path / "a.joints.npy")
    assert out.endswith("note: the file does not tell its 30 frames per second\n")
    found = torch.from_numpy(np.load(tmp_path / "a.joints.npy")).double()
    expected = read_motion(tmp_path / "a.bvh").pose.positions
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_skeleton_that_the_tokens_cannot_move(
    walking: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The message says the way to it, which leads there."""
    run(capsys, "tokenize", walking, tmp_path / "tokens.npz")
    words = "detokenize", tmp_path / "tokens.npz", tmp_path / "a.bvh"
    _, err = run(capsys, *words, "--skeleton", walking, status=1)
    assert "without --skeleton; then python -m motion convert OUT.bvh YOURS.bvh --skeleton " in err
    run(capsys, *words)
    capsys.readouterr()
    paths = [str(tmp_path / name) for name in ("a.bvh", "b.bvh")]
    assert cli.main(["convert", *paths, "--skeleton", str(walking)]) == 0
    assert read_motion(paths[1]).skeleton.joints == 55
