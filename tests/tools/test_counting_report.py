"""``tools/benchmark.py --count``: models, expected times, tables, options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tools import benchmark, benchmark_count
from tools.benchmark_count import Job, Machine, Result, break_down, expect, make_ours, make_peer
from tools.counting import Kernel, Kind, Work, move_to_fake_cuda
from tools.measuring import VIDEO_MODELS
from wanvae import WanVAE

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="only PyTorch for CUDA knows what a GPU would run"
)

TINY = ["--count", "--model", "tiny", "--frames", "5", "--height", "16", "--width", "24"]
CONFIG = VIDEO_MODELS["tiny"]

PRODUCT = Kernel("convolution", "Conv", Kind.PRODUCT, 600, 300, 10**6)
BIAS = Kernel("convolution: bias", "Conv", Kind.BIAS, 300, 300)
ADD = Kernel("add", "Block", Kind.OTHER, 400, 200)
WORK = Work({PRODUCT: 2, BIAS: 2, ADD: 1}, peak=10**9)


def test_our_model_is_the_one_that_people_load(tmp_path: Path) -> None:
    WanVAE(CONFIG).save_pretrained(tmp_path / "vae.safetensors")
    loaded = WanVAE.from_pretrained(tmp_path / "vae.safetensors", torch.bfloat16)
    counted = make_ours(CONFIG, torch.bfloat16)
    forms = [
        {name: (x.shape, x.stride(), x.dtype) for name, x in vae.state_dict().items()}
        for vae in (loaded, counted)
    ]
    assert forms[0] == forms[1] and counted.training == loaded.training


def test_fake_parameters_keep_their_form() -> None:
    with torch.device("meta"):
        norm = nn.BatchNorm2d(3).half()
        conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    with FakeTensorMode():
        moved = move_to_fake_cuda(nn.Sequential(conv, norm))
    assert {x.device.type for x in (*moved.parameters(), *moved.buffers())} == {"cuda"}
    assert conv.weight.stride() == (27, 1, 9, 3) and isinstance(conv.weight, nn.Parameter)
    assert norm.running_mean is not None
    assert (norm.weight.dtype, norm.running_mean.dtype) == (torch.float16, torch.float16)


def test_models_of_both_sides_have_the_same_parameters() -> None:
    ours, peer = (
        sorted(x.numel() for x in make(CONFIG, torch.float16).parameters())
        for make in (make_ours, make_peer)
    )
    assert ours == peer


def test_the_expected_time_is_of_bytes_products_or_launches() -> None:
    slow = Machine(bandwidth=1e3, rates={"bfloat16": 1e12})
    assert expect(WORK, slow, "bfloat16").device == pytest.approx((2 * 900 + 2 * 600 + 600) / 900)
    slow = Machine(bandwidth=1e12, rates={"bfloat16": 1e3})
    expected = expect(WORK, slow, "bfloat16")
    assert expected.device == pytest.approx(2 * 2e6 / 700)
    assert expected.host == pytest.approx(5 * 5e-6) and expected.seconds == expected.device
    fast = Machine(bandwidth=1e15, rates={"bfloat16": 1e15})
    assert expect(WORK, fast, "bfloat16").seconds == pytest.approx(25e-6)


def test_parts_are_in_order_of_their_bytes() -> None:
    assert [*break_down(WORK, "layer").items()] == [(("Conv",), (4, 3000)), (("Block",), (1, 600))]
    assert [*break_down(WORK, "operator")] == [("convolution",), ("convolution: bias",), ("add",)]
    assert break_down(WORK, "both")["add", "Block"] == (1, 600)


def test_ratios_are_of_ours_to_diffusers() -> None:
    job = Job("decode-clip", 5, 16, 16, "bfloat16")
    double = Work({kernel: 2 * times for kernel, times in WORK.launches.items()}, peak=10**9)
    result = Result(job, {"ours": WORK, "diffusers": double})
    values = benchmark_count.figures(result, None)
    assert values["ours"]["GB outside"] == pytest.approx(1800e-9)
    ratios = values["ratio"]
    assert (ratios["kernels"], ratios["GB outside"], ratios["peak GB"]) == (0.5, 0.5, 1)
    assert "waits" not in ratios  # there is none to divide by


def test_the_report_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "count.json"
    options = ["--dtypes", "float32", "--roofline", "4090", "--by", "both", "--rows", "2"]
    assert benchmark.main([*TINY, *options, "--json", str(path)]) == 0
    output = capsys.readouterr().out
    header, *lines = output.splitlines()
    assert header.startswith("tiny model") and torch.__version__ in header
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines if "float32" in line]
    assert rows == [
        [job, size, "float32", side]
        for job, size in zip(benchmark_count.JOBS, ["5x16x24"] * 2 + ["1x16x24"] * 2, strict=True)
        for side in ("ours", "diffusers", "ratio")
    ]
    assert "expected on 4090" in output and "82.6 (TF32)" in output
    # Each part has a heading, a rule and two rows.
    assert output.count("decode-image, ours:\n\n| operator") == 1
    assert sum("CausalConv" in line for line in lines) <= 2 * 8

    written = json.loads(path.read_text())
    assert written["header"] == header and len(written["results"]) == 4
    for result in written["results"]:
        for side in ("ours", "diffusers"):
            kernels = result["kernels"][side]
            summary = result["summary"][side]
            assert sum(kernel["launches"] for kernel in kernels) == summary["kernels"] > 50
            multiply_adds = sum(one["launches"] * one["multiply_adds"] for one in kernels)
            assert summary["T multiply-adds"] == pytest.approx(multiply_adds / 1e12)
            assert summary["expected s"] == max(summary["device s"], summary["host s"])
            assert summary["peak GB"] > 0
            # The video of a call stays where it is computed.
            assert result["transferred"][side] == 0


def test_one_side_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([*TINY, "--sides", "ours", "--jobs", "encode-clip"]) == 0
    output = capsys.readouterr().out
    assert "diffusers" not in output and "ratio" not in output and "| ours" in output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--jobs", "stream"], 2, "invalid choice: 'stream'"),
        (["--rows", "0"], 2, "--rows must be positive, not 0"),
        (["--json", "no/such/folder.json"], 2, "no/such/folder.json cannot be written"),
        (["--height", "20"], 1, "20"),
        (["--frames", "6"], 1, "6"),
    ],
)
def test_bad_options_of_a_count(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert benchmark.main([*TINY, *arguments]) == status
    except SystemExit as error:
        assert error.code == status
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_count_needs_pytorch_for_cuda(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert benchmark.main(TINY) == 1
    assert capsys.readouterr().err.startswith("benchmark: this needs PyTorch for CUDA")


def test_the_help_of_the_benchmark_names_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert "--count" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main(["--count", "--help"])
    assert "--roofline" in capsys.readouterr().out
