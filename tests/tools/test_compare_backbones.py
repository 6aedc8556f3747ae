"""The comparison of motion backbones, at its smallest size; its bodies and its task."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from motion import RVQVAE
from tools import compare_backbones
from tools.backbones import Recall, Recaller, make_body, reach, recall_error, replace_bodies
from tools.compare_backbones import BACKBONES, FULL, PARTS, REFERENCE
from tools.comparing import count_parameters, multiply_adds

LOCAL = ("resnet1d", "cnn")


def test_a_whole_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "backbones.json"
    options = ["--quick", "--steps", "2", "--rates", "1e-3", "4e-3", "--json", str(path)]
    assert compare_backbones.main([*options, "--plot", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {kind} ") == 2 for kind in BACKBONES)
    assert "resnet1d: 4 positions to each side" in printed
    assert (tmp_path / "backbones.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(path.read_text())
    assert content["headers"].keys() == set(PARTS)
    runs = [values for key, values in content["results"].items() if key.startswith("training")]
    assert len(runs) == 2 * len(BACKBONES)
    assert all(run["figures"].keys() == {"seen", "held out"} for run in runs)
    # What is there is not measured again, and a new seed is.
    assert compare_backbones.main([*options, "--seeds", "2"]) == 0
    more = json.loads(path.read_text())["results"]
    assert more.items() > content["results"].items()
    assert len(more) == len(content["results"]) + 2 * len(BACKBONES)


@pytest.mark.parametrize("kind", BACKBONES)
def test_parameters_agree(kind: str) -> None:
    with torch.device("meta"):
        reference, model = RVQVAE(FULL.model), RVQVAE(FULL.model)
        replace_bodies(model, kind)
        of_body, of_reference = (
            count_parameters(make_body(each, FULL.width, 3, 3)) for each in (kind, REFERENCE)
        )
    assert count_parameters(model) == pytest.approx(count_parameters(reference), rel=0.01)
    assert of_body == pytest.approx(of_reference, rel=0.02)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("length", [1, 7, 40])
def test_bodies_keep_shapes(kind: str, length: int) -> None:
    torch.manual_seed(0)
    body = make_body(kind, 8, 2, 3)
    x = torch.randn(2, 8, length)
    y = body(x)
    assert y.shape == x.shape and y.isfinite().all()
    assert not torch.allclose(y[0], body(x.flip(0))[0])


@pytest.mark.parametrize("kind", BACKBONES)
def test_bodies_see_as_far_as_the_formula_says(kind: str) -> None:
    torch.manual_seed(0)
    body, centre = make_body(kind, 8, 3, 3).double(), 30
    x = torch.randn(1, 8, 2 * centre + 1, dtype=torch.float64, requires_grad=True)
    body(x)[0, :, centre].square().sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero()[:, 0]
    expected = min(reach(kind, 3, 3), centre)
    assert [seen.min(), seen.max()] == [centre - expected, centre + expected]
    assert reach("resnet1d", 3, 3) == 13 and reach("cnn", 3, 3) == 3


def test_the_task_is_recalling() -> None:
    task, generator = Recall(distance=5, length=12), torch.Generator().manual_seed(0)
    x, asked, values = task.batch(2000, generator)
    assert x.shape == (2000, 3, 12) and asked.min() == 5 and asked.max() == 11
    every = torch.arange(2000)
    assert torch.equal(x[every, 0, asked - 5], values)
    assert torch.equal(x[:, 1:].sum(2), torch.ones(2000, 2))
    assert (x[every, 1, asked - 5] == 1).all() and (x[every, 2, asked] == 1).all()
    # Chance is 1, and a perfect memory makes no error.
    assert values.mean().abs() < 0.1 and values.square().mean() == pytest.approx(1, abs=0.1)
    assert recall_error(lambda x: x[:, 0].roll(5, dims=1), (x, asked, values)) == 0


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("distance", [3, 4, 13, 14])
def test_only_bodies_that_see_the_value_can_recall_it(kind: str, distance: int) -> None:
    torch.manual_seed(0)
    model = Recaller(make_body(kind, 8, 3, 3), 8).double()
    x, asked, _ = Recall(distance, length=20).batch(4, torch.Generator().manual_seed(0))
    every, x = torch.arange(4), x.double()
    before = model(x)[every, asked]
    x[every, 0, asked - distance] += 1
    changed = (model(x)[every, asked] != before).all().item()
    assert changed == (distance <= reach(kind, 3, 3))


@pytest.mark.parametrize("kind", LOCAL)
def test_multiply_adds_of_convolutions(kind: str) -> None:
    body = make_body(kind, 8, 2, 3)
    assert multiply_adds(lambda: body(torch.randn(3, 8, 10))) == 2 * (3 + 1) * 8 * 8 * 3 * 10


def test_multiply_adds_of_lstm_and_transformer() -> None:
    body = make_body("lstm", 8, 2, 3)
    hidden = body.lstm.hidden_size
    expected = (2 * 4 * hidden * (8 + hidden) + 2 * hidden * 8) * 3 * 10
    assert multiply_adds(lambda: body(torch.randn(3, 8, 10))) == expected

    body = make_body("transformer", 8, 2, 3)
    hidden = body.layer.linear1.out_features
    linear = (4 * 8 * 8 + 2 * 8 * hidden) * 3 * 10
    attention = 2 * 8 * 3 * 10 * 10
    assert multiply_adds(lambda: body(torch.randn(3, 8, 10))) == linear + attention


def test_the_summary_of_lengths() -> None:
    seconds = {(10, 1): 1.0, (10, 2): 1.0, (40, 1): 2.0, (40, 2): 1.6}
    lengths = {f"encode cnn {length} {n}": [s] for (length, n), s in seconds.items()}
    faster, a_frame = compare_backbones.parallelism("cnn", lengths)
    assert math.isclose(faster, 1.25) and math.isclose(a_frame, 0.5)


def test_motion_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_backbones.main(["--quick", "--motion", "no/such.npz"]) == 1
    assert "no/such.npz does not exist" in capsys.readouterr().err.splitlines()[-1]
