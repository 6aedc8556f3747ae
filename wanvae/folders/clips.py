"""Clips of the videos and images of a folder: which frames, how large, and under which name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import PurePosixPath

from wanvae.config import WanVAEConfig, check_length, check_size
from wanvae.engine.config import check
from wanvae.engine.text import writable
from wanvae.folders.failure import Failure
from wanvae.folders.manifest import Entry
from wanvae.folders.shapes import Shape, nearest_shape, parse_shapes
from wanvae.selection.excerpt import ROUNDING
from wanvae.video.common import RATES
from wanvae.video.rate import parse_rate

# A rate is a whole number of frames in at most as many seconds, as in 30000/1001.
LARGEST_DENOMINATOR = 100_000
# Bytes of one part of a path. File systems allow 255, and our names become longer still.
LONGEST_PART = 200


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How clips are cut out of videos.

    Attributes:
        lengths: frames of clips, the largest number first. Clips follow each other, at each place
            the longest one that fits. Empty cuts one clip per whole video.
        fps: frames per second of the clips; None keeps the rate of each video.
        resize: height and width of the clips; or only the shorter side; or empty, which keeps the
            size of the video. What does not fit is cropped around the middle.
        buckets: heights and widths, of which each video gets the nearest one as ``resize``; empty
            takes ``resize``.
    """

    lengths: tuple[int, ...]
    fps: Fraction | None
    resize: tuple[int, ...]
    buckets: tuple[Shape, ...] = ()

    def resize_of(self, entry: Entry) -> tuple[int, ...]:
        """Returns the ``resize`` of a video or image."""
        if self.buckets:
            return nearest_shape(entry.height, entry.width, self.buckets)
        return self.resize


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Consecutive frames of a video, or an image.

    Attributes:
        name: a unique relative path that stays inside any folder.
        entry: the video.
        fps: frames per second: the rate that was asked for, or the mean rate of the video.
        first: number of the first frame: of the video, or at ``fps`` if it is resampled.
        frames: number of frames; for a whole video the number in its header.
        whole: whether the clip goes to the end of the video, however many frames there are.
        resampled: whether the clip has the frames that are shown at every 1 / ``fps`` seconds, and
            not the frames of the video one after the other.
        by_time: whether the clip begins with the first frame from ``start`` on, and not with the
            frame of number ``first``. It is quicker to find.
        scaled: height and width that the frames are scaled to.
        size: height and width that the scaled frames are cropped to.
        control: the clip of a second video, in another folder, at the same times and of the same
            size; None if there is none.
    """

    name: str
    entry: Entry
    fps: Fraction
    first: int = 0
    frames: int = 1
    whole: bool = False
    resampled: bool = False
    by_time: bool = False
    scaled: tuple[int, int]
    size: tuple[int, int]
    control: Clip | None = None

    @property
    def source(self) -> str:
        """The name of the video."""
        return writable(self.entry.name)

    @property
    def cut_from(self) -> str:
        """The scene that the clip is cut from, as ``Excerpt.describe``; empty for a whole video."""
        excerpt = self.entry.excerpt
        return "" if excerpt is None else excerpt.describe(self.entry.frames)

    @property
    def start(self) -> Fraction:
        """Seconds from the first frame of the video, if its rate does not vary."""
        return self.first / self.fps

    @property
    def is_enlarged(self) -> bool:
        """Whether the frames become larger than they are in the video."""
        return self.scaled[0] > self.entry.height

    @property
    def pixels(self) -> int:
        """Pixels of all frames together."""
        return self.frames * self.size[0] * self.size[1]


@dataclass(frozen=True)
class ClipList:
    """The clips of a folder.

    Attributes:
        clips: in the order of their videos.
        broken: files that cannot be read, or whose clips would have names of other clips.
        left_out: videos and images that are too small or too short for a clip, one line each.
    """

    clips: tuple[Clip, ...]
    broken: tuple[Failure, ...]
    left_out: tuple[str, ...]


def parse_cut(
    frames: int | None,
    fps: str | None,
    resize: str | None,
    config: WanVAEConfig,
    *,
    shorter: Sequence[int] = (),
    buckets: Sequence[str] = (),
) -> Cut:
    """Returns the ``Cut`` that options describe.

    Args:
        frames: frames of each clip; None for whole videos.
        fps: such as "16" or "30000/1001".
        resize: such as "480x832" (height and width) or "480" (the shorter side).
        config: the model that encodes the clips.
        shorter: frames of clips that are cut where ``frames`` do not fit.
        buckets: such as "480x832", instead of ``resize``.

    Raises:
        UserError: an option is wrong, or the model cannot encode such clips.
    """
    sides = parse_sides(resize)
    if len(sides) == 2:
        check_size(config, *sides)
    if len(sides) == 1:
        check(
            sides[0] >= config.spatial_factor, "resize", resize, f"{config.spatial_factor} or more"
        )
    shapes = parse_shapes("buckets", buckets)
    for shape in shapes:
        check_size(config, *shape)
    lengths = [] if frames is None else sorted({frames, *shorter}, reverse=True)
    for length in lengths:
        check_length(config, length)
    rate = None if fps is None else parse_rate(fps)
    return Cut(lengths=tuple(lengths), fps=rate, resize=sides, buckets=shapes)


def parse_sides(resize: str | None) -> tuple[int, ...]:
    """Returns the numbers in "480x832" or "480", and no numbers for None.

    Raises:
        UserError: it is another text.
    """
    if resize is None:
        return ()
    expected = "a height and a width like 480x832, or a shorter side like 480"
    check(bool(re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", resize)), "resize", resize, expected)
    return tuple(map(int, resize.split("x")))


def find_clips(entries: Iterable[Entry], cut: Cut, config: WanVAEConfig) -> ClipList:
    """Returns the clips of videos and images for a model."""
    clips, broken, left_out = [], [], []
    sources: dict[str, str] = {}
    for entry in entries:
        name = writable(entry.name)
        if entry.error is not None:
            broken.append(Failure(name, name, entry.error))
            continue
        found = list(cut_entry(entry, cut, config))
        if not found:
            left_out.append(
                f"{entry.label}: {entry.frames} frames of {entry.width}x{entry.height} pixels"
            )
        same = next((clip.name for clip in found if clip.name in sources), None)
        if same is None:
            clips.extend(found)
            sources |= {clip.name: name for clip in found}
        else:
            why = f"it would become {same}, as {sources[same]} does; rename one of them"
            broken.append(Failure(name, name, why))
    return ClipList(tuple(clips), tuple(broken), tuple(left_out))


def cut_entry(entry: Entry, cut: Cut, config: WanVAEConfig) -> Iterator[Clip]:
    """Yields the clips of a video; none if it is too short or too small. An image is one clip."""
    scaled, size = fit(entry.height, entry.width, cut.resize_of(entry), config.spatial_factor)
    if 0 in size:
        return
    resampled = cut.fps is not None and not entry.is_image
    fps = rate_of(entry) if cut.fps is None or entry.is_image else cut.fps
    start, frames = numbers_of(entry, fps, resampled=resampled)
    name = safe_path(entry.name)
    if entry.excerpt is not None and not entry.is_image:
        name += f".{entry.excerpt.first:06}"
    clip = partial(Clip, entry=entry, fps=fps, resampled=resampled, scaled=scaled, size=size)
    if entry.is_image:
        yield clip(name=name)
    elif not cut.lengths:
        if frames > 0:
            yield clip(name=name, first=start, frames=frames, whole=entry.excerpt is None)
    else:
        for number, (first, length) in enumerate(cut_length(frames, cut.lengths)):
            yield clip(name=f"{name}.{number:05}", first=start + first, frames=length)


def cut_length(frames: int, lengths: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yields the first frame and the length of clips that follow each other.

    At each place there is the longest clip that fits. So clips of the largest length come first,
    then clips of smaller lengths. Frames that are left at the end are dropped.

    Args:
        frames: frames of the video.
        lengths: frames of clips, the largest number first.
    """
    first = 0
    for length in lengths:
        while first + length <= frames:
            yield first, length
            first += length


