"""What clips are cut from: scenes of the videos that are analysed, and other videos whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wanvae.engine.storage.remote_path import Location
from wanvae.folders.catalog import Entries
from wanvae.folders.listing import MANIFEST, File
from wanvae.folders.manifest import Entry, read_manifest
from wanvae.selection.analysis import Analysis, Scene
from wanvae.selection.excerpt import ROUNDING, Excerpt
from wanvae.video import ReadOptions, VideoError, VideoReader
from wanvae.video.reading.options import AS_STORED

# Why a video has no clip although it is analysed.
ALL_LEFT_OUT = "its index leaves out all of its scenes: they are still or duplicates"


@dataclass(frozen=True)
class Selection:
    """What clips are cut from.

    Attributes:
        entries: an entry for each scene, with its length and its size inside the bars. A video
            that is not analysed is one entry, as it is in the manifest.
        left_out: scenes that are left out, a line each.
        notes: how many scenes are left out and why, and what else is done, a line each.
    """

    entries: Sequence[Entry]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def select(entries: Sequence[Entry]) -> Selection:
    """Returns what clips are cut from, as the analyses in the manifest say."""
    # Entries that are parsed when they are asked for have no analysis.
    if isinstance(entries, Entries) or all(entry.analysis is None for entry in entries):
        return Selection(entries, (), ())
    names = {entry.name for entry in entries}
    selected: list[Entry] = []
    left_out: list[str] = []
    counts: Counter[str] = Counter()
    for entry in entries:
        analysis = entry.analysis
        if analysis is None:
            counts["unknown"] += entry.error is None
            selected.append(entry)
            continue
        counts["damaged"] += analysis.damage != ""
        counts["bars"] += analysis.crop and analysis.box is not None
        for scene in analysis.scenes:
            why = reason_against(scene, names)
            if why is None:
                selected.append(excerpt_of(entry, analysis, scene))
            else:
                counts["duplicate" if scene.duplicate in names else "still"] += 1
                seconds = f"{scene.begin:.2f} to {scene.until:.2f} s"
                left_out.append(f"{entry.name}: {'' if entry.is_image else seconds + ': '}{why}")
    return Selection(selected, tuple(left_out), tuple(describe(counts)))


def reason_against(scene: Scene, names: Collection[str]) -> str | None:
    """Returns why a scene is left out; None if it is used.

    Args:
        names: of all videos and images. A duplicate of one that is gone is used.
    """
    if scene.duplicate in names:
        return f"it shows the same as {scene.duplicate}"
    return "nothing moves" if scene.still else None


def excerpt_of(entry: Entry, analysis: Analysis, scene: Scene) -> Entry:
    """Returns the entry of one scene. A whole video without bars is as if it were not analysed."""
    box = analysis.box if analysis.crop else None
    frames = scene.end - scene.first
    if box is None and frames == entry.frames:
        return replace(entry, analysis=None)
    excerpt = Excerpt(
        first=scene.first,
        begin=scene.begin,
        until=scene.until,
        box=box,
        whole=(entry.height, entry.width),
    )
    height, width = excerpt.whole if box is None else (box.height, box.width)
    return replace(entry, analysis=None, excerpt=excerpt, frames=frames, height=height, width=width)


def describe(counts: Counter[str]) -> Iterator[str]:
    """Yields a line for each kind of thing that was counted."""
    lines = {
        "still": "scenes are left out, because nothing moves in them",
        "duplicate": "scenes and images are left out, because others show the same",
        "bars": "videos and images have black bars, which are cropped off",
        "damaged": "videos are used up to the place where they are damaged",
        "unknown": "videos and images are not analysed and used whole; run wanvae index --scenes",
    }
    yield from (f"{counts[kind]} {line}" for kind, line in lines.items() if counts[kind])


def longest(entries: Iterable[Entry]) -> list[Entry]:
    """Returns the longest scene of each video, in the order of the videos."""
    kept: dict[str, Entry] = {}
    for entry in entries:
        if entry.name not in kept or kept[entry.name].frames < entry.frames:
            kept[entry.name] = entry
    return list(kept.values())


def longest_of_manifest(folder: Location, files: Collection[File]) -> dict[str, Entry | None]:
    """Returns the longest scene of each analysed file by its path; None if all are left out.

    Args:
        files: the files as they are now.

    Raises:
        UserError: the manifest is damaged.
    """
    if not (folder / MANIFEST).exists():
        return {}
    current = set(files)
    known = [
        entry
        for entry in read_manifest(folder)
        if entry.analysis is not None and entry.member is None and entry.file in current
    ]
    used = {entry.path: entry for entry in longest(select(known).entries)}
    return {entry.path: used.get(entry.path) for entry in known}


def read_excerpt(
    entry: Entry,
    folder: Location,
    start: float,
    frames: int,
    stride: int,
    *,
    alpha: bool,
    options: ReadOptions = AS_STORED,
) -> Tensor:
    """Returns frames ``(C, T, H, W)`` in [-1, 1] of a scene, inside its bars.

    Where frames do not follow each other at the rate of the video, the clip might go beyond the end
    of the scene. Then it begins with the first frame of the scene, from which it always fits.

    Args:
        entry: of the scene.
        folder: the indexed folder.
        start: seconds from the first frame of the scene.
        stride: distance between the frames, in frames of the video.
        alpha: whether frames are RGBA, or RGB.
        options: how pictures come out of the file.

    Raises:
        VideoError: the frames cannot be read.
    """
    excerpt = entry.excerpt
    assert excerpt is not None
    for begin in (excerpt.begin + start, excerpt.begin):
        images: list[Tensor] = []
        with VideoReader(entry.source(folder), alpha=alpha, options=options) as reader:
            reader.seek(begin)
            while len(images) < frames:
                frame = next(reader, None)
                if frame is None or frame.time >= excerpt.until - ROUNDING:
                    break
                images.append(frame.image)
                reader.skip(stride - 1)
        if len(images) == frames:
            clip = torch.stack(images, dim=1)
            return clip if excerpt.box is None else excerpt.box.cut_out(clip)
    raise VideoError(f"it has fewer frames from {excerpt.begin:.2f} s on than when it was indexed")
