"""Training motion: which windows are drawn, what is left out, and how features are scaled."""

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from motion.config import FeatureSpec, RVQVAEConfig
from motion.errors import MotionError
from motion.features.heading import find_headings
from motion.features.recording import read_recording
from motion.features.rotations import extract_features, from_rot6d
from motion.features.statistics import FeatureStatistics
from motion.features.turning import turn_features
from motion.files.formats import read_in_file_order, write_motion
from motion.skeleton.mirror import mirror
from motion.skeleton.sample import walk
from motion.train.windows import DataConfig, MotionWindows, load_data
from tests.motion.helpers import depth_first, largest_difference, random_clip, random_skeleton

JOINTS = 4
SPEC = FeatureSpec(rot6d="rows")
MODEL = RVQVAEConfig(channels=SPEC.channels(JOINTS), features=SPEC, fps=30.0)
HUMANML3D = RVQVAEConfig()


def numbered(*lengths):
    """Recordings of two channels: which one it is, and which frame."""
    return [
        torch.stack([torch.full((n,), float(i)), torch.arange(float(n))], 1)
        for i, n in enumerate(lengths)
    ]


def test_every_window_is_drawn_as_often_as_any_other():
    lengths, window, draws = (9, 4, 6), 4, 3000
    windows = MotionWindows(numbered(*lengths), window, seed=0)
    starts = Counter()
    for number in range(draws):
        sample = windows[number]
        assert sample.shape == (window, 2) and sample.dtype == torch.float32
        (recording,) = sample[:, 0].unique().tolist()
        assert sample[:, 1].diff().eq(1).all()
        starts[recording, sample[0, 1].item()] += 1
    expected = {(i, s) for i, n in enumerate(lengths) for s in range(n - window + 1)}
    assert starts.keys() == expected
    mean = draws / len(expected)
    assert all(abs(count - mean) < 5 * mean**0.5 for count in starts.values())


def test_a_sample_follows_from_seed_and_number_alone():
    recordings = numbered(50, 70)
    one, other = (MotionWindows(recordings, 8, seed=3) for _ in range(2))
    backwards = {number: other[number] for number in reversed(range(30))}
    assert all(torch.equal(one[number], backwards[number]) for number in range(30))
    elsewhere = MotionWindows(recordings, 8, seed=4)
    assert not all(torch.equal(one[number], elsewhere[number]) for number in range(30))


def save(folder, name, frames, *, joints=JOINTS, seed=0):
    folder.mkdir(exist_ok=True)
    write_motion(folder / name, random_clip(random_skeleton(joints, seed=seed), frames))


def load(folder, model=MODEL, report=True, skeleton=None, **changes):
    config = DataConfig(**{"folder": str(folder), "window": 8, **changes})
    return load_data(config, model, seed=0, report=report, skeleton=skeleton)


def test_what_is_held_out_is_never_drawn_nor_counted(tmp_path):
    save(tmp_path, "a.bvh", 40)
    save(tmp_path, "b.bvh", 20)
    data = load(tmp_path, held_out=0.25)
    whole = [read_recording(tmp_path / name, MODEL) for name in ("a.bvh", "b.bvh")]
    trained = [whole[0].features[:30], whole[1].features[:15]]
    assert [len(recording) for recording in data.held_out] == [10, 5]
    for recording, features in zip(data.held_out, whole, strict=True):
        assert torch.equal(recording.features, features.features[-len(recording) :])
    possible = [part[start : start + 8] for part in trained for start in range(len(part) - 7)]
    for number in range(200):
        assert any(torch.equal(data.windows[number], window) for window in possible)
    expected = FeatureStatistics.fit(trained)
    assert torch.equal(data.statistics.mean, expected.mean)
    assert torch.equal(data.statistics.std, expected.std)


def test_a_share_however_small_is_held_out(tmp_path):
    save(tmp_path, "a.bvh", 40)
    assert [len(r) for r in load(tmp_path, held_out=1e-6).held_out] == [1]
    assert load(tmp_path).held_out == ()


