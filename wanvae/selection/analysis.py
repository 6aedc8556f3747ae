"""What is found in a video: its scenes, and the black bars around them.

The video is decoded once, and looked at in small pictures. Memory is constant, except 8 bytes for
the time of each frame.
"""

from __future__ import annotations

import base64
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanvae.engine.config import changed_values
from wanvae.selection.bars import BarDetector, Box
from wanvae.selection.cuts import SIDE, CutDetector, Transition
from wanvae.selection.signature import Signature, Signer
from wanvae.video import VideoError, VideoReader
from wanvae.video.common import Source
from wanvae.video.small import SmallPictures

# Changes when analyses of an earlier version must be done again.
VERSION = 1
# Pixels per side of the small pictures.
SMALL = 2 * SIDE
# Seconds from one signature to the next.
INTERVAL = Fraction(1, 4)
# Movement is the difference of small pictures at the pixel with so many larger ones: not noise.
LARGER = 4
# Frames whose bars are looked for: every so many signatures, at most so many.
BARS_EVERY, MOST_FOR_BARS = 4, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Consecutive frames of a video without a cut.

    Attributes:
        first: number of the first frame.
        end: number of the frame after the last one.
        begin: seconds from the first frame of the video to the first frame of the scene.
        until: seconds to the end of the last frame.
        movement: largest change within a quarter of a second, in levels of 255 of a small picture;
            -1 for a scene too short to tell.
        signatures: the signatures of a frame every quarter of a second, as ``pack`` writes them.
        still: whether nothing moves, so that the scene is left out.
        duplicate: the video that shows the same, so that the scene is left out; or empty.
    """

    first: int
    end: int
    begin: float = 0.0
    until: float = 0.0
    movement: float = -1.0
    signatures: str = ""
    still: bool = False
    duplicate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """What is found in a video or image.

    Attributes:
        version: the version of the analysis.
        scenes: in their order. Frames of fades and dissolves belong to none.
        box: the picture inside black bars; None without bars.
        crop: whether the bars are cropped off.
        damage: why frames after the last scene cannot be read; or empty.
    """

    version: int = VERSION
    scenes: tuple[Scene, ...] = ()
    box: Box | None = None
    crop: bool = True
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame that is looked at more closely.

    Attributes:
        number: of the frame.
        signature: its signature.
        movement: change from the sample before in its scene; -1 for the first one.
    """

    number: int
    signature: Signature
    movement: float


@dataclass
class Sampler:
    """Takes a sample every quarter of a second from the beginning of each scene."""

    samples: list[Sample] = field(default_factory=list)
    _scene: int | None = None
    _due: Fraction = Fraction(0)
    _signer: Signer = field(default_factory=Signer)
    _before: NDArray[np.int16] | None = None

    def add(self, number: int, scene: int | None, time: Fraction, small: NDArray[np.uint8]) -> None:
        """Takes a sample of a frame if it is due.

        Args:
            scene: the first frame of its scene; None inside a transition.
        """
        if scene is None:
            self._scene = None
            return
        if scene != self._scene:
            self._scene, self._due, self._signer, self._before = scene, time, Signer(), None
        if time < self._due:
            return
        while self._due <= time:
            self._due += INTERVAL
        exact = small.astype(np.int16)
        movement = -1.0
        if self._before is not None:
            movement = movement_between(self._before, exact)
        self._before = exact
        self.samples.append(Sample(number, self._signer.sign(small), movement))


def analyse(source: Source) -> Analysis:
    """Returns what is found in a video or image.

    Raises:
        VideoError: not one frame can be read.
    """
    cuts, bars, sampler = CutDetector(), BarDetector(), Sampler()
    waiting: deque[tuple[Fraction, NDArray[np.uint8]]] = deque()
    times = array("d")
    damage, due, looked = "", Fraction(0), 0

    def take(decided: int) -> None:
        for number in range(len(times) - len(waiting), decided):
            sampler.add(number, cuts.scene_of(number), *waiting.popleft())

    with VideoReader(source, strict=True) as reader:
        pictures = SmallPictures(reader, SMALL)
        try:
            for time, small in pictures:
                cuts.add(small.reshape(SIDE, 2, SIDE, 2).mean((1, 3), dtype=np.float32))
                times.append(float(time))
                waiting.append((time, small))
                take(cuts.decided)
                if time >= due and looked < MOST_FOR_BARS:
                    bars.add(pictures.whole())
                    due, looked = time + BARS_EVERY * INTERVAL, looked + 1
        except VideoError as error:
            damage = str(error)
        transitions = cuts.finish()
        take(len(times))
        times.append(times[-1] + float(1 / reader.info.fps))
    scenes = describe(spans_between(transitions, len(times) - 1), times, sampler.samples)
    return Analysis(scenes=tuple(scenes), box=bars.finish(), damage=damage)


def spans_between(transitions: Sequence[Transition], frames: int) -> Iterator[tuple[int, int]]:
    """Yields the first frame of each scene, and the frame after its last one."""
    first = 0
    for transition in (*transitions, Transition(frames, frames)):
        if transition.first > first:
            yield first, transition.first
        first = max(first, transition.end)


def describe(
    spans: Iterable[tuple[int, int]], times: Sequence[float], samples: Sequence[Sample]
) -> Iterator[Scene]:
    """Yields the scenes of a video.

    Args:
        times: seconds of each frame, and of the end of the last one.
        samples: in their order.
    """
    numbers = [sample.number for sample in samples]
    for first, end in spans:
        own = samples[bisect_left(numbers, first) : bisect_left(numbers, end)]
        yield Scene(
            first=first,
            end=end,
            begin=times[first],
            until=times[end],
            movement=round(max((sample.movement for sample in own), default=-1.0), 1),
            signatures=pack([sample.signature for sample in own]),
        )


def movement_between(before: NDArray[np.int16], after: NDArray[np.int16]) -> float:
    """Returns the change between two small pictures, in levels of 255."""
    return float(np.partition(np.abs(after - before).ravel(), -LARGER)[-LARGER])


def pack(signatures: Sequence[Signature]) -> str:
    """Returns signatures as text: base64 of two big-endian 64-bit numbers for each."""
    numbers = [number for each in signatures for number in (each.picture, each.movement)]
    return base64.b64encode(np.array(numbers, ">u8").tobytes()).decode()


def unpack(text: str) -> NDArray[np.uint64]:
    """Returns ``(N, 2)``: the picture and the movement of each signature."""
    return np.frombuffer(base64.b64decode(text), ">u8").astype(np.uint64).reshape(-1, 2)


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Returns the fields that differ from their defaults."""
    values = changed_values(analysis) | {"version": analysis.version}
    if analysis.scenes:
        values["scenes"] = list(map(changed_values, analysis.scenes))
    if analysis.box is not None:
        values["box"] = astuple(analysis.box)
    return values


def from_json(values: dict[str, Any]) -> Analysis:
    """Returns the analysis that ``to_json`` gave.

    Raises:
        TypeError: it is none.
    """
    scenes = tuple(Scene(**scene) for scene in values.pop("scenes", ()))
    box = values.pop("box", None)
    return Analysis(scenes=scenes, box=None if box is None else Box(*box), **values)
