"""A model knows its skeleton: files are matched with it by the names of their joints."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from motion import RVQVAE
from motion.checkpoints import formats
from motion.checkpoints.formats import WITHOUT_SKELETON, Layout
from motion.cli import main
from motion.commands.convert import convert_checkpoint
from motion.commands.detokenize import detokenize, detokenize_file
from motion.commands.info import describe_file
from motion.commands.reconstruct import reconstruct_file
from motion.commands.tokenize import tokenize_file
from motion.errors import MotionError, SkeletonError
from motion.evaluate.evaluation import measure
from motion.features.recording import read_recording
from motion.files.formats import read_in_file_order, write_motion
from motion.skeleton.clip import MotionClip
from motion.skeleton.matching import match_skeletons
from motion.skeleton.packaged import HUMANML3D, SMPLX
from motion.skeleton.retarget import retarget
from motion.skeleton.sample import walk
from motion.tokens import Tokens, identify, read_tokens
from tests.motion.helpers import RECORDINGS, largest_difference, random_clip, random_skeleton
from tests.motion.skeleton.test_matching import MIXAMO
from tests.motion.small_tokenizers import ROOTED, ROOTLESS, tiny_tokenizer
from wanvae.engine.checkpoint import CheckpointError, read_tensors, write_tensors
from wanvae.errors import UserError

CASES = RECORDINGS.parents[1] / "cases" / "motion"
MATCHED = pytest.mark.filterwarnings("ignore:the joints of the motion have another order")
FITS = "does not tell its skeleton, so nothing checks"


def walk_of(names: tuple[str, ...]) -> MotionClip:
    """The walk of the 22 joints of the body, with these names in the order of HumanML3D."""
    clip = walk(40)
    skeleton = replace(HUMANML3D, names=names)
    return MotionClip(
        skeleton=skeleton,
        rotations=clip.rotations[:, :22],
        root_positions=clip.root_positions,
        fps=30.0,
    )


@pytest.fixture(scope="module")
def body_model() -> RVQVAE:
    """A small tokenizer of the 22 joints of the body."""
    return tiny_tokenizer(ROOTED, clip=walk_of(HUMANML3D.names))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The same walk with the joints of HumanML3D, and with the joints of Mixamo."""
    one, other = tmp_path / "one.bvh", tmp_path / "other.bvh"
    clip = walk_of(HUMANML3D.names)
    write_motion(one, clip)
    order = [HUMANML3D.names.index(name) for name in smpl_names()]
    write_motion(other, replace(clip, skeleton=MIXAMO, rotations=clip.rotations[:, order]))
    return one, other


def smpl_names() -> list[str]:
    """The names in HumanML3D of the joints of ``MIXAMO``."""
    order = match_skeletons(MIXAMO, HUMANML3D).order
    return [HUMANML3D.names[order.index(joint)] for joint in range(22)]


@MATCHED
def test_another_order_gives_the_same_tokens_and_its_own_file(
    body_model: RVQVAE, files: tuple[Path, Path], tmp_path: Path
) -> None:
    one, other = files
    first = reconstruct_file(body_model, one, tmp_path / "a.bvh")
    second = reconstruct_file(body_model, other, tmp_path / "b.bvh")
    assert second.joints.mpjpe == pytest.approx(first.joints.mpjpe, rel=1e-4)
    assert second.joints.rotation_error == pytest.approx(first.joints.rotation_error, rel=1e-4)
    clips = [read_in_file_order(tmp_path / name) for name in ("a.bvh", "b.bvh")]
    assert clips[1].skeleton.names == MIXAMO.names
    joints = [clips[0].skeleton.names.index(name) for name in smpl_names()]
    positions = clips[0].pose.positions[:, joints]
    assert largest_difference(clips[1].pose.positions, positions) < 1e-4

    tokens = [tokenize_file(body_model, path, tmp_path / f"{path.stem}.npz") for path in files]
    assert torch.equal(tokens[0].indices, tokens[1].indices)
    detokenize_file(body_model, tmp_path / "other.npz", tmp_path / "c.bvh")
    again = read_in_file_order(tmp_path / "c.bvh")
    assert again.skeleton.names == MIXAMO.names
    assert largest_difference(again.rotations, clips[1].rotations) < 1e-4
    detokenize_file(body_model, tmp_path / "one.npz", tmp_path / "d.bvh", skeleton=other)
    assert largest_difference(read_in_file_order(tmp_path / "d.bvh").rotations, again.rotations) < (
        1e-4
    )


def test_another_order_is_told_once(body_model: RVQVAE, files: tuple[Path, Path]) -> None:
    one, other = files
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        read_recording(one, body_model.config, skeleton=body_model.skeleton)
        assert not told
        for _ in range(2):
            recording = read_recording(other, body_model.config, skeleton=body_model.skeleton)
    assert [str(each.message)[:44] for each in told] == [
        "the joints of the motion have another order "
    ]
    assert recording.skeleton.names == HUMANML3D.names
    assert recording.file_skeleton.names == MIXAMO.names
    figures = measure(body_model, recording)
    assert figures.joint_names == HUMANML3D.names


