"""The names of ``from motion import ...``: what they are, and that they are loaded when used."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import motion
from motion import (
    MotionClip,
    Skeleton,
    extract_features,
    forward_kinematics,
    load_config,
    read_motion,
    restore_motion,
    write_motion,
)
from tests.motion.small_tokenizers import ROOTED, WALK
from wanvae.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "motion"


def test_a_file_goes_to_features_and_back(tmp_path):
    write_motion(tmp_path / "walk.bvh", WALK)
    clip = read_motion(tmp_path / "walk.bvh")
    assert isinstance(clip, MotionClip) and isinstance(clip.skeleton, Skeleton)
    features = extract_features(clip, ROOTED)
    again = restore_motion(features, ROOTED, clip.skeleton, clip.fps, start=clip.start)
    pose = forward_kinematics(clip.skeleton, again.rotations, again.root_positions)
    torch.testing.assert_close(pose.positions, WALK.pose.positions, atol=1e-4, rtol=0)


def test_a_config_is_loaded_by_its_name_or_its_path():
    tiny = load_config("tiny")
    assert tiny.model.channels == 333 and tiny.data.window == 32
    assert load_config(CONFIGS / "tiny.yaml") == tiny
    assert load_config(str(CONFIGS / "kit.yaml")).model == load_config("kit").model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  chanels: 3\n", "does not accept option 'chanels'"),
        ("model:\n  channels: many\n", "model.channels must be a whole number, not many"),
        ("model:\n  channels: 0\n", "channels must be at least 1, not 0"),
        ("model: [", "Problems parsing config"),
        ("trainer:\n  ema_decay: 0.9\n", "trainer.ema_decay is 0.9"),
    ],
)
def test_a_config_that_is_wrong_is_an_error_and_not_an_exit(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        load_config(file)
    assert str(raised.value).startswith(f"{file}: ") and message in str(raised.value)


def test_a_config_that_is_not_there_names_the_others():
    with pytest.raises(UserError, match=r"no file nothing; the configs .* kit, tiny"):
        load_config("nothing")


def test_names_are_listed_and_others_refused():
    assert set(motion.__all__) <= set(dir(motion))
    assert motion.read_motion is read_motion
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        motion.nothing  # noqa: B018


def test_names_are_loaded_when_they_are_used():
    code = "import sys, motion; before = 'roma' in sys.modules; motion.read_motion; "
    code += "print(before, 'roma' in sys.modules, 'accelerate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
