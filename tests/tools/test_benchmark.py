"""The benchmark script, on a tiny model and tiny frames."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.nn.functional as F

from tools import benchmark, measuring
from tools.benchmark import JOBS, SWEEP, Result, Setup, Workload
from wanvae import WanVAE

TINY = ["--model", "tiny", "--size-scale", "0.125"]
JOB = {job.name: job.scaled(0.125) for job in JOBS}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    setup = Setup("tiny", str(tmp_path_factory.mktemp("weights")), "cpu")
    benchmark.write_weights(setup)
    return setup


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no memory, which takes seconds."""
    peaks = {"ours": 10**6, "peer": 2 * 10**6}
    monkeypatch.setattr(benchmark, "measure_memory", lambda side, job, setup: peaks[side])


def result_of(job: Workload) -> Result:
    if job.direction == "stream":
        return Result(job, {"ours": [0.5]}, {"ours": 10**6})
    return Result(
        job,
        {"ours": [1.0, 8.0, 2.0], "peer": [4.0, 4.0, 5.0], "convolution": [3.0, 1.0, 2.0]},
        {"ours": 10**6, "peer": 4 * 10**6},
        {"ours": 10**10, "planned": 3 * 10**10, "convolution": 2 * 10**10},
        {"between": 0.25},
    )


