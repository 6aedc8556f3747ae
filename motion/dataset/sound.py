"""Files of sound beside motion files, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
from av.error import FFmpegError

from wanvae.engine.litter import is_litter, suffix_of
from wanvae.errors import UserError
from wanvae.folders.listing import SOUND_SUFFIXES

# Folders of sound in the folder of motion files or beside it; the first is BEAT2's.
SOUND_FOLDERS = ("wave16k", "audio", "wav")


class SoundFinder:
    """Finds the sound of motion files: a file of the same name beside it, or in a folder of sound.

    In a folder of sound it has the same path, or another path but a name that is there once.

    Args:
        folder: the folder of motion files.
        others: the files in it that are no motion files.

    Attributes:
        notes: what people must know, one line for each motion file.
    """

    def __init__(self, folder: Path, others: Sequence[Path]) -> None:
        self.notes: dict[Path, str] = {}
        self._folder = folder
        self._beside = {
            path.relative_to(folder).with_suffix(""): path for path in others if is_sound(path)
        }
        self._away = [list_sounds(place) for place in sound_folders(folder)]

    def find(self, file: Path) -> Path | None:
        """Returns the file of sound of a motion file; None if there is none."""
        name = file.relative_to(self._folder).with_suffix("")
        if name in self._beside:
            return self._beside[name]
        for sounds in self._away:
            found = sounds.get(name.as_posix()) or sounds.get(f"*/{name.name}", [])
            if len(found) > 1:
                names = ", ".join(map(str, found[:2]))
                self.notes[file] = f"{file} has no sound, because it may be of {names}: rename one"
            elif found:
                return found[0]
        return None


def list_sounds(place: Path) -> dict[str, list[Path]]:
    """Returns the files in a folder of sound by their paths without suffix, and by "*/" and name.

    Of files of one path, which differ in the suffix, the first counts.
    """
    found: dict[str, list[Path]] = {}
    for path in filter(is_sound, sorted(place.rglob("*"))):
        key = path.relative_to(place).with_suffix("").as_posix()
        if key not in found:
            found[key] = [path]
            found.setdefault(f"*/{path.stem}", []).append(path)
    return found


def is_sound(path: Path) -> bool:
    """Whether a file has the suffix of a file of sound, and is none that a system leaves."""
    return suffix_of(path.name) in SOUND_SUFFIXES and not is_litter(path.name)


def sound_folders(folder: Path) -> list[Path]:
    """Returns the folders of sound in a folder and beside it."""
    places = (place / name for place in (folder, folder.parent) for name in SOUND_FOLDERS)
    return [place for place in places if place.is_dir()]


def measure_sound(path: Path) -> tuple[int, int]:
    """Returns samples per second and the number of samples of a file of sound.

    Raises:
        UserError: the file cannot be read, has no sound, or does not tell how long it is.
    """
    try:
        with av.open(str(path)) as file:
            if not file.streams.audio:
                raise UserError("it has no sound")
            stream = file.streams.audio[0]
            if stream.duration is not None and stream.time_base is not None:
                seconds = stream.duration * stream.time_base
            elif file.duration is not None:
                seconds = file.duration / av.time_base
            else:
                raise UserError("it does not tell how long it is")
            return stream.rate, round(seconds * stream.rate)
    except (FFmpegError, OSError) as error:
        raise UserError(error.strerror or str(error)) from error
