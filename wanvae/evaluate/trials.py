"""What is judged: each clip, at each size and length."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from wanvae.dataset.records import Failure
from wanvae.errors import UserError
from wanvae.evaluate.settings import EvaluationOptions
from wanvae.folders.clips import Clip, fit, parse_sides, rate_of, safe_path, writable
from wanvae.folders.manifest import MANIFEST, Entry, File, load_entries, probe_file, size_and_time

# Letters of a name that are kept in that of a folder.
LONGEST_SLUG = 60


@dataclass(frozen=True)
class Trial:
    """A clip at a size and a length.

    Attributes:
        clip: the frames.
        size: what the size is called in tables.
        length: the length that was asked for; None is all of the video.
        shown: whether the page has videos and pictures of it.
    """

    clip: Clip
    size: str
    length: int | None
    shown: bool

    @property
    def folder(self) -> str:
        """A name that says which it is, of letters, digits and hyphens.

        A file that was changed since has another.
        """
        entry = self.clip.entry
        slug = re.sub(r"[^A-Za-z0-9]+", "-", entry.name)[-LONGEST_SLUG:].strip("-")
        what = f"{entry.name}/{entry.size}/{entry.mtime}/{self.size}/{self.length}"
        return f"{slug}-{hashlib.sha256(what.encode(errors='replace')).hexdigest()[:8]}".strip("-")


@dataclass(frozen=True)
class TrialList:
    """The trials of a folder.

    Attributes:
        folder: that the paths of the clips are below.
        trials: in the order of their videos.
        broken: files that cannot be read.
        left_out: what is too short or too small, and for what.
    """

    folder: Path
    trials: tuple[Trial, ...]
    broken: tuple[Failure, ...]
    left_out: tuple[Failure, ...]


def find_trials(source: Path, options: EvaluationOptions) -> TrialList:
    """The trials of a folder of videos and images, its manifest, or a single file.

    Raises:
        ValueError: there is no such source, or nothing in it can be judged.
    """
    folder, entries = find_entries(source)
    broken = [entry for entry in entries if entry.error is not None]
    usable = list(islice((entry for entry in entries if entry.error is None), options.clips))
    trials: list[Trial] = []
    left_out: list[Failure] = []
    for entry in usable:
        for resize, frames in product(options.resize or (None,), options.frames or (None,)):
            trial = make_trial(entry, resize, frames, shown=len(trials) < options.media)
            if isinstance(trial, Failure):
                left_out.append(trial)
            else:
                trials.append(trial)
    if not trials:
        raise UserError(
            f"nothing to judge in {source}: {len(broken)} files cannot be read, and "
            f"{len(usable)} are too small or too short; give other videos, or other --frames or "
            "--resize"
        )
    return TrialList(
        folder,
        tuple(trials),
        tuple(failure(entry, entry.error or "") for entry in broken),
        tuple(left_out),
    )


def find_entries(source: Path) -> tuple[Path, list[Entry]]:
    """The videos and images of a folder, its manifest or a file; and that folder."""
    if source.name == MANIFEST:
        source = source.parent
    if source.is_file():
        file = File(source.name, *size_and_time(source))
        return source.parent, probe_file(source.parent, file)
    return source, load_entries(source)


def make_trial(
    entry: Entry, resize: str | None, frames: int | None, *, shown: bool
) -> Trial | Failure:
    """A trial from the middle of a video, or why there is none."""
    scaled, size = fit(entry.height, entry.width, parse_sides(resize), 1)
    if scaled[0] > entry.height or scaled[1] > entry.width:
        return failure(entry, f"too small for {resize}: it has {entry.height}x{entry.width} pixels")
    if frames is not None and frames > entry.frames:
        return failure(entry, f"too short for {frames} frames: it has {entry.frames}")
    count = frames or entry.frames
    clip = Clip(
        name=safe_path(entry.name),
        entry=entry,
        fps=rate_of(entry),
        first=(entry.frames - count) // 2,
        frames=count,
        whole=frames is None,
        scaled=scaled,
        size=size,
    )
    return Trial(clip, resize or f"{size[0]}x{size[1]}", frames, shown)


def failure(entry: Entry, why: str) -> Failure:
    """That a file is not judged."""
    return Failure(safe_path(entry.name), writable(entry.name), why)


def share(trials: Sequence[Trial], rank: int, ranks: int) -> Iterator[Trial]:
    """The trials of one process: the largest first, each to the one with least to do so far."""
    busy = [(0, number) for number in range(ranks)]
    for trial in sorted(trials, key=lambda trial: -trial.clip.pixels):
        pixels, least = heapq.heappop(busy)
        heapq.heappush(busy, (pixels + trial.clip.pixels, least))
        if least == rank:
            yield trial