def numbers_of(entry: Entry, fps: Fraction, *, resampled: bool) -> tuple[int, int]:
    """Returns the number of the first frame of an entry, and how many frames it has.

    Args:
        fps: frames per second of the clips.
        resampled: whether frames are counted at ``fps``, and not as they are in the video.
    """
    rate, excerpt = rate_of(entry), entry.excerpt
    if excerpt is None:
        return 0, ceil(entry.frames * fps / rate)
    if not resampled:
        return excerpt.first, entry.frames
    # A frame shown just before the end of the scene may be the first of the next one, because
    # timestamps are rounded.
    first = ceil((Fraction(excerpt.begin) - ROUNDING) * fps)
    end = ceil((Fraction(excerpt.until) - 1 / (8 * rate)) * fps)
    return first, max(0, end - first)


def rate_of(entry: Entry) -> Fraction:
    """Returns the mean frames per second of a video, as a rate that can be written."""
    return writable_rate(Fraction(entry.fps))


def writable_rate(rate: Fraction) -> Fraction:
    """Returns the nearest rate that every container can say."""
    return min(max(RATES[0], rate), RATES[1]).limit_denominator(LARGEST_DENOMINATOR)


def fit(
    height: int, width: int, resize: tuple[int, ...], factor: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the sizes that frames are scaled to and then cropped to, multiples of ``factor``."""
    if len(resize) == 2:
        scale = max(Fraction(resize[0], height), Fraction(resize[1], width))
    else:
        scale = Fraction(resize[0], min(height, width)) if resize else Fraction(1)
    scaled = round(height * scale), round(width * scale)
    if len(resize) == 2:
        return scaled, (resize[0], resize[1])
    return scaled, (scaled[0] // factor * factor, scaled[1] // factor * factor)


def safe_path(name: str) -> str:
    """Returns ``name`` as a path that stays inside a folder, because a tar may hold any name."""
    parts = [part for part in writable(name).split("/") if part not in ("", ".")]
    return str(PurePosixPath(*(safe_part(part) for part in parts)))


def safe_part(part: str) -> str:
    """Returns one part of a path without dangerous characters, and not too long."""
    part = "__" if part == ".." else re.sub(r"[\x00-\x1f\\]", "_", part)
    content = part.encode()
    if len(content) <= LONGEST_PART:
        return part
    digest = hashlib.sha256(content).hexdigest()[:8]
    return content[:LONGEST_PART].decode(errors="ignore") + digest
