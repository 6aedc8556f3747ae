"""The evaluators compute what their definitions say, and say where they come from if missing."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from motion.errors import MotionError
from motion.evaluate.evaluators.captions import Caption, read_captions
from motion.evaluate.evaluators.loading import load_evaluators
from motion.evaluate.evaluators.words import WordVectors
from tests.motion.evaluate.evaluators.published import NumpyEvaluators, write_evaluators
from wanvae.engine.checkpoint import CheckpointError
from wanvae.errors import UserError


@pytest.mark.parametrize("channels", [263, 251])
def test_vectors_of_motion_are_those_of_numpy(tmp_path, channels):
    home = write_evaluators(tmp_path, channels)
    evaluators = load_evaluators(home, channels)
    plain = NumpyEvaluators(home)
    generator = torch.Generator().manual_seed(1)
    lengths = (196, 40, 64, 41, 4)
    motions = [torch.randn(length, channels, generator=generator) for length in lengths]
    vectors = evaluators.embed_motions(motions).numpy()
    for vector, motion in zip(vectors, motions, strict=True):
        np.testing.assert_allclose(vector, plain.motion(motion.double().numpy()), atol=1e-5)


def test_vectors_of_captions_are_those_of_numpy(tmp_path):
    home = write_evaluators(tmp_path)
    evaluators, plain = load_evaluators(home, 263, texts=True), NumpyEvaluators(home)
    # Parts of speech: VERB 0, NOUN 1, DET 2, Loc_VIP 9, Act_VIP 12, Desc_VIP 13, OTHER 14.
    ends = ("sos", 14), ("eos", 14)
    for tokens, words in (
        ("a/DET person/NOUN walk/VERB", [("a", 2), ("person", 1), ("walk", 12)]),
        ("jog/NOUN slowly/ADV left/ADJ", [("jog", 12), ("slowly", 13), ("left", 9)]),
        ("xylophone/NOUN walks/VERB table/STRANGE", [("unk", 14), ("unk", 14), ("table", 14)]),
        ("a/b/DET", [("unk", 14)]),
        (" ".join(["person/NOUN"] * 25), [("person", 1)] * 20),
        ("", []),
    ):
        caption = Caption("", tuple(tokens.split()))
        other = Caption("", ("walk/VERB",) * 9)  # of another length in the same batch
        vector = evaluators.embed_captions([caption, other])[0].numpy()
        np.testing.assert_allclose(vector, plain.text([ends[0], *words, ends[1]]), atol=1e-5)


def test_folders_are_found_where_publications_have_them(tmp_path):
    home = write_evaluators(tmp_path)
    whole = load_evaluators(home, 263, texts=True)
    above = load_evaluators(home.parent, 263, texts=True)
    assert above.folder == home and whole.words is not None and above.words is not None
    assert load_evaluators(home, 263).words is None
    (home / "Comp_v6_KLD01").rename(home / "Comp_v6_KLD005")
    shutil.move(tmp_path / "glove", home / "glove")
    moved = load_evaluators(home, 263, texts=True)
    assert torch.equal(moved.statistics.mean, whole.statistics.mean)


def test_missing_files_say_where_they_come_from(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(MotionError, match=r"finest\.tar: .*EricGuo5513/text-to-motion.*momask"):
            load_evaluators(folder, 263)
    with pytest.raises(MotionError, match=r"nothing does not exist, so it has no text_mot_match"):
        load_evaluators(tmp_path / "nothing", 263)
    home = write_evaluators(tmp_path)
    with pytest.raises(MotionError, match=r"KIT, 251, not the 330 channels of this model"):
        load_evaluators(home, 330)
    with pytest.raises(MotionError, match="is for features of 263 channels, but the model has 251"):
        load_evaluators(home, 251)
    shutil.rmtree(tmp_path / "glove")
    with pytest.raises(
        MotionError, match=r"no folder glove with our_vab_data\.npy.*download_glove"
    ):
        load_evaluators(home, 263, texts=True)
    shutil.rmtree(home / "Comp_v6_KLD01")
    with pytest.raises(
        MotionError, match=r"no mean\.npy and std\.npy in one of Comp_v6_KLD01/meta"
    ):
        load_evaluators(home, 263)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm"),)


def test_nothing_in_the_files_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = write_evaluators(tmp_path)
    for name in ("our_vab_words.pkl", "our_vab_idx.pkl"):
        file = tmp_path / "glove" / name
        before = file.read_bytes()
        file.write_bytes(pickle.dumps([Hostile()]))
        with pytest.raises(MotionError, match=rf"{name} is no pickle"):
            load_evaluators(home, 263, texts=True)
        file.write_bytes(before)
    weights = home / "text_mot_match" / "model" / "finest.tar"
    torch.save({"movement_encoder": Hostile()}, weights)
    with pytest.raises(CheckpointError, match="not loaded"):
        load_evaluators(home, 263)
    assert not Path("harm").exists()


def test_damaged_files_are_told(tmp_path):
    home = write_evaluators(tmp_path)
    weights = home / "text_mot_match" / "model" / "finest.tar"
    content = torch.load(weights, weights_only=True)
    del content["motion_encoder"]["gru.bias_hh_l0"]
    torch.save(content, weights)
    with pytest.raises(MotionError, match=r"holds no motion_encoder .*gru\.bias_hh_l0"):
        load_evaluators(home, 263)
    torch.save({name: content[name] for name in ("movement_encoder", "text_encoder")}, weights)
    with pytest.raises(MotionError, match="holds no motion_encoder of the evaluators"):
        load_evaluators(home, 263)
    torch.save([1], weights)
    with pytest.raises(MotionError, match="holds no networks"):
        load_evaluators(home, 263)
    (tmp_path / "glove" / "our_vab_idx.pkl").write_bytes(pickle.dumps({"unk": 99}))
    with pytest.raises(MotionError, match="rows must be from 0 to 9"):
        WordVectors.load(tmp_path / "glove")
    (tmp_path / "glove" / "our_vab_idx.pkl").write_bytes(pickle.dumps(["unk"]))
    with pytest.raises(MotionError, match="a list of words and a dict of rows"):
        WordVectors.load(tmp_path / "glove")


def test_wrong_motion_is_refused(tmp_path):
    evaluators = load_evaluators(write_evaluators(tmp_path), 263)
    for shape, message in (
        ((40, 251), r"must be \(T, 263\), not \(40, 251\)"),
        ((3, 263), "4 to 196 frames, not 3"),
        ((197, 263), "not 197"),
    ):
        with pytest.raises(UserError, match=message):
            evaluators.embed_motions([torch.zeros(shape)])
    with pytest.raises(UserError, match="without vectors of words"):
        evaluators.embed_captions([Caption("", ())])


def test_captions_are_read_as_humanml3d_has_them(tmp_path):
    file = tmp_path / "000001.txt"
    file.write_text(
        "a person walks.#a/DET person/NOUN walk/VERB#0.0#0.0\n\n"
        "they jog#jog/VERB#1.5#3.0\nnone#none/NOUN#nan#nan\n"
    )
    whole, part, unknown = read_captions(file)
    assert whole == Caption("a person walks.", ("a/DET", "person/NOUN", "walk/VERB"))
    assert whole.is_whole and unknown.is_whole
    assert (part.start, part.end, part.is_whole) == (1.5, 3.0, False)
    text = file.read_text()
    file.write_text(text, encoding="utf-8-sig")
    assert read_captions(file) == [whole, part, unknown]
    for times in ("-1.0#2.0", "0.0#inf"):
        file.write_text(f"they jog#jog/VERB#{times}\n")
        with pytest.raises(MotionError, match=r"000001\.txt, line 1 is not caption#word/PART"):
            read_captions(file)
    file.write_text("a person walks\n")
    with pytest.raises(MotionError, match=r"000001\.txt, line 1 is not caption#word/PART"):
        read_captions(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(MotionError, match="cannot be read as captions"):
        read_captions(file)