def test_other_proportions_are_told(body_model: RVQVAE, tmp_path: Path) -> None:
    clip = walk_of(HUMANML3D.names)
    offsets = tuple(tuple(0.6 * x for x in offset) for offset in clip.skeleton.offsets)
    small = replace(clip, skeleton=replace(clip.skeleton, offsets=offsets))
    write_motion(tmp_path / "child.bvh", small)
    with pytest.warns(UserWarning, match=r"^the bones of the motion are 0\.6 times as long"):
        tokenize_file(body_model, tmp_path / "child.bvh", tmp_path / "child.npz")


def test_other_joints_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    model = tiny_tokenizer()
    message = r"one\.bvh has 132 channels of 22 joints, but .* it has no jaw, left_eye_smplhf"
    with pytest.raises(MotionError, match=message):
        reconstruct_file(model, files[0], tmp_path / "out.bvh")
    tokens = Tokens(torch.zeros(3, 2, dtype=torch.int64), None)
    with pytest.raises(
        MotionError, match=r"the skeleton that is to move has .* no jaw.*--skeleton"
    ):
        detokenize(model, tokens, skeleton=HUMANML3D)
    assert not (tmp_path / "out.bvh").exists()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared cases")
class TestCases:
    def test_mixamo_is_not_smplx(self, tmp_path: Path) -> None:
        """It has 55 joints, as SMPL-X."""
        file = CASES / "mixamo_55_joints.bvh"
        with pytest.raises(SkeletonError, match=r"has no jaw and has mixamorig:HeadTop_End"):
            tokenize_file(tiny_tokenizer(), file, tmp_path / "out.npz")

    @MATCHED
    def test_the_order_of_joints_changes_nothing(self, tmp_path: Path) -> None:
        trained = read_in_file_order(CASES / "order_trained.bvh")
        model = tiny_tokenizer(ROOTED, clip=trained)
        one, other = (
            reconstruct_file(model, CASES / f"order_{name}.bvh", tmp_path / f"{name}.bvh")
            for name in ("trained", "other")
        )
        assert other.joints.mpjpe == pytest.approx(one.joints.mpjpe, rel=1e-3)
        written = read_in_file_order(tmp_path / "other.bvh").skeleton
        assert written.names == read_in_file_order(CASES / "order_other.bvh").skeleton.names