def test_the_report_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "all.json"
    options = ["--jobs", "decode-clip", "stream-short", "--dtypes", "float32", "--repeats", "2"]
    assert benchmark.main([*TINY, *options, "--json", str(path)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("tiny model on cpu; ") and torch.__version__ in header
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines if "float32" in line]
    assert rows == [["decode-clip", "5x32x32", "float32"], ["stream-short", "9x16x16", "float32"]]

    written = json.loads(path.read_text())
    assert written["header"] == header
    decode, stream = written["results"]
    assert [len(times) for times in decode["seconds"].values()] == [2, 2, 2]
    ratio = median(decode["seconds"]["ours"]) / median(decode["seconds"]["peer"])
    assert decode["summary"]["time ratio"] == pytest.approx(ratio)
    assert 0 <= decode["errors"]["between"] < 1e-3
    # The video alone, and no more than a tiny model can need.
    assert all(3 * 5 * 32 * 32 * 4 < peak < 1e8 for peak in decode["peak_bytes"].values())
    assert len(stream["seconds"]["ours"]) == 2 and stream["peak_bytes"].keys() == {"ours"}


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("name", ["encode-clip", "decode-image"])
def test_both_sides_give_the_same(setup: Setup, name: str) -> None:
    result = benchmark.measure(JOB[name], setup, repeats=1)
    assert 0 <= result.errors["between"] < 1e-3
    assert result.errors.keys() == {"between"}
    assert min(times[0] for times in result.seconds.values()) > 0
    # With so few channels only upsampling has a faster way.
    ratio = result.flops["ours"] / result.flops["planned"]
    assert ratio == pytest.approx(1, abs=0.02) if name == "encode-clip" else 0.5 < ratio < 0.9


@pytest.mark.usefixtures("no_processes")
@pytest.mark.skipif(
    "tile_size" not in inspect.signature(WanVAE.decode).parameters, reason="no tiles yet"
)
def test_options_are_compared_with_the_plain_result(setup: Setup) -> None:
    tiled = benchmark.measure(JOB["decode-large-tiled"], setup, repeats=1).errors
    assert tiled["ours"] < 1e-3 < tiled["peer"]  # the peer blends tiles that saw different pixels
    limited = benchmark.measure(JOB["decode-large-700MB"], setup, repeats=1).errors
    assert limited.keys() == {"between", "ours"} and max(limited.values()) < 1e-3


def test_every_parameter_of_the_weights_matters(setup: Setup) -> None:
    vae = benchmark.load("ours", "float32", False, setup)
    assert all((parameter != 0).any() for parameter in vae.parameters())


def test_the_numbers_of_the_summary() -> None:
    summary = result_of(JOB["decode-clip"]).summary()
    assert summary["ours s"] == 2 and summary["peer s"] == 4 and summary["time ratio"] == 0.5
    assert summary["ours MB"] == 1 and summary["memory ratio"] == 0.25
    # 10 GFLOP in 2 seconds, where the convolution alone makes 20 in 1 at its best.
    assert summary["GFLOP/s"] == 5 and summary["of roofline"] == 0.25
    assert summary["as planned"] == 0.75
    assert summary["ours vs plain"] is None


def test_the_table_is_aligned() -> None:
    jobs = (JOB["decode-clip"], replace(JOB["encode-long"], compiled=True))
    lines = benchmark.table([result_of(job) for job in jobs]).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    assert lines[3].startswith("| encode-long compiled | 17x32x32 | float32 |  2.000 |")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flops_of_the_largest_convolution(setup: Setup, dtype: str) -> None:
    job = Workload("any", "decode", 5, 16, 24, dtype)
    convolution = benchmark.make_largest_convolution(job, setup)
    assert convolution().shape == (1, 8, 4, 16, 24)
    assert benchmark.count_flops(convolution) == 2 * 27 * 8 * 8 * 4 * 16 * 24


def test_flops_of_convolutions_that_pytorch_does_not_count() -> None:
    x, weight, bias = torch.randn(1, 3, 6, 7), torch.randn(5, 3, 3, 3), torch.randn(5)
    geometry, more = ((1, 1), (1, 1), (1, 1), 1), torch.randn(1, 5, 6, 7)
    pointwise = torch.ops.mkldnn._convolution_pointwise
    expected = 2 * 9 * 3 * 5 * 6 * 7
    for call in (
        lambda: torch.mkldnn_convolution(x, weight, bias, *geometry),
        lambda: pointwise(x, weight, None, *geometry, "none", [], ""),
        lambda: pointwise(x, weight, bias, *geometry, "none", [], ""),
        lambda: pointwise.binary(x, more, weight, bias, *geometry, "add", None, None, [], None),
    ):
        assert benchmark.count_flops(call) == expected


def test_flops_of_attention() -> None:
    q, k = torch.randn(2, 1, 6, 8), torch.randn(2, 1, 10, 8)
    flops = benchmark.count_flops(lambda: F.scaled_dot_product_attention(q, k, k))
    assert flops == 2 * (2 * 6 * 10 * 8) * 2


def test_peak_memory_is_that_of_the_call_alone() -> None:
    torch.ones(2**25)  # an earlier peak
    peak = measuring.measure_peak_resident_memory(lambda: torch.ones(2**24).sum())
    assert peak == pytest.approx(2**26, rel=0.1)


def test_jobs_keep_to_sizes_of_the_model() -> None:
    assert Workload("any", "decode", 5, 512, 300, tile_size=256).scaled(0.1) == Workload(
        "any", "decode", 5, 48, 32, tile_size=24
    )
    options = benchmark.parse(["--sweep", "--dtypes", "bfloat16", "--compile"])
    jobs = benchmark.choose_jobs(options)
    assert len(jobs) == len(set(jobs)) == 2 * len(SWEEP)
    assert {job.compiled for job in jobs} == {True, False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "nothing"], "invalid choice: 'nothing'"),
        (["--repeats", "0"], "must be positive"),
        (["--size-scale", "nan"], "must be positive"),
        (["--json", "no/such/folder.json"], "no/such/folder.json cannot be written"),
        (["--plot", "sweep.png"], "add --sweep"),
        (["--sweep", "--jobs", "decode-clip"], "not allowed with"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_plots_need_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert benchmark.main(["--sweep", "--plot", str(tmp_path / "sweep.png")]) == 1
    assert capsys.readouterr().err == "benchmark: this needs matplotlib: pip install matplotlib\n"


def test_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    benchmark.plot(tmp_path / "sweep.png", [result_of(job) for job in SWEEP])
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupt_keeps_what_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(job: Workload, setup: Setup, repeats: int) -> Result:
        if job.direction == "stream":
            raise KeyboardInterrupt
        return result_of(job)

    monkeypatch.setattr(benchmark, "measure", measure)
    path = tmp_path / "all.json"
    options = ["--jobs", "decode-clip", "stream-short", "--json", str(path)]
    assert benchmark.main([*TINY, *options]) == 130
    output = capsys.readouterr()
    assert "| decode-clip |" in output.out and not path.exists()
    assert output.err.splitlines()[-1] == "benchmark: interrupted"


def test_a_failed_measurement_of_memory_is_one_line(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(benchmark.BenchmarkError) as error:
        benchmark.measure_memory("peer", JOB["decode-clip"], setup)
    assert str(error.value) == "no peak memory of decode-clip (float32, peer): exit status 1"
