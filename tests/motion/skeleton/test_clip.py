"""Clips, other frame rates, and files of any kind."""

import dataclasses

import pytest
import roma
import torch

from motion.errors import MotionError
from motion.files.formats import read_motion, write_motion
from motion.skeleton.clip import MotionClip, from_file_axes, resample, to_file_axes
from motion.skeleton.sample import walk
from tests.motion.helpers import largest_difference, random_clip, random_skeleton


def spinning(frames: int, fps: float, degrees_per_second: float = 100.0) -> MotionClip:
    """A joint that turns and a root that goes, both evenly."""
    time = torch.arange(frames, dtype=torch.float64) / fps
    angles = (degrees_per_second * time)[:, None, None]
    return MotionClip(
        skeleton=random_skeleton(1),
        rotations=roma.euler_to_rotmat("Y", angles, degrees=True),
        root_positions=time[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
        fps=fps,
    )


@pytest.mark.parametrize("before, after", [(30, 60), (60, 30), (30, 20), (20, 30), (100, 12.5)])
def test_even_motion_is_the_same_at_any_rate(before, after):
    clip = resample(spinning(61, before), after)
    expected = spinning(len(clip), after)
    assert len(clip) == int(60 * after / before) + 1
    assert clip.fps == after
    assert largest_difference(clip.rotations, expected.rotations) < 1e-12
    assert largest_difference(clip.root_positions, expected.root_positions) < 1e-12


def test_there_and_back_through_a_multiple_is_the_same():
    clip = random_clip(random_skeleton(5), frames=31)
    again = resample(resample(clip, 90.0), 30.0)
    assert len(again) == 31
    assert largest_difference(again.rotations, clip.rotations) < 1e-12


def test_turns_go_the_short_way():
    clip = spinning(2, 1.0, degrees_per_second=-170.0)
    middle = resample(clip, 2.0).rotations[1, 0]
    angle = torch.tensor([-85.0], dtype=torch.float64)
    torch.testing.assert_close(middle, roma.euler_to_rotmat("Y", angle, degrees=True))


def test_one_frame_stays_one():
    clip = spinning(1, 30.0)
    assert len(resample(clip, 60.0)) == 1


def test_axes_of_files_there_and_back():
    clip = random_clip(dataclasses.replace(random_skeleton(4), up="z"))
    upright = from_file_axes(clip)
    torch.testing.assert_close(upright.root_positions[:, 1], clip.root_positions[:, 2])
    expected = upright.pose.positions[..., [0, 2, 1]] * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(clip.pose.positions, expected)
    assert largest_difference(to_file_axes(upright).rotations, clip.rotations) < 1e-15


def test_frames_can_be_cut():
    clip = walk(20)
    part = clip[5:9]
    assert len(part) == 4 and torch.equal(part.root_positions, clip.root_positions[5:9])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rotations": torch.zeros(4, 2, 3, 3)}, r"rotations are \(4, 2, 3, 3\)"),
        ({"root_positions": torch.zeros(4, 3)}, r"root_positions are \(4, 3\)"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"rotations": torch.zeros(0, 3, 3, 3), "root_positions": torch.zeros(0, 3)}, "no frames"),
    ],
)
def test_bad_clips_say_why(changes, message):
    with pytest.raises(MotionError, match=message):
        dataclasses.replace(random_clip(random_skeleton(3), frames=5), **changes)


def test_bad_rates_are_refused():
    for fps in (0.0, -1.0, float("inf")):
        with pytest.raises(MotionError, match="must be positive"):
            resample(walk(3), fps)


@pytest.mark.parametrize("suffix", [".bvh", ".npz", ".BVH"])
def test_files_of_any_kind(tmp_path, suffix):
    clip = walk(10)
    write_motion(tmp_path / f"walk{suffix}", clip)
    again = read_motion(tmp_path / f"walk{suffix}")
    assert sorted(again.skeleton.names) == sorted(clip.skeleton.names)
    order = [again.skeleton.names.index(name) for name in clip.skeleton.names]
    assert largest_difference(again.pose.positions[:, order], clip.pose.positions) < 1e-5


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(MotionError, match=r"ends in '.fbx'; motion files end in .bvh or .npz"):
        read_motion(tmp_path / "a.fbx")
    with pytest.raises(MotionError, match=r"ends in ''"):
        write_motion(tmp_path / "a", walk(2))
