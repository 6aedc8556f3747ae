"""SMPL-X files."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from motion.errors import MotionError
from motion.files.formats import read_motion, write_motion
from motion.files.smplx import read_npz, write_npz
from motion.skeleton.packaged import SMPLX
from motion.skeleton.sample import walk
from tests.motion.helpers import RECORDINGS, largest_difference, random_clip, random_skeleton


def arrays(frames: int = 6, width: int = 165, **changes: object) -> dict[str, object]:
    random = np.random.default_rng(0)
    return {
        "poses": random.normal(size=(frames, width)).astype(np.float32),
        "trans": random.normal(size=(frames, 3)),
        "betas": random.normal(size=10).astype(np.float32),
        "gender": "female",
        "mocap_frame_rate": 30,
    } | changes


def save(path, contents):
    np.savez(path, **contents)
    return path


def test_what_is_written_is_read(tmp_path):
    clip = random_clip(SMPLX)
    expressions = torch.randn(len(clip), 100, dtype=torch.float64)
    clip = dataclasses.replace(
        clip, betas=(0.5, -1.0), gender="male", fps=29.97, expressions=expressions
    )
    for up in ("y", "z"):
        skeleton = dataclasses.replace(SMPLX, up=up)
        write_npz(tmp_path / "a.npz", dataclasses.replace(clip, skeleton=skeleton))
        again = read_npz(tmp_path / "a.npz")
        assert (again.skeleton, again.fps) == (skeleton, 29.97)
        assert (again.betas, again.gender) == (clip.betas, "male")
        assert torch.equal(again.expressions, expressions)
        assert largest_difference(again.rotations, clip.rotations) < 1e-12
        assert largest_difference(again.root_positions, clip.root_positions) < 1e-12


def test_what_is_read_is_written(tmp_path):
    contents = arrays()
    write_npz(tmp_path / "b.npz", read_npz(save(tmp_path / "a.npz", contents)))
    with np.load(tmp_path / "b.npz") as again:
        np.testing.assert_allclose(again["trans"], contents["trans"], atol=1e-12)
        # Turns of more than half a circle are written the other way round.
        short = np.linalg.norm(contents["poses"].reshape(-1, 3), axis=1) < np.pi
        pairs = again["poses"].reshape(-1, 3)[short], contents["poses"].reshape(-1, 3)[short]
        np.testing.assert_allclose(*pairs, atol=1e-6)
        assert short.mean() > 0.8
        assert again["expressions"].shape == (6, 100)


@pytest.mark.parametrize("kind", ["SMPL-X", "SMPL+H"])
def test_z_points_up_in_files_of_amass(tmp_path, kind):
    contents = arrays(poses=np.zeros((2, 165)), trans=np.array([[0.0, 0, 1], [0, 0, 2]]))
    contents["poses"][:, 0] = np.pi / 2  # stands along z
    if kind == "SMPL-X":
        contents["surface_model_type"] = "smplx"
    else:
        contents["mocap_framerate"] = contents.pop("mocap_frame_rate")
    clip = read_npz(save(tmp_path / "a.npz", contents))
    assert clip.skeleton.up == "z" and clip.fps == 30.0
    assert (clip.root_positions.diff(dim=0) - torch.tensor([0.0, 1.0, 0.0])).abs().max() < 1e-12
    torch.testing.assert_close(
        clip.rotations[0, 0], torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert read_npz(tmp_path / "a.npz", up="y").skeleton.up == "y"


def test_bodies_without_face_get_one_at_rest(tmp_path):
    contents = arrays(width=156)
    clip = read_npz(save(tmp_path / "a.npz", contents))
    full = np.insert(contents["poses"].reshape(6, 52, 3), [22] * 3, 0, axis=1).reshape(6, 165)
    expected = read_npz(save(tmp_path / "b.npz", contents | {"poses": full}))
    assert largest_difference(clip.rotations, expected.rotations) == 0


def test_bodies_of_smpl_have_no_hands(tmp_path):
    contents = arrays(width=72)
    with pytest.warns(UserWarning, match="two hands of SMPL are left out"):
        clip = read_npz(save(tmp_path / "a.npz", contents))
    contents["poses"][:, 66:] = 0
    again = read_npz(save(tmp_path / "b.npz", contents))
    assert torch.equal(again.rotations, clip.rotations)
    whole = np.concatenate([contents["poses"][:, :66], np.zeros((6, 99))], axis=1)
    expected = read_npz(save(tmp_path / "c.npz", contents | {"poses": whole}))
    assert largest_difference(clip.rotations, expected.rotations) < 1e-12


@pytest.mark.parametrize("key", ["fps", "mocap_framerate", "frame_rate", "mocap_fps"])
def test_spellings_of_the_frame_rate(tmp_path, key):
    contents = arrays()
    del contents["mocap_frame_rate"]
    assert read_npz(save(tmp_path / "a.npz", contents | {key: 25.0})).fps == 25


def aist(frames: int = 5, **changes: object) -> dict[str, object]:
    random = np.random.default_rng(0)
    poses = random.normal(size=(frames, 72)).astype(np.float32)
    poses[:, 66:] = 0
    trans = random.normal(size=(frames, 3)).astype(np.float32)
    return {"smpl_poses": poses, "smpl_trans": trans, "smpl_scaling": np.array([92.5])} | changes


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_aist(tmp_path, protocol):
    contents = aist(smpl_loss=1.5)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(contents, protocol))
    clip = read_motion(tmp_path / "a.pkl")
    trans = contents["smpl_trans"] / 92.5
    same = arrays(5) | {"poses": contents["smpl_poses"], "trans": trans, "mocap_frame_rate": 60}
    expected = read_npz(save(tmp_path / "b.npz", same))
    assert clip.fps == 60 and largest_difference(clip.rotations, expected.rotations) < 1e-12
    assert largest_difference(clip.root_positions, expected.root_positions) < 1e-6
    with pytest.raises(MotionError, match=r"ends in '.pkl'; motion files end in .bvh or .npz"):
        write_motion(tmp_path / "c.pkl", clip)


class Runs:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_of_other_things_are_refused_and_not_run(tmp_path, capsys):
    for name, content, message in (
        ("a", aist(more=Runs()), "it holds builtins.print, and no arrays"),
        ("b", [1, 2], "no dict of arrays"),
        ("c", aist(smpl_scaling=np.array([0.0])), "one number above 0"),
        ("d", {"smpl_poses": np.zeros((2, 72))}, "has no 'smpl_scaling'"),
    ):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(MotionError, match=message):
            read_motion(path)
    (tmp_path / "e.pkl").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(MotionError, match="no pickle of arrays"):
        read_motion(tmp_path / "e.pkl")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("gender", [b"female", np.array(["female"]), np.array([[b"female"]])])
def test_a_gender_is_a_word_however_it_is_stored(tmp_path, gender):
    clip = read_npz(save(tmp_path / "a.npz", arrays(gender=gender)))
    assert clip.gender == "female"
    write_npz(tmp_path / "b.npz", clip)
    with np.load(tmp_path / "b.npz") as again:
        assert again["gender"].dtype.kind == "U" and str(again["gender"]) == "female"


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in arrays().items() if name != key}


@pytest.mark.parametrize(
    "contents, message",
    [
        (without("poses"), "has no 'poses'; its keys are betas, gender, mocap_frame_rate, trans"),
        (without("trans"), "has no 'trans'"),
        (without("mocap_frame_rate"), "has no 'mocap_frame_rate'"),
        (arrays(poses=np.zeros((6, 63))), r"poses are \(6, 63\)"),
        (arrays(poses=np.zeros((0, 165)), trans=np.zeros((0, 3))), "1 or more frames"),
        (arrays(poses=np.zeros((6, 55, 3))), r"poses is float64 \(6, 55, 3\); 2 axes"),
        (arrays(poses=np.full((6, 165), "x")), "poses is <U1"),
        (arrays(trans=np.zeros((5, 3))), r"trans is \(5, 3\); \(6, 3\)"),
        (arrays(trans=np.full((6, 3), np.inf)), r"trans is inf at \(0, 0\)"),
        (arrays(mocap_frame_rate=0), "must be positive"),
        (arrays(mocap_frame_rate=np.nan), "mocap_frame_rate is nan"),
        (
            arrays(mocap_frame_rate=[30, 30]),
            r"mocap_frame_rate is int64 \(2,\); one number is needed",
        ),
        (arrays(mocap_frame_rate="fast"), r"mocap_frame_rate is <U4 \(\); one number is needed"),
        (arrays(betas=np.zeros((2, 2))), "betas"),
        (arrays(gender=["male", "female"]), r"gender is <U6 \(2,\); one word fits"),
        (arrays(gender=1), r"gender is int64 \(\); one word fits"),
    ],
)
def test_bad_contents_say_which(tmp_path, contents, message):
    path = save(tmp_path / "bad.npz", contents)
    with pytest.raises(MotionError, match=message) as caught:
        read_npz(path)
    assert str(path) in str(caught.value)


class Explosive:
    def __reduce__(self):
        return exec, ("raise RuntimeError('unpickled')",)


def test_nothing_is_unpickled(tmp_path):
    poses = np.empty(1, object)
    poses[0] = Explosive()
    path = save(tmp_path / "a.npz", arrays(poses=poses))
    with pytest.raises(MotionError, match=r"no complete .npz file of plain arrays"):
        read_npz(path)
    path.write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(MotionError, match=r"no complete .npz file"):
        read_npz(path)


def test_other_files_are_refused(tmp_path):
    path = save(tmp_path / "a.npz", arrays(frames=50))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(MotionError, match=r"no complete .npz file"):
            read_npz(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(MotionError, match="one array without a name"):
        read_npz(tmp_path / "b.npy")
    with pytest.raises(MotionError, match="does not exist"):
        read_npz(tmp_path / "none.npz")


def test_other_skeletons_are_refused(tmp_path):
    with pytest.raises(MotionError, match=r"3 joints, not the joints of SMPL-X; write a .bvh"):
        write_npz(tmp_path / "a.npz", random_clip(random_skeleton(3)))
    assert not list(tmp_path.iterdir())


def test_the_walk_of_the_package_is_written_and_read(tmp_path):
    clip = walk(5)
    write_npz(tmp_path / "walk.npz", clip)
    assert largest_difference(read_npz(tmp_path / "walk.npz").rotations, clip.rotations) < 1e-12


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no shared recordings here")
def test_a_recording():
    clip = read_npz(RECORDINGS / "beat2_2_scott_0_1_1.npz")
    assert (len(clip), clip.fps, clip.skeleton, len(clip.betas)) == (1906, 30.0, SMPLX, 300)
    positions = clip.pose.positions
    assert positions[:, 15, 1].mean() > 1.4  # the head of someone who stands
    assert positions[:, 10:12, 1].mean().abs() < 0.1
