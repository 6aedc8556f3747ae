"""Controls: second videos of clips, such as depth or poses, whose latents are stored beside theirs.

The control of a video lies in another folder, under the same name. The suffix may be another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from wanvae.engine.files import is_in
from wanvae.engine.output_folder import refuse_nested
from wanvae.engine.storage.remote_path import Location
from wanvae.engine.text import writable
from wanvae.errors import UserError
from wanvae.folders.clips import Clip, rate_of
from wanvae.folders.failure import Failure
from wanvae.folders.manifest import Entry, read_folder
from wanvae.selection.excerpt import Excerpt

# How much the proportions of a control may differ from the proportions of its video.
PROPORTIONS = 0.02
# How many frames the rates of a control and its video may be apart over a whole clip.
DRIFT = 0.25


def add_controls(
    clips: Sequence[Clip], folder: Location, source: Location, destination: Location
) -> tuple[list[Clip], list[Failure]]:
    """Returns the clips with their controls, and a failure for each clip without a usable one.

    Args:
        folder: the folder of controls.
        source: the folder of videos.
        destination: the folder of the data set.

    Raises:
        UserError: there is no such folder, no clip has a control in it, it lies in ``source``, or
            one of it and ``destination`` lies inside the other.
    """
    if is_in(folder, source):
        raise UserError(
            f"the folder of controls, {folder}, lies in {source}, so that its videos would be "
            "encoded as videos too: move it out"
        )
    refuse_nested(folder, destination)
    controls = Controls(read_folder(folder).entries)
    found, failures = [], []
    for clip in clips:
        try:
            found.append(replace(clip, control=controls.control_of(clip)))
        except UserError as error:
            reason = f"{error} in the folder of controls, {folder}"
            failures.append(Failure(clip.name, clip.source, reason))
    if not found:
        raise UserError(f"not one of {len(clips)} clips has a control: {failures[0].reason}")
    return found, failures


def with_controls(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Yields each clip, and its control after it if it has one."""
    for clip in clips:
        yield clip
        if clip.control is not None:
            yield clip.control


class Controls:
    """The videos of a folder of controls, by name."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_name: dict[str, Entry] = {}
        self._by_stem: dict[str, list[Entry]] = {}
        for entry in entries:
            self._by_name[entry.name] = entry
            self._by_stem.setdefault(stem_of(entry.name), []).append(entry)

    def control_of(self, clip: Clip) -> Clip:
        """Returns the clip of a control at the times of a clip.

        Raises:
            UserError: there is no control, or it does not fit the clip.
        """
        entry = self._find(clip.entry.name)
        name = writable(entry.name)
        if entry.error is not None:
            raise UserError(f"{name} cannot be read ({entry.error})")
        if entry.is_image != clip.entry.is_image:
            kinds = ("a video", "a still image")
            raise UserError(f"{name} is {kinds[entry.is_image]}, not {kinds[clip.entry.is_image]}")
        excerpt = clip.entry.excerpt
        height, width = (clip.entry.height, clip.entry.width) if excerpt is None else excerpt.whole
        ratio = entry.width * height / (entry.height * width)
        if abs(ratio - 1) > PROPORTIONS:
            raise UserError(
                f"{name} has {entry.width}x{entry.height} pixels, but the video has "
                f"{width}x{height}: other proportions"
            )
        # A control of another rate gives the frames that it shows at the times of the clip.
        drift = abs(rate_of(entry) / clip.fps - 1) * (clip.first + clip.frames)
        resampled = clip.resampled or (not entry.is_image and drift > DRIFT)
        if excerpt is not None:
            entry = excerpt_of(entry, excerpt, clip.entry.frames)
        return replace(clip, entry=entry, resampled=resampled, control=None)

    def _find(self, name: str) -> Entry:
        if name in self._by_name:
            return self._by_name[name]
        same = self._by_stem.get(stem_of(name), [])
        if len(same) != 1:
            which = "no video" if not same else f"{len(same)} videos"
            raise UserError(f"there is {which} of the name {writable(stem_of(name))}")
        return same[0]


def excerpt_of(entry: Entry, excerpt: Excerpt, frames: int) -> Entry:
    """Returns the entry of a control for a scene of its video, without the same bars.

    Args:
        entry: the whole control, which may be larger or smaller than the video.
        excerpt: the scene of the video.
        frames: frames of the scene.
    """
    whole = entry.height, entry.width
    box = None if excerpt.box is None else excerpt.box.scaled(excerpt.whole, whole)
    height, width = whole if box is None else (box.height, box.width)
    excerpt = replace(excerpt, box=box, whole=whole)
    return replace(entry, excerpt=excerpt, frames=frames, height=height, width=width)


def stem_of(name: str) -> str:
    """Returns a path without the suffix of its last part."""
    return str(PurePosixPath(name).with_suffix(""))
