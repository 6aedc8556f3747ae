"""What describes motion files: captions, speakers, sound and words beside them, rows of tables."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from motion.dataset.records import AudioSpan, Caption, Description, Word
from motion.dataset.sound import find_sounds, measure_sound
from motion.dataset.speech import WordReader, find_grids
from motion.features.humanml3d import find_features_folder
from wanvae.engine.text import first_few, first_sentence
from wanvae.errors import UserError
from wanvae.folders.caption import CAPTIONS, ROW
from wanvae.folders.listing import METADATA, is_caption, stems_of
from wanvae.folders.manifest import Entry
from wanvae.folders.metadata import decode
from wanvae.folders.sidecars import LARGEST, SidecarReader, Sidecars, read_bytes

# The names of BEAT2's files: the number and the name of the speaker, then three numbers.
SPEAKER = r"\d+_([^\W\d_]+)_\d+_\d+_\d+"
# Columns that name the speaker, the first that is there.
SPEAKERS = ("speaker", "speaker_id", "actor")
# The folder of captions of HumanML3D, beside the folder of motion files.
TEXTS = "texts"


class DescriptionReader:
    """Reads what describes the motion files of a folder.

    Captions are lines of the ``.txt`` beside a file or of its name in a folder ``texts``; else the
    ``.caption`` beside it, or the values "captions", "caption", "text" or "prompt" of the ``.json``
    beside it, or of its row in ``metadata.jsonl``, ``.csv`` or ``.parquet``. Lines of HumanML3D,
    ``caption#words#start#stop``, may be of a part of the clip.

    The speaker is the value "speaker", "speaker_id" or "actor" of the row or the ``.json``, else
    what ``speaker`` finds in the name. The sound is the file of the column "audio", with the
    samples from "audio_start" to "audio_stop"; else a file of the same name beside it, or in a
    folder ``wave16k``, ``audio`` or ``wav`` in the folder or beside it.

    Words are the intervals of a ``.TextGrid`` of the same name beside the file, or in a folder
    ``textgrid`` in the folder or beside it.

    Args:
        folder: the folder of motion files, or of the data set.
        files: the motion files.
        others: the other files of the folder.
        speaker: a regular expression with one group, for the name of a file without suffix.

    Raises:
        UserError: a table is damaged, or ``speaker`` is no such expression.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path], others: Sequence[Path], speaker: str = SPEAKER
    ) -> None:
        self._folder = folder
        self._inner = find_features_folder(folder)
        self._speaker = compile_speaker(speaker)
        self._names = {path.relative_to(folder).as_posix() for path in files}
        self._others = {path.relative_to(folder).as_posix() for path in others}
        tables = {name for name in self._others if PurePosixPath(name).name in METADATA}
        if self._inner != folder:
            tables |= {name for name in METADATA if (folder / name).is_file()}
        stems = {
            (PurePosixPath(name).parent, stem)
            for name in self._names
            for stem in stems_of(PurePosixPath(name).name)
        }
        captions = {name for name in self._others if describes(name, stems)}
        self._used = tables | captions
        self._reader = SidecarReader(folder, sorted(tables | captions))
        self._held = ExitStack()
        self._held.enter_context(self._reader)
        self._counts: Counter[str] = Counter()
        self._damaged: dict[str, None] = {}
        self._sounds, self._grids = find_sounds(folder, others), find_grids(folder, others)
        self._words = WordReader()

    def __enter__(self) -> DescriptionReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def read(self, file: Path, seconds: float) -> Description:
        """Returns what describes a motion file.

        Args:
            seconds: how long its motion is.
        """
        sidecars = self._read_sidecars(file.relative_to(self._folder).as_posix())
        values = [x for x in (sidecars.get(ROW), sidecars.get("json")) if isinstance(x, Mapping)]
        named = self._speaker.search(file.stem)
        speaker = find_value(values, SPEAKERS)
        if speaker is None and named is not None:
            speaker = named[1]
        return Description(
            captions=tuple(self._read_captions(file, sidecars)),
            speaker="" if speaker is None else str(speaker).strip(),
            audio=self._read_audio(file, values, seconds),
            words=self._read_words(file, seconds),
        )

    @property
    def used(self) -> frozenset[str]:
        """Files that describe motion files, as far as they are known, relative to the folder."""
        return frozenset(self._used)

    @property
    def notes(self) -> list[str]:
        """What people must know of the descriptions that were read so far, one line each."""
        known = self._names | {str(PurePosixPath(name).with_suffix("")) for name in self._names}
        missing = self._reader.unmatched(known)
        rows = [f"rows of tables are of no motion file: {first_few(missing)}"]
        counts = [f"{what}: {count}" for what, count in (self._counts + self._words.counts).items()]
        return [
            *self._reader.notes,
            *self._damaged,
            *self._sounds.notes.values(),
            *self._grids.notes.values(),
            *counts,
            *(rows if missing else []),
        ]

    def _read_sidecars(self, name: str) -> Sidecars:
        """Returns texts and JSON by suffix, and the row, which may name the file without suffix."""
        found = self._reader.read(Entry(path=name, size=0, mtime=0))
        if ROW in found:
            return found
        bare = Entry(path=str(PurePosixPath(name).with_suffix("")), size=0, mtime=0)
        row = self._reader.read(bare).get(ROW)
        return found if row is None else {**found, ROW: row}

    def _read_captions(self, file: Path, sidecars: Sidecars) -> Iterator[Caption]:
        """Yields the captions of a motion file, from the first place that has any."""
        text = sidecars.get("txt") or self._read_text(file)
        if text is not None and text.strip():
            yield from self._parse_lines(text)
            return
        for values in (sidecars, sidecars.get("json"), sidecars.get(ROW)):
            if isinstance(values, Mapping):
                value = find_value([values], ("caption", "captions", *CAPTIONS))
                texts = value if isinstance(value, list) else [value]
                found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
                if found:
                    yield from (Caption(text=text) for text in found)
                    return

    def _read_text(self, file: Path) -> str | None:
        """Returns the text of a file in the folder ``texts``; None if it has none."""
        name = file.relative_to(self._inner if file.is_relative_to(self._inner) else self._folder)
        for folder in dict.fromkeys((self._inner, self._inner.parent)):
            path = folder / TEXTS / name.with_suffix(".txt")
            if not path.is_file():
                continue
            self._use(path)
            content = read_bytes(path)
            try:
                if content is None:
                    raise UserError(f"it cannot be read, or has more than {LARGEST} bytes")
                return decode(content)
            except UserError as error:
                self._damaged[f"{path}: {error}; left out"] = None
        return None

    def _parse_lines(self, text: str) -> Iterator[Caption]:
        """Yields the captions of a text, one for each line."""
        for line in filter(None, map(str.strip, text.splitlines())):
            caption = parse_line(line)
            if not caption.text:
                continue
            if caption.stop is not None and caption.stop <= caption.start:
                self._counts["captions that end before they begin are left out"] += 1
                continue
            yield caption

    def _read_audio(
        self, file: Path, values: Sequence[Mapping[str, Any]], seconds: float
    ) -> AudioSpan | None:
        """Returns the sound of a motion file; None without sound that can be read."""
        named = find_value(values, ("audio",))
        path = self._sounds.find(file) if named is None else self._folder / str(named)
        if path is None:
            return None
        self._use(path)
        try:
            start = read_count(find_value(values, ("audio_start",)), 0)
            rate, samples = measure_sound(path)
            stop = read_count(find_value(values, ("audio_stop",)), start + round(seconds * rate))
            name = Path(os.path.relpath(path, self._folder)).as_posix()
            return AudioSpan(path=name, rate=rate, start=start, stop=min(stop, samples))
        except (UserError, ValueError) as error:
            self._damaged[f"{path}: no sound of {file.name} ({first_sentence(error)})"] = None
            return None

    def _read_words(self, file: Path, seconds: float) -> tuple[Word, ...]:
        """Returns the words of a motion file; none without a TextGrid file that can be read."""
        path = self._grids.find(file)
        if path is None:
            return ()
        self._use(path)
        try:
            return tuple(self._words.read(path, seconds))
        except UserError as error:
            self._damaged[f"no words of {file.name}: {first_sentence(error)}"] = None
            return ()

    def _use(self, path: Path) -> None:
        """Notes that a file of the folder describes a motion file."""
        if path.is_relative_to(self._folder):
            self._used.add(path.relative_to(self._folder).as_posix())


