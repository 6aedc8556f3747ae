"""TextGrid files of Praat are read in both formats and all encodings, and others are told apart."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from motion.errors import MotionError
from motion.files.textgrid import Interval, Tier, read_textgrid
from tests.motion.textgrids import write_long

WORDS = [("", 0.0, 0.5), ('he said "hi"! 5', 0.5, 1.25), ("größe\nzwei", 1.25, 2.3)]
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2.3
<exists>
2
"TextTier"
"bell"
0
2.3
1
1.5
"ding"
"IntervalTier"
"words"
0
2.3
3
0
0.5
""
0.5
1.25
"he said ""hi""! 5"
1.25
2.3
"größe
zwei"
"""
NOISY = """File type = "ooTextFile"
Object class = "TextGrid"
! info about "the grid": 7
0s 1e0s <exists> 1 ! one tier
"IntervalTier" "Mary" 0s 1s 1
0s 1s " a "
"""


def intervals(words: Sequence[tuple[str, float, float]]) -> tuple[Interval, ...]:
    return tuple(Interval(*word) for word in words)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_long_and_short_files_are_the_same(tmp_path: Path, encoding: str) -> None:
    long, short = tmp_path / "long.TextGrid", tmp_path / "short.TextGrid"
    write_long(long, {"words": WORDS}, encoding=encoding)
    short.write_text(SHORT, encoding=encoding)
    assert read_textgrid(long) == read_textgrid(short) == [Tier("words", intervals(WORDS))]


def test_byte_order_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    write_long(path, {"words": WORDS[:2], "phones": []})
    expected = [Tier("words", intervals(WORDS[:2])), Tier("phones", ())]
    text = path.read_text().replace("\n", "\r\n")
    path.write_bytes(b"\xfe\xff" + text.encode("utf-16-be"))
    assert read_textgrid(path) == expected


def test_comments_and_units_are_for_people(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(NOISY)
    assert read_textgrid(path) == [Tier("Mary", (Interval("a", 0.0, 1.0),))]
    path.write_text('"ooTextFile short" "TextGrid" 0 1 <absent>')
    assert read_textgrid(path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is the end of the file, where a text in quotes is expected"),
        (SHORT[: SHORT.index("zwei")].encode(), "the end of the file, where a text in quotes"),
        (SHORT[: SHORT.index("2.3")].encode(), "the end of the file, where a number is expected"),
        (SHORT.encode("latin-1"), "neither UTF-8 nor UTF-16"),
        (b"ooBinaryFile\x08TextGrid", 'binary; save it in Praat by "Save as text file"'),
        (b'"ooTextFile" "Pitch 1"', "begins with ooTextFile and Pitch 1"),
        (b'"ooTextFile" "TextGrid" 0 1 2', "there is 2.0, where <exists> or <absent>"),
        (b'"ooTextFile" "TextGrid" 0 1 <exists> -1', "-1, where a number of elements"),
        (b'"ooTextFile" "TextGrid" 0 1e999', "there is inf, where a number"),
        (b'"ooTextFile" "TextGrid" 0 1 <exists> 1 "Tier" "x" 0 1 0', "'Tier' is no kind of tier"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_bytes(content)
    with pytest.raises(
        MotionError, match=rf"a\.TextGrid cannot be read as a TextGrid: .*{message}"
    ):
        read_textgrid(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MotionError, match="No such file"):
        read_textgrid(tmp_path / "none.TextGrid")
