"""The words that are said in motion files, from TextGrid files beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from motion.dataset.beside import FileFinder
from motion.dataset.records import Word
from motion.files.textgrid import Tier, read_textgrid
from wanvae.errors import UserError

# Folders of TextGrid files in the folder of motion files or beside it; the first is BEAT2's.
GRID_FOLDERS = ("textgrid", "TextGrid", "textgrids")
# How the names of tiers of words end, such as "words" or "scott - words".
WORDS = ("word", "words")


def find_grids(folder: Path, others: Sequence[Path]) -> FileFinder:
    """Returns a finder of the TextGrid files of motion files; see ``FileFinder``."""
    return FileFinder(folder, others, "words", {".textgrid"}, GRID_FOLDERS)


class WordReader:
    """Reads the words of motion files from TextGrid files, and counts what people must know of.

    Attributes:
        counts: how many words or files this is true of.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def read(self, path: Path, seconds: float) -> Iterator[Word]:
        """Yields the words of a TextGrid file that are said while the motion lasts.

        They are the intervals with a text of the first tier whose name ends in "words" or "word",
        or of the first tier.

        Args:
            seconds: how long the motion is.

        Raises:
            UserError: the file cannot be read, or has no tier of intervals.
        """
        tier = self._choose(read_textgrid(path))
        for interval in tier.intervals:
            if not interval.text or interval.stop <= interval.start:
                continue
            if interval.start >= seconds or interval.start < 0:
                self.counts["words before or after their motion are left out"] += 1
                continue
            yield Word(interval.text, interval.start, min(interval.stop, seconds))

    def _choose(self, tiers: Sequence[Tier]) -> Tier:
        """Returns the tier of words; UserError if there is no tier."""
        if not tiers:
            raise UserError("it has no intervals")
        named = [tier for tier in tiers if tier.name.strip().lower().endswith(WORDS)]
        if not named:
            what = f'TextGrid files whose first tier, "{tiers[0].name}", is taken for words'
            self.counts[what] += 1
        return [*named, *tiers][0]
