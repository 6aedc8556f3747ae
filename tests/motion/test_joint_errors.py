"""How far motions are from each other."""

import pytest
import roma
import torch

from motion.metrics import joint_errors, mpjpe, rotation_error


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
