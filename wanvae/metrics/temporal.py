"""The error of the changes between frames: what people see as flicker and as unsteady motion.

The measure is dtSSD of Erofeev et al. 2015, "Perceptually Motivated Benchmark for Video Matting",
with absolute values instead of squares.
"""

from __future__ import annotations

from torch import Tensor

from wanvae.metrics.means import Mean

# 8-bit levels per unit of [-1, 1].
LEVELS = 127.5


class TemporalError:
    """The temporal error of a video and its reconstruction, collected frame by frame.

    Args:
        temporal_factor: frames of a group, which the model decodes at once after the first frame.
    """

    def __init__(self, temporal_factor: int) -> None:
        self._factor = temporal_factor
        self._all, self._borders, self._inside = Mean(), Mean(), Mean()
        self._error: Tensor | None = None
        self._frames = 0

    def add(self, original: Tensor, image: Tensor) -> None:
        """Counts the next frame and its reconstruction, ``(C, H, W)`` in [-1, 1]."""
        error = image - original
        if self._error is not None:
            # The change of the error is the error of the change.
            change = (error - self._error).abs().mean().item() * LEVELS
            self._all.add(change)
            border = (self._frames - 1) % self._factor == 0
            (self._borders if border else self._inside).add(change)
        self._error = error
        self._frames += 1

    @property
    def value(self) -> float | None:
        """Mean absolute error of the differences between consecutive frames, in 8-bit levels.

        None if there are fewer than two frames.
        """
        return self._all.value

    @property
    def flicker(self) -> float | None:
        """This error where groups begin, as a multiple of the error inside groups.

        None if the clip or the groups are too short.
        """
        if not self._borders.value or not self._inside.value:
            return None
        return self._borders.value / self._inside.value