def describes(name: str, stems: set[tuple[PurePosixPath, str]]) -> bool:
    """Whether a file is a caption beside a motion file.

    Args:
        stems: folder and name without suffix of each motion file.
    """
    path = PurePosixPath(name)
    return is_caption(path.name, {path.stem} if (path.parent, path.stem) in stems else ())


def compile_speaker(pattern: str) -> re.Pattern[str]:
    """Returns a regular expression for speakers; UserError if it has not one group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"speaker must be a regular expression, not {pattern!r}: {error}") from None
    if compiled.groups != 1:
        raise UserError(
            f"speaker must have one group (in parentheses), as in 'subject(\\d+)', not {pattern!r}"
        )
    return compiled


def parse_line(line: str) -> Caption:
    """Returns the caption of a line.

    In HumanML3D a line is ``caption#words with parts of speech#start#stop``, in seconds, where 0
    and 0 stand for the whole clip.
    """
    parts = line.rsplit("#", 3)
    try:
        start, stop = (read_seconds(part) for part in parts[2:])
    except ValueError:
        return Caption(text=line)
    if start == stop == 0:
        return Caption(text=parts[0].strip())
    return Caption(text=parts[0].strip(), start=start, stop=stop)


def read_seconds(text: str) -> float:
    """Returns a time; 0 for "nan", which HumanML3D has too; ValueError for other texts."""
    seconds = float(text)
    if math.isinf(seconds) or seconds < 0:
        raise ValueError(f"{text} is no time")
    return 0.0 if math.isnan(seconds) else seconds


def find_value(values: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Returns the first value of one of these names that is there and not empty; None if none."""
    found = (each[name] for each in values for name in names if name in each)
    return next((value for value in found if value not in (None, "", [])), None)


def read_count(value: object, default: int) -> int:
    """Returns a whole number of a table, which may be text; ValueError if it is none."""
    return default if value is None else int(str(value))
