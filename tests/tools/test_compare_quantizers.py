"""The comparison of quantizers, at its smallest size."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from motion import ResidualVQ
from motion.features.feature_files import write_features
from motion.features.joint_motion import extract_published, read_joint_motion
from motion.files.formats import read_motion, write_motion
from motion.skeleton.packaged import HUMANML3D, SMPLX
from motion.skeleton.retarget import retarget
from motion.skeleton.sample import walk
from tests.motion.helpers import random_clip, random_skeleton
from tools import compare_backbones, compare_blocks, compare_quantizers
from tools.compare_quantizers import FULL, PARTS, QUICK, VARIANTS
from tools.comparing import find_motion, move_body
from tools.measuring import BenchmarkError


@pytest.mark.slow
def test_a_whole_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "quantizers.json"
    options = ["--quick", "--steps", "2", "--json", str(path), "--variants", "ema", "fsq"]
    assert compare_quantizers.main([*options, "--plot", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2 codes of 8, 6 bits" in printed
    assert all(printed.count(f"| {variant} ") == 1 for variant in ("ema", "fsq"))
    assert (tmp_path / "quantizers.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(path.read_text())
    assert content["headers"].keys() == set(PARTS)
    assert set(content["results"]["costs"]) == set(VARIANTS)
    assert compare_quantizers.main([*options[:-2], "lfq"]) == 0
    more = json.loads(path.read_text())["results"]
    assert more.keys() - content["results"].keys() == {"training/lfq/0.001/0"}


@pytest.mark.parametrize("size", [FULL, QUICK])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_have_the_same_bits(size: compare_quantizers.Size, variant: str) -> None:
    reference, config = size.model.quantizer, size.quantizer(variant)
    bits = config.num_quantizers * math.log2(config.codebook_size)
    assert bits == reference.num_quantizers * math.log2(reference.codebook_size)
    assert ResidualVQ(config, size.model.code_dim).config == config


@pytest.mark.parametrize("tool", [compare_backbones, compare_blocks, compare_quantizers])
def test_motion_that_cannot_be_learnt_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: ModuleType
) -> None:
    path, results = tmp_path / "motion.npz", tmp_path / "results.json"
    options = ["--quick", "--json", str(results), "--motion", str(path)]
    for write, message in (
        (None, f"{path} does not exist"),
        (walk(12), f"{path} has 12 frames, of which 9 are trained on"),
    ):
        if write is not None:
            write_motion(path, write)
        assert tool.main(options) == 1
        assert message in capsys.readouterr().err
        assert not results.exists()
    unknown, array = tmp_path / "unknown.bvh", tmp_path / "array.npy"
    write_motion(unknown, random_clip(random_skeleton(9)))
    np.save(array, np.zeros((40, 7)))
    for other, message in (
        (unknown, "hips and legs, or hips and arms, are not known by name in both"),
        (array, f"{array} is (40, 7); joints (T, 22, 3) of HumanML3D or (T, 21, 3) of KIT"),
    ):
        assert tool.main([*options[:-1], str(other)]) == 1
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert str(other) in line and message in line
        assert not results.exists()


def test_motion_of_other_joints_moves_the_body_that_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not motion of 55 joints is told; joints and features of papers are read, too."""
    body = retarget(walk(60), HUMANML3D)
    names = ("a b.bvh", "joints.npy", "features.npy", "smplx.npz")
    paths = [tmp_path / name for name in names]
    write_motion(paths[0], body)
    np.save(paths[1], body.pose.positions.numpy())
    write_features(paths[2], extract_published(read_joint_motion(paths[0]), "humanml3d").float())
    write_motion(paths[3], walk(60))
    for path in paths:
        target = tmp_path / "moved.npz"
        found = move_body(path, target)
        told = capsys.readouterr().err
        assert found == (path if path.name == "smplx.npz" else target)
        assert bool(told) == (found == target)
        assert not told or told.startswith(f"note: {path} has 22 joints; the body of SMPL-X")
        clip = read_motion(found)
        assert clip.skeleton.names == SMPLX.names
        heights = clip.pose.positions[:, SMPLX.names.index("head"), 1]
        assert heights.min() > 1.3 and heights.max() < 1.7
    short = argparse.Namespace(motion=paths[0])
    with pytest.raises(BenchmarkError, match=f"{paths[0].name} has 60 frames, of which 48"):
        find_motion(short, FULL.model, 64, str(tmp_path))


def test_names_of_variants_can_be_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        compare_quantizers.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--variants NAME [NAME ...]" in text
    assert all(repr(name) in text for name in VARIANTS)
