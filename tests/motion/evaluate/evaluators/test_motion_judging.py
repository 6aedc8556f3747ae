"""``evaluate --evaluators``: a model judged as papers do, on files made up here."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState

from motion import RVQVAE
from motion.cli import main
from motion.errors import MotionError
from motion.evaluate.evaluators.judging import Judgement, judge
from motion.evaluate.evaluators.loading import load_evaluators
from tests.motion.evaluate.evaluators.published import NumpyEvaluators, write_evaluators
from tests.motion.helpers import in_processes
from tests.motion.small_tokenizers import tiny_tokenizer

# Frames of files. The evaluators take from 40 to 199.
LENGTHS = {"000": 40, "001": 199, "002": 67, "003": 39, "004": 200, "005": 90, "006": 128}
TEXTS = {
    "000": "a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\nslow#slowly/ADV#0.0#0.0\n",
    "001": "jog left#jog/VERB left/ADJ#0.0#0.0\njog#jog/VERB#2.0#5.0\nwalk#walk/VERB#1.0#2.0\n",
    "002": "a table#a/DET table/NOUN#nan#nan\n",
    "005": "jog#jog/VERB#0.5#4.5\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluators(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def tokenizer() -> RVQVAE:
    """A small tokenizer of features of HumanML3D."""
    return tiny_tokenizer(None, channels=263)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with ``new_joint_vecs`` and ``texts``."""
    for name in ("new_joint_vecs", "texts"):
        (tmp_path / "data" / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, frames in LENGTHS.items():
        features = generator.normal(size=(frames, 263)).astype(np.float32)
        np.save(tmp_path / "data" / "new_joint_vecs" / f"{name}.npy", features)
    for name, text in TEXTS.items():
        (tmp_path / "data" / "texts" / f"{name}.txt").write_text(text)
    return tmp_path / "data"


def files_of(data: Path) -> list[Path]:
    return sorted((data / "new_joint_vecs").glob("*.npy"))


@pytest.mark.filterwarnings("ignore:the features of the motion")
def test_a_judgement_is_that_of_the_definitions(data, home, tokenizer, processes):
    evaluators, plain = load_evaluators(home, 263, texts=True), NumpyEvaluators(home)
    found = judge(tokenizer, evaluators, files_of(data), processes, texts=data / "texts")
    # Whole motions of 000, 001 and 002, and parts of 001 and 005; a part of 20 frames is too short.
    parts = [("000", 0, 40), ("001", 0, 196), ("001", 40, 60), ("002", 0, 64), ("005", 10, 80)]
    assert (found.motions, found.left_out, found.without_text) == (5, 3, 1)
    rows, decoded = [], []
    for name, start, frames in parts:
        features = np.load(data / "new_joint_vecs" / f"{name}.npy")[start : start + frames]
        motion = torch.from_numpy(features)[None]
        again = tokenizer.decode(tokenizer.encode(motion), frames)[0]
        rows.append(plain.motion(features.astype(float)))
        decoded.append(plain.motion(again.double().numpy()))
    one, other = np.stack(decoded), np.stack(rows)
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected += np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots
    assert found.fid == pytest.approx(expected, rel=1e-3, abs=1e-4)
    walk, slow = (
        [("sos", 14), *words, ("eos", 14)]
        for words in ([("a", 2), ("person", 1), ("walk", 12)], [("slowly", 13)])
    )
    texts = [
        [plain.text(walk), plain.text(slow)],
        [plain.text([("sos", 14), ("jog", 12), ("left", 9), ("eos", 14)])],
        [plain.text([("sos", 14), ("jog", 12), ("eos", 14)])],
        [plain.text([("sos", 14), ("a", 2), ("table", 1), ("eos", 14)])],
        [plain.text([("sos", 14), ("jog", 12), ("eos", 14)])],
    ]
    for vectors, figures in ((other, found.originals), (one, found.reconstructions)):
        distances = [
            [np.linalg.norm(t - v) for t in text] for text, v in zip(texts, vectors, strict=True)
        ]
        least, most = (np.mean([pick(each) for each in distances]) for pick in (min, max))
        mean, interval = figures.mm_distance
        assert least - 1e-5 <= mean <= most + 1e-5 and 0 < interval < most
        assert figures.r_precision == ()
        assert 0 < figures.diversity.mean < 2 * np.abs(vectors).sum()


@pytest.mark.filterwarnings("ignore:the features of the motion")
@pytest.mark.parametrize("count", [2, 4])
def test_a_judgement_does_not_depend_on_how_many_processes(
    data, home, tokenizer, processes, monkeypatch, count
):
    evaluators = load_evaluators(home, 263, texts=True)
    texts = data / "texts"
    one = judge(tokenizer, evaluators, files_of(data), processes, texts=texts)

    def judged(index: int) -> Judgement:
        process = SimpleNamespace(
            num_processes=count, process_index=index, is_main_process=index == 0
        )
        return judge(tokenizer, evaluators, files_of(data), process, texts=texts)

    module = "motion.evaluate.evaluators.judging"
    for several in in_processes(monkeypatch, count, judged, module):
        assert several.fid == pytest.approx(one.fid, rel=1e-4)
        for first, second in (
            (several.originals, one.originals),
            (several.reconstructions, one.reconstructions),
        ):
            assert first.diversity == pytest.approx(second.diversity, rel=1e-4)
            assert first.mm_distance == pytest.approx(second.mm_distance, rel=1e-4)


@pytest.mark.filterwarnings("ignore:the features of the motion")
def test_too_few_motions_are_told(data, home, tokenizer, processes: PartialState):
    evaluators = load_evaluators(home, 263)
    files = [data / "new_joint_vecs" / f"{name}.npy" for name in ("000", "003", "004")]
    with pytest.raises(MotionError, match=r"at least 2 motions of 40 to 199 frames, not 1: 2 of"):
        judge(tokenizer, evaluators, files, processes)


@pytest.mark.filterwarnings("ignore:the features of the motion")
def test_the_command_prints_and_writes_what_the_evaluators_say(
    data, home, tokenizer, tmp_path, capsys, new_processes
):
    checkpoint, output = str(tmp_path / "model.safetensors"), tmp_path / "judged"
    tokenizer.save_pretrained(checkpoint)
    names = tmp_path / "test.txt"
    names.write_text("\n".join(name for name in LENGTHS if name != "006"))
    command = ["evaluate", str(data), "--checkpoint", checkpoint, "--device", "cpu"]
    command += ["--evaluators", str(home), "--names", str(names), "--figures", "0"]
    assert main([*command, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"judged by {home}: 4 motions")
    assert lines[start + 1].split() == ["original", "reconstruction"]
    assert [line.split()[0] for line in lines[start + 2 : start + 4]] == ["FID", "diversity"]
    notes = [line for line in lines if line.startswith("note: ")]
    assert "need the texts of the motions, --texts FOLDER" in notes[0]
    assert "4 motions are too few for vectors of 8 numbers" in notes[1]
    assert notes[2:] == [
        "note: diversity is of 4 pairs, not of 300 as in papers",
        "note: 2 motions are too short or too long for the evaluators",
    ]
    written = json.loads((output / "evaluation.json").read_text())
    judged = written["evaluators"]
    assert len(written["files"]) == 6 and judged["motions"] == 4
    assert judged["originals"]["mm_distance"] is None and judged["originals"]["r_precision"] == []
    assert set(judged["originals"]["diversity"]) == {"mean", "interval"}
    assert f"{judged['fid']:.4f}" in lines[start + 2]
    page = (output / "report.html").read_text()
    assert "Evaluators" in page and f"{judged['fid']:.3f}" in page

    names.write_text("\n".join([*LENGTHS, "none"]))
    assert main([*command, "--texts", str(data / "texts")]) == 0
    printed = capsys.readouterr().out
    assert "note: 1 of the 8 files of --names are not there" in printed
    assert "MM-distance " in printed and "R-precision needs at least 32 motions" in printed
    assert "note: 1 files have no text and were not judged by the evaluators" in printed


@pytest.mark.filterwarnings("ignore:the features of the motion")
def test_texts_that_cannot_be_read_are_named_and_left_out(
    data, home, tokenizer, tmp_path, capsys, new_processes
):
    checkpoint, output = str(tmp_path / "model.safetensors"), tmp_path / "judged"
    tokenizer.save_pretrained(checkpoint)
    # 000 has no such line, and the times of 002 are no times.
    (data / "texts" / "000.txt").write_text("a person walks\n")
    (data / "texts" / "002.txt").write_text("a table#a/DET table/NOUN#0.0#inf\n")
    command = ["evaluate", str(data), "--checkpoint", checkpoint, "--device", "cpu"]
    command += ["--evaluators", str(home), "--texts", str(data / "texts"), "--figures", "0"]
    assert main([*command, "--output", str(output)]) == 1
    printed, said = capsys.readouterr()
    assert f"judged by {home}: 3 motions" in printed
    assert "note: 2 files have texts that cannot be read, and were not judged by" in printed
    for name in ("000", "002"):
        assert f"left out: {data / 'texts' / name}.txt, line 1 is not caption#word" in printed
    assert "2 of 7 files cannot be read" in said
    written = json.loads((output / "evaluation.json").read_text())
    assert len(written["files"]) == 7 and len(written["evaluators"]["failures"]) == 2


@pytest.mark.filterwarnings("ignore:the features of the motion")
def test_what_is_measured_is_kept_if_the_evaluators_cannot_judge(
    data, home, tokenizer, tmp_path, capsys, new_processes
):
    checkpoint, output = str(tmp_path / "model.safetensors"), tmp_path / "judged"
    tokenizer.save_pretrained(checkpoint)
    command = ["evaluate", str(files_of(data)[0]), "--checkpoint", checkpoint, "--device", "cpu"]
    assert main([*command, "--evaluators", str(home), "--output", str(output)]) == 1
    printed, said = capsys.readouterr()
    assert "40 frames" in printed and "judged by" not in printed
    assert "the evaluators need at least 2 motions of 40 to 199 frames, not 1" in said
    assert json.loads((output / "evaluation.json").read_text())["evaluators"] is None
    assert (output / "report.html").exists()


@pytest.mark.filterwarnings("ignore:the features of the motion")
def test_r_precision_is_told_for_enough_motions(home, tokenizer, tmp_path, capsys, new_processes):
    checkpoint, data = str(tmp_path / "model.safetensors"), tmp_path / "data"
    tokenizer.save_pretrained(checkpoint)
    (data / "texts").mkdir(parents=True)
    (data / "new_joint_vecs").mkdir()
    generator = np.random.default_rng(0)
    for number in range(33):
        features = generator.normal(size=(40, 263)).astype(np.float32)
        np.save(data / "new_joint_vecs" / f"{number:03}.npy", features)
        (data / "texts" / f"{number:03}.txt").write_text("walk#walk/VERB#0.0#0.0\n")
    command = ["evaluate", str(data), "--checkpoint", checkpoint, "--device", "cpu"]
    assert main([*command, "--evaluators", str(home), "--texts", str(data / "texts")]) == 0
    printed = capsys.readouterr().out
    for rank in (1, 2, 3):
        assert f"R-precision, top {rank} " in printed


def test_wrong_options_are_refused_before_work(
    data, home, tokenizer, tmp_path, capsys, new_processes
):
    checkpoint = str(tmp_path / "model.safetensors")
    tokenizer.save_pretrained(checkpoint)
    command = ["evaluate", str(data), "--checkpoint", checkpoint, "--device", "cpu"]
    nothing = str(tmp_path / "nothing")
    for options, message in (
        (["--texts", str(data / "texts")], "--texts must be with --evaluators"),
        (["--evaluators", str(home), "--texts", nothing], "--texts must be a folder, not"),
        (["--evaluators", nothing], "the evaluators are published with https://github.com/"),
        (["--names", nothing], "cannot be read as a list of names"),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("other\n")
    assert main([*command, "--names", str(tmp_path / "names.txt")]) == 1
    assert "has none of the 1 files that are named" in capsys.readouterr().err
