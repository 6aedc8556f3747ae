"""Decides which scenes are left out: still ones and duplicates; and whether bars are cropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    places = [
        (number, place)
        for number, analysis in enumerate(analyses)
        if analysis is not None
        for place in range(len(analysis.scenes))
    ]
    left_out: dict[tuple[int, int], str] = {}
    if checks.duplicates:
        scenes = [
            analysis.scenes[place]
            for number, place in places
            if (analysis := analyses[number]) is not None
        ]
        signatures = [unpack(scene.signatures) for scene in scenes]
        images = [scene.end - scene.first == 1 for scene in scenes]
        for scene, of in find_duplicates(signatures, images).items():
            left_out[places[scene]] = names[places[of][0]]
    for number, analysis in enumerate(analyses):
        if analysis is None:
            yield None
            continue
        scenes = tuple(
            replace(
                scene,
                still=0 <= scene.movement < checks.still_below,
                duplicate=left_out.get((number, place), ""),
            )
            for place, scene in enumerate(analysis.scenes)
        )
        yield replace(analysis, scenes=scenes, crop=checks.bars)
