"""Features that are normalized, or are not, where a model wants the other."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motion import RVQVAE
from motion.commands.reconstruct import reconstruct_file
from motion.commands.render import render_file
from motion.commands.tokenize import tokenize_file, tokenize_folder
from motion.evaluate.folder import evaluate_folder
from motion.features.humanml3d import rotation_channels, write_features
from motion.features.rotations import to_rot6d
from motion.features.statistics import FeatureStatistics
from motion.features.units import are_in_own_units
from motion.train.run import MotionTraining, TrainConfig
from motion.train.windows import DataConfig
from tests.motion.small_tokenizers import tiny_tokenizer, write_walks

NOT_NORMALIZED = "are not normalized, and the model has no mean"
WRONG_PLACES = "seem to be normalized, so errors in millimetres and pictures are wrong"
TWICE = "are normalized already, and the model normalizes them again"


def own_features(channels: int, seed: int, frames: int = 30) -> Tensor:
    """Random features with rotations of length 1, as HumanML3D and KIT have them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(frames, channels, generator=generator)
    place = rotation_channels(channels)
    joints = (place.stop - place.start) // 6
    # The joints turn a little, as people's do.
    vectors = torch.randn(1, joints, 3, generator=generator).repeat(frames, 1, 1)
    vectors += 0.3 * torch.randn(frames, joints, 3, generator=generator)
    features[:, place] = to_rot6d(roma.rotvec_to_rotmat(vectors), "columns").flatten(1)
    return features


@settings(max_examples=20, deadline=None)
@given(channels=st.sampled_from([263, 251]), seed=st.integers(0, 999), padding=st.integers(0, 90))
def test_values_tell_whether_features_are_normalized(channels, seed, padding):
    own = own_features(channels, seed)
    statistics = FeatureStatistics.fit([own])
    normalized = (own - statistics.mean) / statistics.std
    assert are_in_own_units(torch.cat([own, torch.zeros(padding, channels)]))
    assert not are_in_own_units(normalized)
    assert not are_in_own_units(torch.randn(padding + 1, channels))


def set_normalizer(model: RVQVAE, statistics: FeatureStatistics | None) -> RVQVAE:
    if statistics is None:
        channels = model.config.channels
        statistics = FeatureStatistics(torch.zeros(channels), torch.ones(channels))
    model.normalizer.set(statistics)
    return model


Work = Callable[[RVQVAE, Path, Path, PartialState], object]
WORKS: dict[str, Work] = {
    "tokenize": lambda model, file, out, _: tokenize_file(model, file, out / "t.npz"),
    "tokenize a folder": lambda model, file, out, processes: tokenize_folder(
        model, file.parent, out, processes
    ),
    "reconstruct": lambda model, file, out, _: reconstruct_file(
        model, file, out / f"a{file.suffix}"
    ),
    "render": lambda model, file, out, _: render_file(file, out / "a.png", model),
    "evaluate": lambda model, file, _, processes: evaluate_folder(model, file.parent, processes),
}


def texts_of(work: Work, model: RVQVAE, file: Path, out: Path, processes: PartialState) -> set[str]:
    out.mkdir(exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work(model, file, out, processes)
    return {str(warning.message) for warning in caught}


@pytest.mark.parametrize("name", WORKS)
def test_it_is_said_once_wherever_features_go_into_a_model(
    tmp_path: Path, processes: PartialState, name: str
) -> None:
    model, own = tiny_tokenizer(None, channels=263), own_features(263, 0)
    statistics = FeatureStatistics.fit([own])
    normalized = (own - statistics.mean) / statistics.std
    folder = tmp_path / "in"
    folder.mkdir()
    for features, of_model, expected in (
        (own, None, NOT_NORMALIZED),
        (normalized, statistics, TWICE),
        (own, statistics, None),
        (normalized, None, None if name.startswith("tokenize") else WRONG_PLACES),
    ):
        for file in ("a.npy", "b.npy"):
            write_features(folder / file, features)
        set_normalizer(model, of_model)
        out = tmp_path / f"out{expected is None}{of_model is None}"
        texts = texts_of(WORKS[name], model, folder / "a.npy", out, processes)
        assert len(texts) == (expected is not None)
        assert all(str(expected) in text for text in texts)


@pytest.mark.parametrize("name", WORKS)
def test_motion_files_are_never_normalized(
    tmp_path: Path, processes: PartialState, name: str
) -> None:
    write_walks(tmp_path / "in")
    model = tiny_tokenizer()
    file = tmp_path / "in" / "a.bvh"
    assert not texts_of(WORKS[name], model, file, tmp_path / "out", processes)
    set_normalizer(model, None)
    (text,) = texts_of(WORKS[name], model, file, tmp_path / "out2", processes)
    assert NOT_NORMALIZED in text


@pytest.mark.parametrize("channels", [263, 251])
def test_training_says_once_that_features_are_normalized_already(
    tmp_path: Path, processes: PartialState, channels: int
) -> None:
    own = own_features(channels, 0, frames=80)
    statistics = FeatureStatistics.fit([own])
    np.save(tmp_path / "Mean.npy", statistics.mean.numpy())
    np.save(tmp_path / "Std.npy", statistics.std.numpy())
    folder = tmp_path / "new_joint_vecs"
    folder.mkdir()
    model = tiny_tokenizer(None, channels=channels).config
    config = TrainConfig(model=model, data=DataConfig(folder=str(tmp_path)))
    for features, expected in ((own, []), ((own - statistics.mean) / statistics.std, [TWICE])):
        for name in ("a.npy", "b.npy"):
            write_features(folder / name, features)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            MotionTraining(config, processes)
        assert len(caught) == len(expected)
        assert all(TWICE in str(warning.message) for warning in caught)


@pytest.mark.parametrize("channels", [263, 251])
def test_drawing_without_a_model_says_that_features_seem_normalized(
    tmp_path: Path, channels: int
) -> None:
    own = own_features(channels, 0)
    statistics = FeatureStatistics.fit([own])
    write_features(tmp_path / "a.npy", (own - statistics.mean) / statistics.std)
    with pytest.warns(UserWarning, match="seem to be normalized, because their rotations"):
        render_file(tmp_path / "a.npy", tmp_path / "a.png")
    write_features(tmp_path / "a.npy", own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render_file(tmp_path / "a.npy", tmp_path / "a.png")
