"""The script that checks a GPU: rehearsed on a CPU, and its parts one by one where there is one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import check_gpu, gpu_checks
from tools.check_gpu import describe, list_checks, make_setup, show_outcome
from tools.gpu_checks import CheckError, find_error, require_small, without_tf32
from tools.supervising import Job, Outcome, run_all
from wanvae.nn.kernels.gpu import plain
from wanvae.nn.kernels.gpu.operators import DEFINITIONS

ROOT = Path(__file__).resolve().parents[2]
CPU = ["--device", "cpu", "--size", "tiny"]
# What a machine with PyTorch may lack.
LACKING = (
    *("accelerate", "av", "diffusers", "huggingface_hub", "jinja2", "jsonargparse", "numpy"),
    *("roma", "torchmetrics", "tqdm", "transformers", "yaml"),
)
WITHOUT_PACKAGES = f"""
import sys
sys.modules.update(dict.fromkeys({LACKING}))
import torch
from tools.check_gpu import list_checks, make_setup
"""
# A worker whose jobs go well, fail, end the process, and take too long.
WORKER = """
import os, sys, time
from tools.supervising import work
def fail():
    raise ValueError("not good\\nat all")
functions = {
    "good": lambda: {"process": os.getpid()}, "bad": fail, "fatal": lambda: os._exit(3),
    "endless": lambda: time.sleep(60), "talking": lambda: print("hello") or {},
}
work(functions, lambda: len(sys.argv) == 1)
"""


def outcomes_of(names: str, *arguments: str, seconds: float = 100) -> list[Outcome]:
    jobs = [Job(name, 0.1) for name in names.split()]
    return list(run_all(jobs, [sys.executable, "-c", WORKER, *arguments], seconds))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tools.supervising.START", 30)


def test_a_job_that_fails_or_dies_does_not_lose_the_others() -> None:
    found = outcomes_of("good bad good fatal good talking")
    statuses = [outcome.status for outcome in found]
    assert statuses == ["ok", "failed", "ok", "failed", "ok", "ok"]
    assert found[1].message == "ValueError: not good"
    assert found[3].message == "its process ended with status 3"
    first, second, third = (
        outcome.figures["process"] for outcome in (found[0], found[2], found[4])
    )
    assert first == second != third


def test_a_process_that_is_no_longer_usable_is_left() -> None:
    found = outcomes_of("good bad good", "unusable")
    assert [outcome.status for outcome in found] == ["ok", "failed", "ok"]
    assert found[0].figures != found[2].figures


def test_a_job_that_takes_too_long_is_ended() -> None:
    began = time.monotonic()
    found = outcomes_of("good endless good")
    assert [outcome.status for outcome in found] == ["ok", "failed", "ok"]
    assert found[1].message == "it took more than 0 s" and time.monotonic() - began < 50


def test_a_job_that_does_not_fit_in_the_time_is_skipped() -> None:
    jobs = [Job("good", 100), Job("good", 0.1)]
    found = list(run_all(jobs, [sys.executable, "-c", WORKER], 50))
    assert [outcome.status for outcome in found] == ["skipped", "ok"]
    assert found[0].message == "it takes 100 s, and 50 s are left"


def test_the_checks_fit_in_the_time() -> None:
    seconds = [seconds for seconds, _ in list_checks().values()]
    assert sum(seconds) <= 60 * check_gpu.MINUTES + 60  # the last ones may be skipped


def test_every_operator_is_checked() -> None:
    assert gpu_checks.OPERATOR_INPUTS.keys() == DEFINITIONS.keys()


def test_a_wrong_result_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup("cpu", "tiny")
    assert gpu_checks.check_operators(setup, torch.float32)["largest error"] < 1e-5
    monkeypatch.setattr(plain, "make_phases", lambda weight: plain.allocate_phases(weight).zero_())
    with pytest.raises(CheckError, match="errors above 1e-05: make_phases"):
        gpu_checks.check_operators(setup, torch.float32)
    assert find_error(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    with pytest.raises(CheckError):
        require_small({"nothing": float("nan")}, 1.0)


def test_a_row_of_the_table() -> None:
    outcome = Outcome("decode", "ok", 2.0, {"seconds": 0.5, "bytes": 2**21, "longest": [1]})
    assert show_outcome(outcome) == f"{'decode':22} ok          2.0 s  seconds 0.5, bytes 2 MB"
    assert show_outcome(Outcome("decode", "failed", message="why")).endswith(
        "failed      0.0 s  why"
    )
    assert describe("cpu", "tiny").startswith("tiny model on cpu (") and "torch" in describe(
        "cpu", ""
    )


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        check_gpu.parse(["--only", "nothing"])
    assert error.value.code == 2 and "no check begins with nothing" in capsys.readouterr().err
    assert [job.name for job in check_gpu.choose_jobs(["golden", "profile"])] == [
        *("golden float32", "golden bfloat16", "golden float16", "profile")
    ]


def test_tf32_is_as_before() -> None:
    before = torch.backends.cudnn.allow_tf32
    with without_tf32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def run_without_packages(code: str) -> str:
    command = [sys.executable, "-c", WITHOUT_PACKAGES + code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_script_needs_little() -> None:
    assert run_without_packages("print(len(list_checks()))") == f"{len(list_checks())}\n"


@pytest.mark.slow
def test_the_checks_need_little() -> None:
    names = [name for name in list_checks() if not name.startswith("compiled")]
    code = f"""
setup = make_setup("cpu", "tiny")
for name in {names}:
    print(name, *list_checks()[name][1](setup))
"""
    lines = run_without_packages(code).splitlines()
    assert [line for line in lines if "diffusers" in line] == ["diffusers not installed"]
    assert len(lines) == len(names)


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    assert check_gpu.main([*CPU, "--minutes", "30", "--json", str(path)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    written = json.loads(path.read_text())
    assert written["header"] == header
    results: dict[str, Any] = {result["name"]: result for result in written["results"]}
    assert [*results] == [*list_checks()] == [line[:22].strip() for line in lines[: len(results)]]
    assert {result["status"] for result in results.values()} == {"ok"}
    assert len(results["profile"]["figures"]["longest"]) == 10
    for name in ("decode 81x480x832", "encode 81x720x1280", "training step"):
        assert results[name]["figures"]["seconds"] > 0 and results[name]["figures"]["bytes"] > 0
    assert results["ways float32"]["figures"]["graphs"] > 5


@pytest.mark.gpu
@pytest.mark.parametrize("name", list_checks())
def test_a_small_model_on_a_gpu(name: str) -> None:
    with without_tf32():
        list_checks()[name][1](make_setup("cuda", "tiny"))
