"""Models of features of any number of channels: nothing is known of them, and everything works."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState

from motion import RVQVAE, cli
from motion.commands.detokenize import detokenize_file
from motion.commands.info import describe_file
from motion.commands.reconstruct import reconstruct_file
from motion.commands.render import render_file
from motion.commands.tokenize import tokenize_file
from motion.errors import MotionError
from motion.evaluate.feature_space import (
    evaluate_feature_folder,
    evaluate_features,
    make_feature_table,
    measure_features,
)
from motion.features.feature_files import read_features
from motion.features.recording import read_recording
from motion.train.losses import LossConfig, MotionLosses
from tests.motion.small_tokenizers import tiny_tokenizer
from wanvae.engine.files import FileError
from wanvae.errors import UserError

CHANNELS = 78


@pytest.fixture(scope="module")
def model() -> RVQVAE:
    return tiny_tokenizer(None, channels=CHANNELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    for name, frames in (("a", 41), ("b", 30)):
        generator = np.random.default_rng(frames)
        np.save(folder / f"{name}.npy", generator.normal(size=(frames, CHANNELS)))
    return folder


def test_tokens_and_back_is_reconstruction(tmp_path: Path, model: RVQVAE, folder: Path) -> None:
    source, tokens = folder / "a.npy", tmp_path / "t.npz"
    tokenize_file(model, source, tokens)
    detokenize_file(model, tokens, tmp_path / "b.npy")
    report = reconstruct_file(model, source, tmp_path / "c.npy")
    found = read_features(tmp_path / "b.npy")
    assert torch.equal(found, read_features(tmp_path / "c.npy")) and found.shape == (41, CHANNELS)
    assert report.joints is None and report.loss == ""
    errors = (found - read_features(source)).double().abs() / model.normalizer.std
    assert report.feature_error == pytest.approx(errors.mean().item(), rel=1e-6)


def test_what_needs_joints_says_so(tmp_path: Path, model: RVQVAE, folder: Path) -> None:
    tokenize_file(model, folder / "a.npy", tmp_path / "t.npz")
    with pytest.raises(FileError, match=r"b\.bvh must end in \.npy or \.mp4"):
        detokenize_file(model, tmp_path / "t.npz", tmp_path / "b.bvh")
    with pytest.raises(MotionError, match="what the 78 channels of the features are is not known"):
        render_file(folder / "a.npy", tmp_path / "a.png", model)
    recording = read_recording(folder / "a.npy", model.config)
    for find in (recording.joints_of, recording.restore):
        with pytest.raises(MotionError, match="not known"):
            find(recording.features)


def test_an_evaluation_is_in_the_space_of_the_features(model: RVQVAE, folder: Path) -> None:
    found = evaluate_feature_folder(model, folder, PartialState())
    assert [name for name, _ in found.files] == ["a.npy", "b.npy"] and not found.failures
    recordings = [read_recording(folder / name, model.config) for name, _ in found.files]
    alone = [measure_features(model, recording) for recording in recordings]
    assert found.files[0][1] == alone[0].summary
    assert found.whole.summary == (alone[0] + alone[1]).summary
    decoded = model.decode(model.encode(recordings[0].features[None]), 41)[0]
    errors = (decoded - recordings[0].features).double().abs() / model.normalizer.std
    assert torch.allclose(alone[0].channel_errors, errors.mean(0))
    one = alone[0].summary
    assert len(one.error) == 2 and one.error[-1] == pytest.approx(errors.mean().item())
    whole = evaluate_features(model, recordings)
    assert whole.summary.error[-1] == pytest.approx(found.whole.summary.error[-1])
    lines = list(make_feature_table(found.whole))
    assert lines[0] == "71 frames of 78 channels" and "standard deviations" in lines[1]


def test_files_of_another_width_are_left_out(tmp_path: Path, model: RVQVAE, folder: Path) -> None:
    np.save(tmp_path / "a.npy", np.load(folder / "a.npy"))
    np.save(tmp_path / "b.npy", np.zeros((9, 77)))
    found = evaluate_feature_folder(model, tmp_path, PartialState())
    assert len(found.files) == 1 and "has 77 channels, but the model has 78" in found.failures[0]
    (tmp_path / "a.npy").unlink()
    with pytest.raises(MotionError, match=r"b\.npy has 77 channels"):
        evaluate_feature_folder(model, tmp_path, PartialState())


def test_the_command_writes_figures(
    tmp_path: Path, model: RVQVAE, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "m.safetensors")
    output = tmp_path / "out"
    arguments = [folder, "--output", output, "--checkpoint", tmp_path / "m.safetensors"]
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    assert "no report.html is written" in capsys.readouterr().out
    content = json.loads((output / "evaluation.json").read_text())
    assert content["frames"] == 71 and len(content["channel_errors"]) == CHANNELS
    rows = (output / "evaluation.csv").read_text().splitlines()
    assert rows[0].startswith("file,frames,error_1,error_2,codes_used_1") and len(rows) == 3


def test_there_is_no_position_term(model: RVQVAE) -> None:
    losses = MotionLosses(LossConfig(), model, None)
    terms = losses(model(torch.randn(2, 16, CHANNELS)))
    assert set(terms) == {"features", "commitment"}
    with pytest.raises(UserError, match="what the features are is not known"):
        MotionLosses(LossConfig(acceleration=1.0), model, None)
    with pytest.raises(UserError, match="above 0 if position and velocity are 0"):
        MotionLosses(LossConfig(features=0.0), model, None)


def test_info_names_what_it_knows(tmp_path: Path, folder: Path) -> None:
    first = next(iter(describe_file(folder / "a.npy")))
    assert first.endswith("78 channels of no known kind")
    np.save(tmp_path / "j.npy", np.random.default_rng(0).normal(size=(4, 22, 3)))
    lines = list(describe_file(tmp_path / "j.npy"))
    assert lines[0].endswith("positions of 22 joints") and "assumed" in lines[2]
    np.save(tmp_path / "s.npy", np.zeros((4, 272), np.float32))
    assert "features of MotionStreamer, 272 channels" in next(
        iter(describe_file(tmp_path / "s.npy"))
    )
