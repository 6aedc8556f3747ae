"""Which features data sets and papers publish: what their number of channels tells."""

from __future__ import annotations

from typing import NamedTuple


class PublishedKind(NamedTuple):
    """Features that are published.

    Attributes:
        title: the data set or the paper, for people.
        fps: frames per second.
    """

    title: str
    fps: float


# By their number of channels.
PUBLISHED_KINDS = {
    263: PublishedKind("HumanML3D", 20.0),
    251: PublishedKind("KIT", 12.5),
    272: PublishedKind("MotionStreamer", 30.0),
}
