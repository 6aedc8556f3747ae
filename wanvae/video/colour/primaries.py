"""The colours that red, green and blue stand for, and the matrices from one set to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float]  # x, y of CIE 1931

_D65 = (0.3127, 0.3290)
_C = (0.310, 0.316)
# From XYZ to the answers of the cones, in which white is adapted (Bradford).
_CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True)
class Primaries:
    """Chromaticities of red, green, blue and white, and the name that people know them by."""

    name: str
    red: Point
    green: Point
    blue: Point
    white: Point = _D65

    def to_xyz(self) -> np.ndarray:
        """Returns the matrix ``(3, 3)`` from linear RGB, in which white is 1, to XYZ."""
        columns = np.stack([_xyz(p) for p in (self.red, self.green, self.blue)], axis=1)
        return columns * np.linalg.solve(columns, _xyz(self.white))


def conversion(source: Primaries, target: Primaries) -> np.ndarray:
    """Returns the matrix ``(3, 3)`` between linear RGB of two sets. White stays white."""
    adapted = np.diag((_CONES @ _xyz(target.white)) / (_CONES @ _xyz(source.white)))
    white = np.linalg.inv(_CONES) @ adapted @ _CONES
    return np.linalg.inv(target.to_xyz()) @ white @ source.to_xyz()


def _xyz(point: Point) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1, (1 - x - y) / y])


BT709 = Primaries("BT.709", (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
BT2020 = Primaries("BT.2020", (0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
_SMPTE_C = Primaries("BT.601 (525 lines)", (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
# By the numbers of ITU-T H.273, which FFmpeg has too.
PRIMARIES: Mapping[int, Primaries] = {
    1: BT709,
    4: Primaries("BT.470 M", (0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),
    5: Primaries("BT.601 (625 lines)", (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: _SMPTE_C,
    7: _SMPTE_C,
    8: Primaries("film", (0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: BT2020,
    11: Primaries("DCI-P3", (0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: Primaries("P3", (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: Primaries("EBU 3213", (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
