"""What describes motion files is found where people and published data sets put it."""

import wave
from collections.abc import Mapping
from pathlib import Path

import pytest

from motion.dataset.descriptions import SPEAKER, DescriptionReader, parse_line
from motion.dataset.records import AudioSpan, Caption, Description, Word
from tests.motion.textgrids import write_long
from wanvae.errors import UserError

# A line of HumanML3D.
LINE = "a man kicks#a/DET man/NOUN kick/VERB#{}#{}"


def write_sound(path: Path, seconds: float, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * round(seconds * rate)))


def read(
    folder: Path, name: str = "a.bvh", speaker: str = SPEAKER, seconds: float = 2.0
) -> tuple[Description, DescriptionReader]:
    """What describes a file of a folder, in which all .bvh and .npy files are motion."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    motion = [path for path in found if path.suffix in (".bvh", ".npy")]
    others = [path for path in found if path not in motion]
    with DescriptionReader(folder, motion, others, speaker) as reader:
        return reader.read(folder / name, seconds), reader


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "texts"),
    [
        ({"a.txt": "one\n\n  two  \n"}, ["one", "two"]),
        ({"a.bvh.txt": "whole name", "a.txt": "bare name"}, ["whole name"]),
        ({"a.caption": "of\ntwo lines\n"}, ["of\ntwo lines"]),
        ({"a.json": '{"caption": ["one", "two"]}'}, ["one", "two"]),
        ({"a.json": '{"prompt": "p"}', "metadata.csv": "file,text\na.bvh,t\n"}, ["p"]),
        ({"metadata.jsonl": '{"file_name": "a.bvh", "captions": ["x", ""]}'}, ["x"]),
        ({"metadata.csv": "file_name,text\na,without suffix\n"}, ["without suffix"]),
        ({"a.txt": "  \n", "metadata.csv": "file_name,text\na.bvh,row\n"}, ["row"]),
        ({"texts/a.txt": "in a folder"}, ["in a folder"]),
        ({"b.txt": "of another", "metadata.csv": "file_name,text\nb.bvh,t\n"}, []),
        ({"a.txt": "\ufeffwith a mark, dance #2"}, ["with a mark, dance #2"]),
    ],
)
def test_captions(tmp_path: Path, files: Mapping[str, str], texts: list[str]) -> None:
    described, _ = read(write(tmp_path, {"a.bvh": "", **files}))
    assert [caption.text for caption in described.captions] == texts


def test_the_folder_of_humanml3d(tmp_path: Path) -> None:
    """Its texts lie beside its features; clips without words and times are whole."""
    lines = [LINE.format(0.0, 0.0), LINE.format(1.5, 3.0), LINE.format("nan", "nan")]
    texts = "\n".join([*lines, LINE.format(4, 3), "#/X#0.0#0.0"])
    files = {"new_joint_vecs/M000001.npy": "", "texts/M000001.txt": texts}
    folder = write(tmp_path, {**files, "metadata.csv": "file_name,speaker\nnone.npy,x\n"})
    for place, name in ((folder, "new_joint_vecs/M000001.npy"), (folder / "new_joint_vecs", None)):
        described, reader = read(place, name or "M000001.npy")
        whole = Caption(text="a man kicks")
        part = Caption(text="a man kicks", start=1.5, stop=3.0)
        assert described.captions == (whole, part, whole)
        assert "captions that end before they begin are left out: 1" in reader.notes


def test_lines_that_only_look_like_humanml3d() -> None:
    for line in ("a#b#c", "1#2#3#x", "a#b#1#inf", "a#b#-1#2", "#"):
        assert parse_line(line) == Caption(text=line)
    assert parse_line("take #3#x/X#1#2") == Caption(text="take #3", start=1.0, stop=2.0)


def test_speakers(tmp_path: Path) -> None:
    write(tmp_path, {"2_scott_0_1_1.bvh": "", "dance1_subject3.bvh": "", "a.bvh": ""})
    assert read(tmp_path, "2_scott_0_1_1.bvh")[0].speaker == "scott"
    assert read(tmp_path, "a.bvh")[0].speaker == ""
    named = read(tmp_path, "dance1_subject3.bvh", r"(subject\d+)")[0]
    assert named.speaker == "subject3"
    (tmp_path / "metadata.csv").write_text("file_name,speaker_id\n2_scott_0_1_1.bvh,7\na.bvh,\n")
    assert read(tmp_path, "2_scott_0_1_1.bvh")[0].speaker == "7"
    for wrong in ("(", "none", "(a)(b)"):
        with pytest.raises(UserError, match="speaker must "):
            read(tmp_path, speaker=wrong)


@pytest.mark.parametrize("place", ["in/a.wav", "in/wave16k/a.wav", "wave16k/a.wav"])
def test_sound(tmp_path: Path, place: str) -> None:
    """It is as long as the motion, or ends before."""
    write(tmp_path, {"in/a.bvh": ""})
    write_sound(tmp_path / place, 3.0)
    for seconds, samples in ((2.0, 32000), (4.0, 48000)):
        audio = read(tmp_path / "in", seconds=seconds)[0].audio
        assert audio is not None and (audio.rate, audio.start, audio.stop) == (16000, 0, samples)
        assert (tmp_path / "in" / audio.path).resolve() == (tmp_path / place).resolve()


def test_sound_of_several_files_of_one_name(tmp_path: Path) -> None:
    write(tmp_path, {"in/deep/a.bvh": "", "in/b.bvh": ""})
    write_sound(tmp_path / "wav" / "x" / "a.wav", 1.0)
    audio = read(tmp_path / "in", "deep/a.bvh")[0].audio
    assert audio is not None and audio.path == "../wav/x/a.wav"
    write_sound(tmp_path / "wav" / "y" / "a.wav", 1.0)
    described, reader = read(tmp_path / "in", "deep/a.bvh")
    assert described.audio is None and any("may be of " in note for note in reader.notes)
    write_sound(tmp_path / "in" / "wav" / "z" / "a.wav", 1.0)
    audio = read(tmp_path / "in", "deep/a.bvh")[0].audio
    assert audio is not None and audio.path == "wav/z/a.wav"
    (tmp_path / "in" / "wav" / "z" / "a.wav").unlink()
    write_sound(tmp_path / "wav" / "deep" / "a.wav", 1.0)
    audio = read(tmp_path / "in", "deep/a.bvh")[0].audio
    assert audio is not None and audio.path == "../wav/deep/a.wav"


def test_sound_of_a_table(tmp_path: Path) -> None:
    row = "file_name,audio,audio_start,audio_stop\na.bvh,sounds/long.wav,8000,12000\n"
    write(tmp_path, {"a.bvh": "", "metadata.csv": row})
    write_sound(tmp_path / "sounds" / "long.wav", 1.0)
    expected = AudioSpan(path="sounds/long.wav", rate=16000, start=8000, stop=12000)
    assert read(tmp_path)[0].audio == expected


@pytest.mark.parametrize("start", ["x", "-1", "99999"])
def test_sound_that_cannot_be(tmp_path: Path, start: str) -> None:
    write(tmp_path, {"a.bvh": "", "metadata.csv": f"file,audio,audio_start\na.bvh,a.wav,{start}\n"})
    write_sound(tmp_path / "a.wav", 1.0)
    described, reader = read(tmp_path)
    assert described.audio is None
    assert any(
        note.startswith(f"{tmp_path / 'a.wav'}: no sound of a.bvh (") for note in reader.notes
    )
    (tmp_path / "a.wav").write_text("no sound")
    assert read(tmp_path)[0].audio is None


@pytest.mark.parametrize(
    "place", ["in/a.TextGrid", "in/a.textgrid", "in/textgrid/a.TextGrid", "textgrid/a.TextGrid"]
)
def test_words(tmp_path: Path, place: str) -> None:
    """They are from the tier of words, and end with the motion; silence is no word."""
    write(tmp_path, {"in/a.bvh": ""})
    words = [("", 0.0, 0.5), ("hello", 0.5, 1.5), ("größe", 1.5, 2.5), ("late", 2.5, 3.0)]
    tiers = {"phones": [("h", 0.5, 1.0)], "scott - Words": words}
    write_long(tmp_path / place, tiers, encoding="utf-16")
    described, reader = read(tmp_path / "in", seconds=2.0)
    assert described.words == (Word("hello", 0.5, 1.5), Word("größe", 1.5, 2.0))
    assert reader.notes == ["words before or after their motion are left out: 1"]
    inside = place.removeprefix("in/")
    assert reader.used == ({inside} if inside != place else frozenset())


def test_words_of_another_tier_and_of_none(tmp_path: Path) -> None:
    write(tmp_path, {"a.bvh": "", "b.bvh": "", "b.TextGrid": "broken"})
    write_long(tmp_path / "a.TextGrid", {"ORT": [("ja", 0.0, 1.0)], "MAU": [("j", 0.0, 0.5)]})
    described, reader = read(tmp_path)
    assert described.words == (Word("ja", 0.0, 1.0),)
    assert reader.notes == ['TextGrid files whose first tier, "ORT", is taken for words: 1']
    write_long(tmp_path / "a.TextGrid", {})
    for name, why in (("a", "it has no intervals"), ("b", "b.TextGrid cannot be read as a")):
        described, reader = read(tmp_path, f"{name}.bvh")
        assert described == Description()
        assert reader.notes[0].startswith(f"no words of {name}.bvh: ") and why in reader.notes[0]


def test_what_is_damaged_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"a.bvh": "", "a.json": "{", "metadata.csv": "file_name,text\nz.bvh,t\n"})
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(b"\xff\xff")
    described, reader = read(tmp_path)
    notes = "\n".join(reader.notes)
    assert described == Description()
    for part in (
        "a.json: ",
        "a.txt: ",
        "texts/a.txt: ",
        "rows of tables are of no motion file: z.bvh",
    ):
        assert part in notes
    (tmp_path / "metadata.csv").write_text("file_name,text\na,b,c\n")
    with pytest.raises(UserError, match=r"metadata\.csv cannot be read: line 2 has more values"):
        read(tmp_path)


def test_which_files_describe(tmp_path: Path) -> None:
    files = {"a.bvh": "", "a.txt": "x", "b.txt": "x", "deep/a.txt": "x", "texts/a.txt": "y"}
    _, reader = read(write(tmp_path, {**files, "metadata.csv": ""}))
    assert reader.used == {"a.txt", "metadata.csv"}
