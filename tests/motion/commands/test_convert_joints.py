"""Features and joints out of motion files and back, by the functions of the command."""

from pathlib import Path

import numpy as np
import pytest
import torch

from motion import cli
from motion.commands.convert_joints import convert_from_joints, convert_to_features
from motion.commands.detokenize import detokenize_file
from motion.commands.reconstruct import reconstruct_file
from motion.commands.tokenize import tokenize_file
from motion.errors import MotionError
from motion.features.feature_files import read_features, write_features
from motion.features.humanml3d import recover_positions
from motion.features.joint_features import to_kit_joints
from motion.features.joint_motion import extract_published, read_joint_motion, read_target
from motion.features.published import NAMES, PUBLISHED
from motion.features.units import are_in_own_units
from motion.files.formats import read_motion, write_motion
from motion.files.joints import read_joints
from motion.files.reading import Reading
from motion.skeleton.sample import walk
from motion.skeleton.selection import select_joints
from tests.motion.helpers import largest_difference, random_clip, random_skeleton
from tests.motion.small_tokenizers import tiny_tokenizer
from wanvae.engine.files import FileError

FRAMES = {"humanml3d": 39, "kit": 24, "272": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk of two seconds as BVH, and all its features."""
    folder = tmp_path_factory.mktemp("motion")
    write_motion(folder / "walk.bvh", walk(60))
    for name in NAMES:
        convert_to_features(folder / "walk.bvh", folder / f"{name}.npy", name)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_features_are_at_their_rate_and_in_their_units(folder: Path, name: str) -> None:
    features, kind = read_features(folder / f"{name}.npy"), NAMES[name]
    assert features.shape == (FRAMES[name], kind.channels)
    assert are_in_own_units(features)
    positions = kind.recover(features.double()).positions
    assert 0.8 < positions[:, 0, 1].mean() < 1.0  # the hips of an adult
    # The walk is along +z.
    ahead = positions[-1, 0] - positions[0, 0]
    assert ahead[2] > 1.5 and ahead[0].abs() < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_features_become_motion_files(folder: Path, tmp_path: Path, name: str) -> None:
    source, kind = folder / f"{name}.npy", NAMES[name]
    expected = kind.recover(read_features(source).double()).positions
    report = convert_from_joints(source, tmp_path / "a.bvh")
    assert (report.frames, report.fps) == (FRAMES[name], kind.fps) and " mm from" in report.notes[1]
    assert f"its frame rate: {kind.fps:g} per second, as published; --fps" in report.notes[0]
    clip = read_motion(tmp_path / "a.bvh", Reading(unit=1.0))
    difference = (clip.pose.positions - expected).norm(dim=-1)
    # The middle of KIT's feet, and its shoulders on the neck, are on no stiff bone.
    assert difference.mean() < (0.01 if name == "kit" else 1e-4)
    report = convert_from_joints(source, tmp_path / "a.joints.npy")
    assert report.notes == (f"the file does not tell its {kind.fps:g} frames per second",)
    found = read_joint_motion(tmp_path / "a.joints.npy")
    assert largest_difference(found.positions, expected) < 1e-4
    for suffix in ("glb", "csv", *([] if name == "kit" else ["npz"])):
        convert_from_joints(source, tmp_path / f"a.{suffix}")
        assert (tmp_path / f"a.{suffix}").stat().st_size > 1000


def test_rotations_come_back_from_272(folder: Path, tmp_path: Path) -> None:
    report = convert_from_joints(folder / "272.npy", tmp_path / "a.npz", fps=30)
    assert report.notes[0].startswith("rotations as they are in the features")
    original, clip = (read_motion(path) for path in (folder / "walk.bvh", tmp_path / "a.npz"))
    assert largest_difference(clip.rotations[:, 1:22], original.rotations[:, 1:22]) < 1e-5


def test_features_of_features(folder: Path, tmp_path: Path) -> None:
    """Other features of the same motion, by way of their joints and rates."""
    report = convert_to_features(folder / "272.npy", tmp_path / "a.npy", "humanml3d")
    assert "converted from 30 frames per second" in report.notes
    one, other = read_features(tmp_path / "a.npy"), read_features(folder / "humanml3d.npy")
    assert largest_difference(one, other) < 1e-3
    report = convert_to_features(folder / "humanml3d.npy", tmp_path / "b.npy", "272")
    assert any("inverse kinematics" in note for note in report.notes)
    with pytest.raises(MotionError, match="the 21 joints of KIT; features of HumanML3D need"):
        convert_to_features(folder / "kit.npy", tmp_path / "c.npy", "humanml3d")
    with pytest.raises(MotionError, match="features of MotionStreamer need"):
        convert_to_features(folder / "kit.npy", tmp_path / "c.npy", "272")


def test_lengths_and_rates_can_be_given(folder: Path, tmp_path: Path) -> None:
    joints = 1.1 * walk(60).pose.positions[:, :22]
    np.save(tmp_path / "joints.npy", joints)
    report = convert_to_features(
        tmp_path / "joints.npy", tmp_path / "a.npy", "humanml3d", target=folder / "walk.bvh", fps=30
    )
    assert report.notes == ("converted from 30 frames per second",)
    one, other = read_features(tmp_path / "a.npy"), read_features(folder / "humanml3d.npy")
    # Between frames other rotations lead from pose to pose.
    assert largest_difference(one, other) < 5e-3
    assert read_target(tmp_path / "joints.npy", "kit").shape == (21, 3)
    with pytest.raises(MotionError, match=r"kit\.npy has 21 joints, not the joints of HumanML3D"):
        read_target(folder / "kit.npy", "humanml3d")


@pytest.mark.parametrize("joints", [22, 21])
def test_joints_in_other_units_and_axes_are_told(tmp_path: Path, joints: int) -> None:
    """Unless the unit and the axis are given."""
    positions = walk(20).pose.positions[:, :22]
    positions = positions if joints == 22 else to_kit_joints(positions) * 1000
    lying = 100 * positions[..., [0, 2, 1]] * torch.tensor([1.0, -1.0, 1.0])
    source, told = tmp_path / "a.joints.npy", "frame rate"
    for values, doubts in ((positions, []), (lying, ["m along the bones", "say --up z"])):
        np.save(source, values)
        notes = convert_from_joints(source, tmp_path / "a.bvh").notes[:-1]
        assert len(notes) == 1 + len(doubts)
        assert all(text in note for text, note in zip((told, *doubts), notes, strict=True))
    given = Reading(unit=0.01 if joints == 22 else 1e-5, up="z")
    report = convert_from_joints(source, tmp_path / "a.bvh", reading=given, fps=30)
    assert len(report.notes) == 1


def test_272_of_another_skeleton_says_that_it_is_by_kinematics() -> None:
    clip = walk(9)
    motion = select_joints(clip)
    features = extract_published(motion, "272")
    assert features.shape == (9, 272)
    with pytest.raises(MotionError, match="keep the lengths of bones"):
        extract_published(motion, "272", target=motion.positions[0])


def test_what_cannot_be_converted(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 78), np.float32))
    with pytest.raises(MotionError, match=r"a\.npy is \(4, 78\); joints \(T, 22, 3\)"):
        convert_from_joints(tmp_path / "a.npy", tmp_path / "a.bvh")
    with pytest.raises(MotionError, match=r"b\.bvh must end in \.npy, for features"):
        convert_to_features(folder / "walk.bvh", tmp_path / "b.bvh", "humanml3d")
    write_motion(tmp_path / "c.bvh", random_clip(random_skeleton(4)))
    with pytest.raises(MotionError, match=r"no joints are known .*which HumanML3D needs"):
        convert_to_features(tmp_path / "c.bvh", tmp_path / "c.npy", "humanml3d")
    with pytest.raises(FileError, match="would be overwritten"):
        convert_from_joints(folder / "272.npy", folder / "272.npy")
    assert not list(tmp_path.glob("*.glb")) and not (tmp_path / "c.npy").exists()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = cli.main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_from_the_shell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bvh, npy = folder / "walk.bvh", tmp_path / "a.npy"
    code, said = run(capsys, bvh, npy, "--features", "humanml3d", "--target", folder / "kit.npy")
    assert code == 1 and "has 21 joints, not the joints of HumanML3D" in said
    code, said = run(capsys, bvh, npy, "--features", "humanml3d")
    assert code == 0 and "39 frames at 20 per second" in said and "--target FILE" in said
    code, said = run(capsys, npy, tmp_path / "a.glb", "--fps", 10)
    assert code == 0 and "39 frames at 10 per second" in said and "inverse kinematics" in said
    code, said = run(capsys, bvh, tmp_path / "b.joints.npy")
    assert code == 0 and "does not tell its 30 frames per second" in said
    assert torch.from_numpy(np.load(tmp_path / "b.joints.npy")).shape == (60, 22, 3)
    for wrong, message in (
        ((bvh, npy, "--fps", 10), "for .npy files"),
        ((npy, tmp_path / "c.bvh", "--roundtrip"), "--roundtrip is for motion files"),
        ((bvh, npy, "--features", "272", "--target", bvh), "--target is for --features"),
        ((bvh, tmp_path / "c.npy"), "motion files end in .bvh"),
    ):
        code, said = run(capsys, *wrong)
        assert code == 1 and message in said


def test_every_published_width_has_one_name() -> None:
    assert sorted(kind.channels for kind in NAMES.values()) == sorted(PUBLISHED)
    features = torch.zeros(3, 263)
    with pytest.raises(MotionError, match=r"must end in \.npy"):
        write_features("a.txt", features)


def test_decoded_features_become_motion_files(folder: Path, tmp_path: Path) -> None:
    """Of a model, whose joints have no stiff bones: the command says how far they are away."""
    model = tiny_tokenizer(None, channels=263)
    tokenize_file(model, folder / "humanml3d.npy", tmp_path / "t.npz")
    detokenize_file(model, tmp_path / "t.npz", tmp_path / "a.npy")
    for name in ("a.bvh", "a.glb", "a.joints.npy"):
        recording = detokenize_file(model, tmp_path / "t.npz", tmp_path / name)
    decoded = recover_positions(read_features(tmp_path / "a.npy"))
    positions, _ = read_joints(tmp_path / "a.joints.npy")
    assert largest_difference(positions, decoded.double()) < 1e-5
    written = read_motion(tmp_path / "a.bvh", Reading(unit=1.0)).pose.positions
    mean = (written - decoded).norm(dim=-1).mean().item() * 1000
    said = recording.describe_loss("a.bvh", recording.features)
    assert f"joints are {mean:.3g} mm from" in said and "inverse kinematics" in said
    report = reconstruct_file(model, folder / "humanml3d.npy", tmp_path / "b.glb")
    assert report.joints is not None and report.loss == said
    assert recording.describe_loss("a.joints.npy", recording.features).endswith(
        "does not tell its 20 frames per second"
    )
    assert recording.describe_loss("a.npy", recording.features) == ""