def test_a_file_is_a_folder_of_one(tmp_path):
    save(tmp_path, "a.bvh", 10)
    save(tmp_path, "b.bvh", 12)
    data = load(tmp_path / "b.bvh")
    assert [len(features) for features in data.windows.recordings] == [12]


def test_what_cannot_be_used_is_named_once(tmp_path):
    save(tmp_path, "good.bvh", 10)
    save(tmp_path, "short.bvh", 7)
    save(tmp_path, "large.bvh", 10, joints=5)
    (tmp_path / "torn.bvh").write_text("HIERARCHY")
    with pytest.warns(UserWarning) as caught:
        data = load(tmp_path)
    assert len(data.windows.recordings) == 1
    broken, short = (str(warning.message) for warning in caught)
    assert broken.startswith("2 files in") and "left out" in broken
    assert broken.count("large.bvh") == broken.count("torn.bvh") == 1
    assert short.startswith("1 recordings in") and "short.bvh: 7 frames" in short
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, report=False)


def test_a_warning_names_the_first_few(tmp_path):
    save(tmp_path, "good.bvh", 10)
    for number in range(14):
        (tmp_path / f"torn{number:02}.bvh").write_text("")
    with pytest.warns(UserWarning, match="and 4 more") as caught:
        load(tmp_path)
    assert "torn09" in str(caught[0].message) and "torn10" not in str(caught[0].message)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no .bvh or .npz or .pkl files"),
        ({"short.bvh": 7, "long.bvh": 10}, "8 frames to train on, the longest has 7: lower data"),
        ({"large.bvh": None}, r"can be used, of 1 files; the first: .*large.bvh"),
    ],
)
def test_without_usable_motion_there_is_one_error(tmp_path, files, message):
    for name, frames in files.items():
        save(tmp_path, name, frames or 10, joints=5 if frames is None else JOINTS)
    with pytest.raises(MotionError, match=message):
        load(tmp_path, held_out=0.25)


