"""Words of descriptions as the evaluators take them: GloVe vectors and parts of speech.

The published files are ``our_vab_data.npy`` (vectors), ``our_vab_words.pkl`` (words) and
``our_vab_idx.pkl`` (the row of each word).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.files.arrays import load_plain_pickle, read_array

FILES = ("our_vab_data.npy", "our_vab_words.pkl", "our_vab_idx.pkl")
# The parts of speech, in the order of the weights. The five before the last are lists of words that
# matter for motion, whatever their part of speech.
PARTS = (
    *("VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV"),
    *("Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER"),
)
LISTS = {
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down "
    "straight curve",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop "
    "sit lift lower raise wash stand kneel stroll rub bend balance flap jog shuffle lean rotate "
    "spin spread climb",
    "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
}
LISTED = {word: part for part, words in LISTS.items() for word in words.split()}
# Words between the start and the end of a description.
MOST_WORDS = 20
START, END, UNKNOWN = "sos/OTHER", "eos/OTHER", "unk"


@dataclass(frozen=True, eq=False)
class WordVectors:
    """The vectors of words.

    Attributes:
        vectors: ``(V, W)``, a row for each word.
        rows: the row of each word.
    """

    vectors: Tensor
    rows: Mapping[str, int]

    @classmethod
    def load(cls, folder: Path) -> WordVectors:
        """Reads the published files. Nothing in them is run.

        Raises:
            MotionError: a file is missing, or holds something else.
        """
        data, words, places = (folder / name for name in FILES)
        vectors, names, rows = (
            read_array(data, 2),
            load_plain_pickle(words),
            load_plain_pickle(places),
        )
        if not isinstance(names, list | tuple) or not isinstance(rows, dict):
            raise MotionError(f"{words} and {places} must hold a list of words and a dict of rows")
        found = {str(name): int(rows[name]) for name in names if name in rows}
        if UNKNOWN not in found or not all(0 <= row < len(vectors) for row in found.values()):
            raise MotionError(
                f"{words} and {places} do not fit {data}: rows must be from 0 to "
                f"{len(vectors) - 1}, and there must be one of {UNKNOWN!r}"
            )
        return cls(vectors, found)

    def look_up(self, tokens: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the vectors ``(L, W)`` and the parts of speech ``(L, 15)`` of a description.

        The description is cut after 20 words, and put between a start and an end.

        Args:
            tokens: words with their parts of speech, like ``"walk/VERB"``.
        """
        tokens = [START, *tokens[:MOST_WORDS], END]
        pairs = [token.rpartition("/")[::2] for token in tokens]
        known = [word in self.rows for word, _ in pairs]
        rows = [
            self.rows[word if has else UNKNOWN] for (word, _), has in zip(pairs, known, strict=True)
        ]
        parts = [
            PARTS.index(find_part(word, part) if has else "OTHER")
            for (word, part), has in zip(pairs, known, strict=True)
        ]
        return self.vectors[rows], torch.eye(len(PARTS))[parts]


def find_part(word: str, part: str) -> str:
    """Returns the part of speech by which the evaluators know a word."""
    part = LISTED.get(word, part)
    return part if part in PARTS else "OTHER"
