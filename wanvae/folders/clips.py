"""Which clips of the videos and images of a folder are to be encoded: how long and how large."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import PurePosixPath

from wanvae.config import WanVAEConfig
from wanvae.dataset.records import Failure
from wanvae.engine.config import check
from wanvae.engine.text import writable
from wanvae.errors import UserError
from wanvae.folders.manifest import Entry
from wanvae.latents.file import parse_rate
from wanvae.model import check_length, check_size
from wanvae.video.common import RATES

# Rates are whole frames in as many seconds at most, as in 30000/1001.
LARGEST_DENOMINATOR = 100_000
# Bytes of one part of a path: file systems allow 255, and ours become longer yet.
LONGEST_PART = 200


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How clips are cut out of videos.

    Attributes:
        frames: of each clip, cut one after the other; None makes one clip of each whole video.
        fps: frames per second of the clips; None keeps those of each video.
        resize: height and width of the clips; or the shorter side alone; or nothing, to keep those
            of the video. What does not fit is cropped, from the middle.
    """

    frames: int | None
    fps: Fraction | None
    resize: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Frames in a row of a video, or an image.

    Attributes:
        name: unique, and a path that stays below any folder.
        entry: the video.
        fps: frames per second of the clip.
        first: number of its first frame, counted at ``fps``.
        frames: how many; of a whole video as its header has it.
        whole: whether it goes to the end of the video, however many frames those are.
        resampled: whether ``fps`` is not simply that of the video.
        scaled: height and width that the frames are scaled to.
        size: height and width that they are cropped to.
    """

    name: str
    entry: Entry
    fps: Fraction
    first: int = 0
    frames: int = 1
    whole: bool = False
    resampled: bool = False
    scaled: tuple[int, int]
    size: tuple[int, int]

    @property
    def source(self) -> str:
        """The name of its video."""
        return writable(self.entry.name)

    @property
    def start(self) -> Fraction:
        """Seconds from the first frame of the video."""
        return self.first / self.fps

    @property
    def pixels(self) -> int:
        """Of all its frames together."""
        return self.frames * self.size[0] * self.size[1]


@dataclass(frozen=True)
class ClipList:
    """The clips of a folder.

    Attributes:
        clips: in the order of their videos.
        broken: files that cannot be read.
        left_out: videos and images that no clip can be cut from, with the reason; a line each.
    """

    clips: tuple[Clip, ...]
    broken: tuple[Failure, ...]
    left_out: tuple[str, ...]


def parse_cut(frames: int | None, fps: str | None, resize: str | None, config: WanVAEConfig) -> Cut:
    """A ``Cut`` from options; ValueError if a model of ``config`` cannot encode such clips.

    Args:
        fps: like "16" or "30000/1001".
        resize: like "480x832" (height and width) or "480" (the shorter side).
    """
    sides = parse_sides(resize)
    if len(sides) == 2:
        check_size(config, *sides)
    if len(sides) == 1:
        check(
            sides[0] >= config.spatial_factor, "resize", resize, f"{config.spatial_factor} or more"
        )
    if frames is not None:
        check_length(config, frames)
    return Cut(frames=frames, fps=None if fps is None else parse_rate(fps), resize=sides)


def parse_sides(resize: str | None) -> tuple[int, ...]:
    """The numbers in "480x832" or "480"; none in None. ValueError for another text."""
    if resize is None:
        return ()
    expected = "a height and a width like 480x832, or a shorter side like 480"
    check(bool(re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", resize)), "resize", resize, expected)
    return tuple(map(int, resize.split("x")))


def find_clips(entries: Iterable[Entry], cut: Cut, config: WanVAEConfig) -> ClipList:
    """The clips of videos and images for a model of ``config``.

    Raises:
        ValueError: two would have the same name.
    """
    clips, broken, left_out = [], [], []
    for entry in entries:
        name = writable(entry.name)
        if entry.error is not None:
            broken.append(Failure(name, name, entry.error))
            continue
        found = list(cut_entry(entry, cut, config))
        clips.extend(found)
        if not found:
            left_out.append(f"{name}: {entry.frames} frames of {entry.width}x{entry.height} pixels")
    refuse_same_names(clips)
    return ClipList(tuple(clips), tuple(broken), tuple(left_out))


def cut_entry(entry: Entry, cut: Cut, config: WanVAEConfig) -> Iterator[Clip]:
    """The clips of a video or image; none if it is too short or too small."""
    scaled, size = fit(entry.height, entry.width, cut.resize, config.spatial_factor)
    if 0 in size:
        return
    rate = rate_of(entry)
    resampled = cut.fps is not None and not entry.is_image
    fps = cut.fps if resampled else rate
    frames = ceil(entry.frames * fps / rate)
    name = safe_path(entry.name)
    common = {"entry": entry, "fps": fps, "resampled": resampled, "scaled": scaled, "size": size}
    if entry.is_image:
        if cut.frames in (None, 1):
            yield Clip(name=name, **common)
    elif cut.frames is None:
        yield Clip(name=name, frames=frames, whole=True, **common)
    else:
        for number in range(frames // cut.frames):
            place = {"first": number * cut.frames, "frames": cut.frames}
            yield Clip(name=f"{name}.{number:05}", **place, **common)


def rate_of(entry: Entry) -> Fraction:
    """Frames per second of a video, such as can be written."""
    return min(max(RATES[0], Fraction(entry.fps)), RATES[1]).limit_denominator(LARGEST_DENOMINATOR)


def fit(
    height: int, width: int, resize: tuple[int, ...], factor: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The sizes that frames are scaled to, and then cropped to: multiples of ``factor``."""
    sides = height, width
    if len(resize) == 2:
        scale = max(Fraction(new, old) for new, old in zip(resize, sides, strict=True))
    else:
        scale = Fraction(resize[0], min(sides)) if resize else Fraction(1)
    scaled = round(height * scale), round(width * scale)
    size = resize if len(resize) == 2 else tuple(side // factor * factor for side in scaled)
    return scaled, size


def safe_path(name: str) -> str:
    """``name`` as a path that leads to no place above, for a tar may hold any name."""
    parts = [part for part in writable(name).split("/") if part not in ("", ".")]
    return str(PurePosixPath(*(safe_part(part) for part in parts)))


def safe_part(part: str) -> str:
    part = "__" if part == ".." else re.sub(r"[\x00-\x1f\\]", "_", part)
    content = part.encode()
    if len(content) <= LONGEST_PART:
        return part
    digest = hashlib.sha256(content).hexdigest()[:8]
    return content[:LONGEST_PART].decode(errors="ignore") + digest


def refuse_same_names(clips: Iterable[Clip]) -> None:
    sources: dict[str, str] = {}
    for clip in clips:
        if clip.name in sources:
            raise UserError(
                f"{sources[clip.name]} and {clip.source} would both become {clip.name}; "
                "rename one of them"
            )
        sources[clip.name] = clip.source