def test_recordings_of_several_skeletons_are_refused(tmp_path):
    save(tmp_path, "a.bvh", 10)
    clip = random_clip(random_skeleton(JOINTS))
    renamed = replace(clip.skeleton, names=("hips", *clip.skeleton.names[1:]))
    write_motion(tmp_path / "b.bvh", replace(clip, skeleton=renamed))
    with pytest.raises(MotionError, match=r"a\.bvh and .*b\.bvh have different joints"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore:the joints of the motion have another order")
def test_files_with_another_order_are_matched(tmp_path):
    """With the first file, and with the skeleton of a model, which other files do not have."""
    save(tmp_path, "a.bvh", 10, seed=1)
    clip = read_in_file_order(tmp_path / "a.bvh")
    skeleton = depth_first(clip.skeleton)
    assert skeleton.names != clip.skeleton.names
    order = [clip.skeleton.names.index(name) for name in skeleton.names]
    other = replace(clip, skeleton=skeleton, rotations=clip.rotations[:, order])
    write_motion(tmp_path / "b.bvh", other)
    data = load(tmp_path)
    one, two = data.windows.recordings
    assert data.skeleton.names == clip.skeleton.names
    assert largest_difference(one, two) < 1e-5

    data = load(tmp_path, skeleton=skeleton)
    assert data.skeleton.names == skeleton.names
    assert largest_difference(data.windows.recordings[0], data.windows.recordings[1]) < 1e-5
    renamed = replace(skeleton, names=("hips", *skeleton.names[1:]))
    write_motion(tmp_path / "a.bvh", replace(other, skeleton=renamed))
    with pytest.warns(UserWarning, match=r"1 files in .*\n.*a\.bvh has no joint0"):
        assert len(load(tmp_path, skeleton=skeleton).windows.recordings) == 1


def test_bodies_of_any_size_are_of_one_skeleton(tmp_path):
    save(tmp_path, "a.bvh", 10)
    clip = random_clip(random_skeleton(JOINTS))
    offsets = tuple((2 * x, 2 * y, 2 * z) for x, y, z in clip.skeleton.offsets)
    write_motion(
        tmp_path / "b.bvh", replace(clip, skeleton=replace(clip.skeleton, offsets=offsets))
    )
    assert len(load(tmp_path).windows.recordings) == 2


def test_clips_are_brought_to_the_rate_of_the_model(tmp_path):
    write_motion(tmp_path / "walk.npz", walk(61, fps=60.0))
    model = replace(MODEL, channels=SPEC.channels(55))
    assert [len(features) for features in load(tmp_path, model).windows.recordings] == [31]


def save_walk(folder):
    write_motion(folder / "walk.npz", walk(40))
    return replace(MODEL, channels=SPEC.channels(55))


def test_mirrored_recordings_are_trained_on_too(tmp_path):
    model = save_walk(tmp_path)
    data = load(tmp_path, model, held_out=0.25, mirror=True)
    clip = read_recording(tmp_path / "walk.npz", model).clip
    expected = [extract_features(x[:30], SPEC).float() for x in (clip, mirror(clip))]
    for features, wanted in zip(data.windows.recordings, expected, strict=True):
        torch.testing.assert_close(features, wanted, rtol=0, atol=1e-6)
    assert torch.equal(data.statistics.mean, FeatureStatistics.fit(data.windows.recordings).mean)
    # What is held out stays as it is, and the file is one file.
    assert [len(recording) for recording in data.held_out] == [10]
    assert len(list(data.describe())) == 1


def test_turned_windows_are_windows_of_the_turned_motion(tmp_path):
    model = save_walk(tmp_path)
    plain, turned = (load(tmp_path, model, turn=turn) for turn in (False, True))
    headings = []
    for number in range(50):
        before, after = plain.windows[number], turned.windows[number]
        assert torch.equal(after, turned.windows[number])
        # Only the rotation of the root and its velocity change.
        assert torch.equal(before[:, 6:330], after[:, 6:330])
        torch.testing.assert_close(before[:, 332], after[:, 332])
        speeds = [x[:, 330:332].norm(dim=1) for x in (before, after)]
        torch.testing.assert_close(*speeds, rtol=1e-4, atol=1e-4)
        roots = [from_rot6d(x[:, :6], "rows") for x in (before, after)]
        turn = roots[1] @ roots[0].mT
        torch.testing.assert_close(turn[:, 1], torch.tensor([0.0, 1, 0]).expand(8, 3))
        headings.append(find_headings(turn)[0].item())
    assert min(headings) < -2 and max(headings) > 2  # in all directions


def test_statistics_are_of_all_directions(tmp_path):
    model = save_walk(tmp_path)
    data = load(tmp_path, model, turn=True)
    features = data.windows.recordings[0]
    angles = torch.linspace(0, 2 * torch.pi, 361)[:-1].tolist()
    expected = FeatureStatistics.fit(turn_features(SPEC, 55, features, x) for x in angles)
    torch.testing.assert_close(data.statistics.mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(data.statistics.std, expected.std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["mirror", "turn"])
def test_what_cannot_be_turned_or_mirrored_is_refused(tmp_path, humanml3d, change):
    with pytest.raises(MotionError, match="HumanML3D and KIT cannot be mirrored or turned"):
        load(humanml3d, HUMANML3D, **{change: True})
    if change == "turn":
        relative = replace(SPEC, heading="relative")
        model = replace(MODEL, features=relative, channels=relative.channels(55))
        with pytest.raises(MotionError, match="stay the same if the motion is turned"):
            load(tmp_path, model, turn=True)


@pytest.fixture
def humanml3d(tmp_path):
    """Random features as the data set has them, beside its joints, without statistics."""
    for name in ("new_joint_vecs", "new_joints"):
        (tmp_path / name).mkdir()
    features = np.random.default_rng(0).normal(size=(20, 263)).astype(np.float32)
    np.save(tmp_path / "new_joint_vecs" / "a.npy", features)
    np.save(tmp_path / "new_joints" / "a.npy", np.zeros((20, 22, 3), np.float32))
    return tmp_path


def test_humanml3d_brings_its_statistics(humanml3d):
    fitted = load(humanml3d, HUMANML3D).statistics
    features = torch.from_numpy(np.load(humanml3d / "new_joint_vecs" / "a.npy"))
    torch.testing.assert_close(fitted.mean, features.mean(0), rtol=0, atol=1e-6)
    np.save(humanml3d / "Mean.npy", np.full(263, 2.0))
    np.save(humanml3d / "Std.npy", np.full(263, 3.0))
    inner = humanml3d / "new_joint_vecs"
    for folder in (humanml3d, inner, inner / "a.npy"):
        found = load(folder, HUMANML3D).statistics
        assert found.mean.eq(2).all() and found.std.eq(3).all()
    (humanml3d / "Std.npy").unlink()
    with pytest.raises(MotionError, match=r"Std\.npy does not exist"):
        load(humanml3d, HUMANML3D)


def test_root_and_contacts_count_more_by_the_bias(humanml3d):
    plain = load(humanml3d, HUMANML3D).statistics
    biased = load(humanml3d, HUMANML3D, feature_bias=5).statistics
    expected = torch.ones(263)
    expected[[*range(4), *range(-4, 0)]] = 5
    torch.testing.assert_close(plain.std / biased.std, expected)
    assert torch.equal(plain.mean, biased.mean)
    with pytest.raises(ValueError, match="feature_bias must be 1 for features other"):
        load(humanml3d, feature_bias=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 1}, "window must be at least 2"),
        ({"held_out": 1.0}, r"held_out must be in \[0, 1\)"),
        ({"held_out": -0.1}, "held_out must be in"),
        ({"feature_bias": 0.0}, "feature_bias must be above 0"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)


def save_data_set(folder, train=None, val=None):
    """A data set of five recordings of HumanML3D, 000000 to 000004, each with its own values."""
    (folder / "new_joint_vecs").mkdir(parents=True)
    for number in range(5):
        features = np.full((20 + number, 263), number, np.float32)
        np.save(folder / "new_joint_vecs" / f"{number:06}.npy", features)
    for name, numbers in (("train", train), ("val", val)):
        if numbers is not None:
            lines = "".join(f"{number:06}\n" for number in numbers)
            (folder / f"{name}.txt").write_text(lines)
    return DataConfig(folder=str(folder), window=16)


@pytest.mark.parametrize("inner", ["", "new_joint_vecs"])
def test_only_the_files_of_train_txt_are_trained_on(tmp_path, inner):
    config = save_data_set(tmp_path / "data", train=[0, 3, 9], val=[1, 4])
    config = replace(config, folder=str(tmp_path / "data" / inner))
    data = load_data(config, HUMANML3D, 0, report=False)
    assert [path.stem for path in data.files] == ["000000", "000003"]
    assert data.windows[0].unique().numel() == 1
    assert {int(data.windows[n].mean()) for n in range(40)} == {0, 3}
    assert [len(recording) for recording in data.held_out] == [21, 24]
    assert data.split == (
        "2 of 5 files are trained on, as train.txt says; 1 that it names are not there; 2 files "
        "are evaluated, as val.txt says"
    )


def test_a_share_that_is_held_out_goes_before_val_txt(tmp_path):
    config = save_data_set(tmp_path / "data", train=[0, 3], val=[1])
    data = load_data(replace(config, held_out=0.2), HUMANML3D, 0, report=False)
    assert [len(recording) for recording in data.held_out] == [4, 5]


def test_all_files_are_trained_on_without_lists(tmp_path):
    data = load_data(save_data_set(tmp_path / "data"), HUMANML3D, 0, report=False)
    assert len(data.files) == 5 and not data.held_out and not data.split


def test_a_list_that_names_nothing_is_refused(tmp_path):
    config = save_data_set(tmp_path / "data", train=[7, 8])
    with pytest.raises(MotionError, match="names 2 files, but none of the 5 files"):
        load_data(config, HUMANML3D, 0, report=False)
    (tmp_path / "data" / "train.txt").write_text("")
    with pytest.raises(MotionError, match=r"train.txt has no names"):
        load_data(config, HUMANML3D, 0, report=False)
