"""Clips and files that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip or file that cannot be used.

    Attributes:
        name: name of the clip.
        source: name of the video.
        reason: why, in one line.
    """

    name: str
    source: str
    reason: str
