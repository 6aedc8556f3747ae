"""The comparison of quantizers, at its smallest size."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import pytest

from motion import ResidualVQ
from motion.files.formats import write_motion
from motion.skeleton.packaged import HUMANML3D
from motion.skeleton.retarget import retarget
from motion.skeleton.sample import walk
from tools import compare_backbones, compare_blocks, compare_quantizers
from tools.compare_quantizers import FULL, PARTS, QUICK, VARIANTS


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
    bvh = tmp_path / "motion.bvh"
    write_motion(bvh, retarget(walk(40), HUMANML3D))
    assert tool.main([*options[:-1], str(bvh)]) == 1
    assert "of 22 joints, but the model has 330" in capsys.readouterr().err


def test_names_of_variants_can_be_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        compare_quantizers.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--variants NAME [NAME ...]" in text
    assert all(repr(name) in text for name in VARIANTS)