def test_checkpoints_keep_the_skeleton(body_model: RVQVAE, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    body_model.save_pretrained(path)
    again = RVQVAE.from_pretrained(path)
    assert again.skeleton == body_model.skeleton
    assert identify(again) == identify(body_model)
    lines = list(describe_file(path))
    assert "joints: 22, from pelvis to right_wrist" in lines
    # Tokens without a skeleton move the one of the model.
    recording = detokenize(again, Tokens(torch.zeros(3, 2, dtype=torch.int64), None))
    assert recording.skeleton == body_model.skeleton


def test_a_skeleton_identifies_a_model(body_model: RVQVAE) -> None:
    before = identify(body_model)
    renamed = RVQVAE(body_model.config, replace(HUMANML3D, names=tuple(map(str, range(22)))))
    renamed.load_state_dict(body_model.state_dict())
    assert identify(renamed) != before
    renamed.skeleton = None
    assert identify(renamed) == before  # the packaged skeleton, which earlier versions had


def test_checkpoints_of_earlier_versions(tmp_path: Path) -> None:
    """They load with a warning, read any file with their number of joints, and can be completed."""
    path, complete = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    model = tiny_tokenizer(ROOTLESS)
    formats.save_native(path, model.config, model.state_dict())
    with pytest.warns(UserWarning, match=FITS):
        old = RVQVAE.from_pretrained(path)
    assert old.skeleton is None and f"note: {WITHOUT_SKELETON}" in list(describe_file(path))
    write_motion(tmp_path / "walk.bvh", walk(20))
    reconstruct_file(old, tmp_path / "walk.bvh", tmp_path / "out.bvh")

    skeleton = read_in_file_order(tmp_path / "walk.bvh").skeleton
    report = convert_checkpoint(path, complete, Layout.NATIVE, skeleton=skeleton)
    assert WITHOUT_SKELETON not in report.notes
    assert RVQVAE.from_pretrained(complete).skeleton == skeleton
    with pytest.raises(UserError, match=r"a skeleton of 22 joints has 132 channels, .* has 330"):
        convert_checkpoint(path, complete, Layout.NATIVE, skeleton=HUMANML3D)


def test_published_models_of_beat2_know_smplx(tmp_path: Path) -> None:
    formats.save_momask(tmp_path / "a.pth", *config_and_tensors(tiny_tokenizer()))
    with pytest.warns(UserWarning, match="no mean and standard deviation"):
        model = RVQVAE.from_pretrained(tmp_path / "a.pth")
    assert model.skeleton == SMPLX


def config_and_tensors(model: RVQVAE) -> tuple:
    return model.config, model.state_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ('{"names": ["a"]}', "missing keys"),
        (None, "of 22 joints has 132 channels, but the model has 330"),
    ],
)
def test_damaged_skeletons(body_model: RVQVAE, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    tiny_tokenizer().save_pretrained(path)
    body_model.save_pretrained(tmp_path / "b.safetensors")
    other = read_tensors(tmp_path / "b.safetensors").metadata["skeleton"]
    file = read_tensors(path)
    write_tensors(path, file.tensors, file.metadata | {"skeleton": text or other})
    with pytest.raises(CheckpointError, match=message):
        RVQVAE.from_pretrained(path)


def test_tokens_keep_the_order_of_the_file(
    body_model: RVQVAE, files: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="matched by their names"):
        tokenize_file(body_model, files[1], tmp_path / "a.npz")
    actor = read_tokens(tmp_path / "a.npz").origin.actor
    assert actor.skeleton.names == MIXAMO.names


def test_a_file_is_moved_to_the_skeleton_of_a_model(
    body_model: RVQVAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the message of the refusal says."""
    walked, model, moved = (tmp_path / name for name in ("walk.npz", "m.safetensors", "moved.bvh"))
    write_motion(walked, walk(40))
    body_model.save_pretrained(model)
    with pytest.raises(MotionError, match=r"motion convert FILE OUT\.bvh --skeleton CHECKP"):
        tokenize_file(body_model, walked, tmp_path / "a.npz")
    assert main(["convert", str(walked), str(moved), "--skeleton", str(model)]) == 0
    out = capsys.readouterr().out
    assert "40 frames, 55 joints to 22\nthe path is 1 times as long" in out
    assert "\nstanding feet: " in out
    tokenize_file(body_model, moved, tmp_path / "a.npz")
    back = tmp_path / "back.npz"
    assert main(["convert", str(moved), str(back), "--skeleton", str(walked)]) == 0
    assert "note: stay at rest, because " in capsys.readouterr().out
    rotations = [read_in_file_order(path).rotations[:, :22] for path in (walked, back)]
    assert largest_difference(*rotations) < 1e-5


def test_what_cannot_be_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_motion(tmp_path / "walk.bvh", walk(9))
    write_motion(tmp_path / "crane.bvh", random_clip(random_skeleton(5)))
    walked, crane, out = (str(tmp_path / f"{name}.bvh") for name in ("walk", "crane", "out"))
    for source, target in ((walked, crane), (crane, walked)):
        assert main(["convert", source, out, "--skeleton", target]) == 1
        assert "hips and legs, or hips and arms, are not known by name" in capsys.readouterr().err
    assert main(["convert", walked, walked, "--skeleton", crane]) == 1
    assert main(["convert", walked, out, "--skeleton", crane, "--roundtrip"]) == 1
    assert "takes --skeleton, --roundtrip or --features alone" in capsys.readouterr().err
    assert not Path(out).exists()


def test_joints_and_features_of_papers_move_a_skeleton(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their bones point where the bones of the motion point that they were taken of."""
    walked, dancer, out = tmp_path / "a b.bvh", tmp_path / "d.bvh", tmp_path / "out.bvh"
    write_motion(walked, walk(30))
    write_motion(dancer, retarget(walk(2), MIXAMO))
    np.save(tmp_path / "joints.npy", walk(30).pose.positions[:, :22].numpy())
    assert main(["convert", str(walked), str(tmp_path / "f.npy"), "--features", "humanml3d"]) == 0
    capsys.readouterr()
    for name, frames in (("joints.npy", 30), ("f.npy", 19)):
        given = "--fps", "30", "--skeleton", str(dancer)
        assert main(["convert", str(tmp_path / name), str(out), *given]) == 0
        told = capsys.readouterr().out
        assert f"{frames} frames, 22 joints to 22" in told and "by inverse kinematics" in told
        clip = read_in_file_order(out)
        assert clip.skeleton.names == MIXAMO.names and clip.fps == 30
        names = [MIXAMO.names.index(f"mixamorig:{joint}") for joint in ("Head", "LeftFoot")]
        heights = clip.pose.positions[:, names, 1]
        assert (heights[:, 0] - heights[:, 1]).min() > 1
    assert (
        main(["convert", str(tmp_path / "joints.npy"), str(out), *given, "--features", "kit"]) == 1
    )
    assert "takes --skeleton, --roundtrip or --features alone" in capsys.readouterr().err


def test_a_folder_is_not_taken_for_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tmp_path), str(tmp_path / "out.bvh")]) == 1
    assert capsys.readouterr().err.endswith(
        f"{tmp_path} is a folder; name one file of it, and convert each alone\n"
    )
