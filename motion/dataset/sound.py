"""Files of sound beside motion files, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
from av.error import FFmpegError

from motion.dataset.beside import FileFinder
from wanvae.errors import UserError
from wanvae.folders.listing import SOUND_SUFFIXES

# Folders of sound in the folder of motion files or beside it; the first is BEAT2's.
SOUND_FOLDERS = ("wave16k", "audio", "wav")


def find_sounds(folder: Path, others: Sequence[Path]) -> FileFinder:
    """Returns a finder of the sound of motion files; see ``FileFinder``."""
    return FileFinder(folder, others, "sound", SOUND_SUFFIXES, SOUND_FOLDERS)


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
