"""The procedural walk looks like one."""

import pytest
import roma
import torch

from motion.skeleton.packaged import SMPLX
from motion.skeleton.sample import CYCLE, HEEL, TOE, locate_attached, walk

CLIP = walk(99)  # three cycles
POSE = CLIP.pose


def place(name):
    return POSE.positions[:, SMPLX.names.index(name)]


def bend(name):
    rotation = CLIP.rotations[:, SMPLX.names.index(name)]
    return torch.rad2deg(roma.rotmat_to_rotvec(rotation).norm(dim=-1))


def test_it_goes_forward_at_the_speed_of_a_walk():
    first, last = CLIP.root_positions[0], CLIP.root_positions[-1]
    speed = (last - first)[2] / ((len(CLIP) - 1) / CLIP.fps)
    assert 0.8 < speed < 1.6
    assert (last - first)[0].abs() < 0.1
    assert CLIP.root_positions[:, 1].std() < 0.03


def test_soles_touch_the_floor_and_hardly_slide():
    lowest = []
    for side in ("left", "right"):
        for name, offset in ((f"{side}_ankle", HEEL), (f"{side}_foot", TOE)):
            point = locate_attached(POSE, name, offset)
            lowest.append(point[:, 1])
            grounded = (point[1:, 1] < 0.012) & (point[:-1, 1] < 0.012)
            assert grounded.double().mean() > 0.1
            assert point.diff(dim=0)[grounded].norm(dim=-1).median() < 0.003
    heights = torch.stack(lowest).amin(dim=0)
    assert heights.min() > -0.002 and heights.max() < 0.03


def test_knees_bend_and_arms_swing_against_the_legs():
    for side in ("left", "right"):
        assert bend(f"{side}_knee").max() > 50 and bend(f"{side}_knee").min() < 10
        hand = (place(f"{side}_wrist") - place(f"{side}_shoulder"))[:, 2]
        foot = (place(f"{side}_ankle") - place(f"{side}_hip"))[:, 2]
        assert torch.corrcoef(torch.stack([hand, foot]))[0, 1] < -0.6
        assert hand.max() - hand.min() > 0.2


def test_left_and_right_take_turns():
    half = round(CYCLE * CLIP.fps / 2)
    turned = bend("left_knee")[: len(CLIP) - half], bend("right_knee")[half:]
    assert torch.corrcoef(torch.stack(turned))[0, 1] > 0.95


@pytest.mark.parametrize("frames, fps", [(1, 30.0), (240, 30.0), (50, 100.0)])
def test_any_length_and_rate(frames, fps):
    clip = walk(frames, fps)
    assert (len(clip), clip.fps) == (frames, fps)
    assert clip.pose.positions.isfinite().all()


def test_none_is_no_length():
    with pytest.raises(ValueError, match=r"0 frames at 30.0 per second"):
        walk(0)
