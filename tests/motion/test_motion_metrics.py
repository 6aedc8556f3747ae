"""How far motions are from each other."""

import pytest
import roma
import torch

from motion.metrics import (
    find_steps,
    ground_speed,
    joint_errors,
    joint_jerk,
    mpjpe,
    rotation_error,
)


def test_positions_in_millimetres():
    positions = torch.zeros(5, 3, 3)
    moved = positions.clone()
    moved[:, 1] += torch.tensor([0.003, 0.0, 0.004])
    assert joint_errors(moved, positions).tolist() == pytest.approx([0.0, 5.0, 0.0])
    assert mpjpe(moved, positions) == pytest.approx(5 / 3)
    assert mpjpe(positions, positions) == 0.0


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 30.0, 179.0])
def test_rotations_in_degrees(degrees):
    rotations = roma.random_rotmat(20, dtype=torch.float64)
    angle = torch.tensor([degrees], dtype=torch.float64)
    turned = rotations @ roma.euler_to_rotmat("Z", angle, degrees=True)
    assert rotation_error(turned, rotations) == pytest.approx(degrees, abs=1e-6)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="cannot be compared"):
        mpjpe(torch.zeros(5, 3, 3), torch.zeros(4, 3, 3))
    with pytest.raises(ValueError, match="cannot be compared"):
        rotation_error(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3))


def powers(power, frames=12, fps=30.0):
    """Two joints whose distance from the origin is a power of time, in different directions."""
    time = torch.arange(frames, dtype=torch.float64) / fps
    directions = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    return time.pow(power)[:, None, None] * directions


@pytest.mark.parametrize("fps", [30.0, 120.0])
def test_jerk_is_the_third_derivative(fps):
    # Of constant speed and of constant acceleration there is none, of t^3 it is 6.
    for power in (0, 1, 2):
        assert joint_jerk(powers(power, fps=fps), fps).abs().max() < 1e-6
    torch.testing.assert_close(joint_jerk(powers(3, fps=fps), fps), torch.full((9,), 9.0).double())
    assert len(joint_jerk(powers(3, frames=3, fps=fps), fps)) == 0


def walking(frames=20, fps=20.0, ground=0.0):
    """A planted left foot, and a right one that is on the ground until frame 10; (T, 2, 3)."""
    feet = torch.zeros(frames, 2, 3, dtype=torch.float64)
    feet[..., 1] = ground
    feet[:, 1, 0] = 0.3
    feet[10:, 1, 1] += 0.2
    return feet


@pytest.mark.parametrize("ground", [0.0, -3.0, 0.9])
def test_feet_are_on_the_ground_where_it_is(ground):
    steps = find_steps(walking(ground=ground))
    assert steps.shape == (19, 2)
    assert steps[:, 0].all() and steps[:9, 1].all() and not steps[9:, 1].any()


def test_one_frame_below_the_ground_is_not_the_ground():
    feet = walking(frames=60)
    feet[30, 0, 1] = -0.5
    assert find_steps(feet)[:, 0].all()


def test_how_fast_feet_slide():
    feet = walking()
    frame = torch.arange(20, dtype=torch.float64)
    feet[:, 0, 0], feet[:, 0, 2] = 0.03 * frame, -0.04 * frame  # 5 cm a frame, 20 a second
    feet[:, 1, 1] += 0.1 * frame  # upwards, which is no sliding
    speeds = ground_speed(feet, 20.0)
    torch.testing.assert_close(speeds[:, 0], torch.full((19,), 1.0).double())
    assert speeds[:, 1].abs().max() < 1e-9
