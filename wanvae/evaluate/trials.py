"""The trials of an evaluation: each clip at each size and length."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

from wanvae.engine.litter import describe_ignored, suffix_of
from wanvae.engine.storage.remote_path import Location
from wanvae.engine.text import writable
from wanvae.errors import UserError
from wanvae.evaluate.settings import EvaluationOptions
from wanvae.folders.clips import Clip, fit, parse_sides, rate_of, safe_path
from wanvae.folders.excerpts import ALL_LEFT_OUT, longest, select
from wanvae.folders.failure import Failure
from wanvae.folders.listing import MANIFEST, MEDIA_SUFFIXES, File, size_and_time
from wanvae.folders.manifest import Entry, MediaFolder, probe_file, read_folder

# Letters of the name of a video that are kept in the name of a folder.
LONGEST_SLUG = 60


@dataclass(frozen=True)
class Trial:
    """A clip at a size and a length.

    Attributes:
        clip: the frames.
        size: name of the size in tables.
        length: number of frames that was asked for; None is the whole video.
        shown: whether the page shows videos and pictures of the trial.
    """

    clip: Clip
    size: str
    length: int | None
    shown: bool

    @property
    def folder(self) -> str:
        """A unique name of letters, digits and hyphens. It changes when the file changes."""
        entry = self.clip.entry
        slug = re.sub(r"[^A-Za-z0-9]+", "-", entry.name)[-LONGEST_SLUG:].strip("-")
        what = f"{entry.name}/{entry.size}/{entry.mtime}/{self.size}/{self.length}"
        if self.clip.cut_from:
            what += f"/{self.clip.cut_from}"
        return f"{slug}-{hashlib.sha256(what.encode(errors='replace')).hexdigest()[:8]}".strip("-")


@dataclass(frozen=True)
class TrialList:
    """The trials of a folder.

    Attributes:
        folder: the folder that the paths of the clips are relative to.
        trials: in the order of their videos.
        broken: files that cannot be read.
        left_out: files that are too short or too small for a length or size.
        ignored: how many files of the folder are no videos, images or tars, by suffix; or empty.
    """

    folder: Location
    trials: tuple[Trial, ...]
    broken: tuple[Failure, ...]
    left_out: tuple[Failure, ...]
    ignored: str


def find_trials(source: Location, options: EvaluationOptions) -> TrialList:
    """Returns the trials of a folder of videos and images, its manifest, or a single file.

    Of a video whose scenes are in the manifest, the longest one that is used is judged.

    Raises:
        UserError: there is no such source, or nothing in it can be judged.
    """
    folder, content = find_content(source)
    entries = longest(select(content.entries).entries)
    broken = [entry for entry in entries if entry.error is not None]
    usable = list(islice((entry for entry in entries if entry.error is None), options.clips))
    trials: list[Trial] = []
    used = {entry.name for entry in entries}
    left_out = [failure(entry, ALL_LEFT_OUT) for entry in content.entries if entry.name not in used]
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
        describe_ignored(content.ignored),
    )


def find_content(source: Location) -> tuple[Location, MediaFolder]:
    """Returns the folder, and what is in it, for a folder, a manifest or a file."""
    if source.name == MANIFEST:
        source = source.parent
    file = find_file(source)
    if file is not None:
        entries = [replace(entry, other=False) for entry in probe_file(source.parent, file)]
        return source.parent, MediaFolder(entries, Counter())
    return source, read_folder(source)


def find_file(source: Location) -> File | None:
    """Returns the file itself, if it is one; None for a folder."""
    if isinstance(source, Path):
        return File(source.name, *size_and_time(source)) if source.is_file() else None
    # At an address, folders are only prefixes of names of files.
    if suffix_of(source.name) not in MEDIA_SUFFIXES or not source.exists():
        return None
    status = source.status()
    return File(source.name, status.size, status.mtime)


def make_trial(
    entry: Entry, resize: str | None, frames: int | None, *, shown: bool
) -> Trial | Failure:
    """Returns a trial from the middle of a video, or why there is none."""
    scaled, size = fit(entry.height, entry.width, parse_sides(resize), 1)
    if scaled[0] > entry.height or scaled[1] > entry.width:
        return failure(entry, f"too small for {resize}: it has {entry.height}x{entry.width} pixels")
    if frames is not None and frames > entry.frames:
        return failure(entry, f"too short for {frames} frames: it has {entry.frames}")
    count = frames or entry.frames
    excerpt = entry.excerpt
    clip = Clip(
        name=safe_path(entry.name),
        entry=entry,
        fps=rate_of(entry),
        first=(entry.frames - count) // 2 + (0 if excerpt is None else excerpt.first),
        frames=count,
        whole=frames is None and excerpt is None,
        # Where a scene begins is known as a number.
        by_time=excerpt is None,
        scaled=scaled,
        size=size,
    )
    return Trial(clip, resize or f"{size[0]}x{size[1]}", frames, shown)


def failure(entry: Entry, why: str) -> Failure:
    """Returns that, and why, a file is not judged."""
    return Failure(safe_path(entry.name), writable(entry.name), why)
