"""The comparison of quantizers, at its smallest size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from motion import ResidualVQ
from tools import compare_quantizers
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
