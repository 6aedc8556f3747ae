"""How far motions are from each other."""

import pytest
import roma
import torch

from motion.metrics import (
    acceleration_errors,
    align_poses,
    align_roots,
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


def test_roots_are_aligned():
    positions = torch.randn(5, 3, 3)
    moved = positions + torch.randn(5, 1, 3)
    assert mpjpe(align_roots(moved), align_roots(positions)) == pytest.approx(0.0, abs=1e-3)
    assert align_roots(moved)[:, 0].eq(0).all()


def test_poses_are_moved_turned_and_scaled_onto_their_originals():
    originals = torch.randn(6, 9, 3, dtype=torch.float64)
    turns = roma.random_rotmat(6, dtype=torch.float64)
    moved = 1.7 * originals @ turns.mT + torch.randn(6, 1, 3)
    assert mpjpe(moved, originals) > 100
    assert mpjpe(align_poses(moved, originals), originals) < 1e-6
    # A mirror is no turn.
    mirrored = originals * torch.tensor([-1.0, 1.0, 1.0])
    assert mpjpe(align_poses(mirrored, originals), originals) > 100
    # Poses of one point, as a skeleton of one joint has them, are only moved.
    points = torch.randn(4, 1, 3)
    assert mpjpe(align_poses(points, points + 1), points + 1) < 1e-3


def test_no_similarity_is_closer_than_the_one_of_procrustes():
    """Against a descent along the turn, the scale and the place."""
    originals, moved = torch.randn(2, 1, 8, 3, dtype=torch.float64).unbind()
    best = (align_poses(moved, originals) - originals).square().sum()
    turn, scale, place = torch.zeros(3).double(), torch.zeros(()).double(), torch.zeros(3).double()
    parameters = [x.requires_grad_() for x in (turn, scale, place)]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        found = scale.exp() * moved @ roma.rotvec_to_rotmat(turn).T + place
        (value := (found - originals).square().sum()).backward()
        return value

    optimizer.step(loss)
    assert best <= loss() + 1e-9


@pytest.mark.parametrize("fps", [30.0, 120.0])
def test_errors_of_accelerations(fps):
    """Of t^2 times a direction of length 1 and of length 2: 2 and 4 m/s^2 more."""
    still = torch.zeros(12, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(
        acceleration_errors(powers(2, fps=fps), still, fps), torch.full((10,), 3.0).double()
    )
    assert acceleration_errors(powers(1, fps=fps), still, fps).abs().max() < 1e-9
    assert len(acceleration_errors(still[:2], still[:2], fps)) == 0
    assert len(acceleration_errors(still[:1], still[:1], fps)) == 0


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
