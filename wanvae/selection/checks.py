"""Decides which scenes are left out: still ones and duplicates; and whether bars are cropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from wanvae.engine.config import check
from wanvae.selection.analysis import Analysis, unpack
from wanvae.selection.duplicates import find_duplicates


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What is decided about the scenes of videos.

    Attributes:
        still_below: a scene is left out if nothing in it changes by so many levels of 255 within
            a quarter of a second; 0 keeps all.
        bars: whether black bars are cropped off.
        duplicates: whether scenes that show the same as others are left out.
    """

    still_below: float = 4.0
    bars: bool = True
    duplicates: bool = True

    def __post_init__(self) -> None:
        check(0 <= self.still_below <= 255, "still_below", self.still_below, "0 to 255")


def decide(
    analyses: Sequence[Analysis | None], names: Sequence[str], checks: Checks
) -> Iterator[Analysis | None]:
    """Yields each analysis with what ``checks`` decide about it. None stays None.

    Args:
        names: of the videos, in the same order.
    """
    scenes = [
        (name, scene)
        for name, analysis in zip(names, analyses, strict=True)
        if analysis is not None
        for scene in analysis.scenes
    ]
    # The names of the videos that show the same, by the position of the scene in ``scenes``.
    originals: dict[int, str] = {}
    if checks.duplicates:
        signatures = [unpack(scene.signatures) for _, scene in scenes]
        images = [scene.end - scene.first == 1 for _, scene in scenes]
        duplicates = find_duplicates(signatures, images)
        originals = {number: scenes[of][0] for number, of in duplicates.items()}
    numbers = count()
    for analysis in analyses:
        if analysis is None:
            yield None
            continue
        decided = tuple(
            replace(
                scene,
                still=0 <= scene.movement < checks.still_below,
                duplicate=originals.get(next(numbers), ""),
            )
            for scene in analysis.scenes
        )
        yield replace(analysis, scenes=decided, crop=checks.bars)
