"""The command that writes a linear codec to start from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scenes import scene, write_scenes
from tests.train.short_runs import short_run
from tools.linear_start import main
from wanvae import WanVAE
from wanvae.train.run import main as train

CONFIG = """
weights: start.safetensors
model: {dim: 8, z_dim: 8, dim_mult: [1, 2], temporal_downsample: [true], num_res_blocks: 1}
data:
  folder: elsewhere
  buckets: [{frames: 5, height: 16, width: 16}, {frames: 1, height: 32, width: 32}]
trainer: {batch_size: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with videos and a config, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    for seed in range(3):
        write_scenes(tmp_path / "data" / f"{seed}.mp4", scene(seed, 9, 48, 48))
    return tmp_path


def command(*options: str) -> int:
    given = ["data", "start.safetensors", "--config=tiny.yaml", "--samples=12", "--workers=0"]
    return main([*given, *options])


def test_weights_for_the_config_are_written(folder: Path, capsys) -> None:
    assert command("--steps=3") == 0
    vae = WanVAE.from_pretrained("start.safetensors")
    assert (vae.config.dim, vae.config.z_dim, vae.config.dim_mult) == (8, 8, (1, 2))
    last = [p for name, p in vae.named_parameters() if ".residual.6." in name]
    assert last and not any(p.any() for p in last)
    said = capsys.readouterr().out
    assert "tiny.yaml: a model of 0." in said
    solved, trained = re.search(
        r"start.safetensors: on 12 crops ([\d.]+) dB as solved, ([\d.]+) dB after 3 steps", said
    ).groups()
    assert float(solved) > 25 and float(trained) > 25


@pytest.mark.slow
def test_the_same_seed_writes_the_same_file(folder: Path) -> None:
    contents = []
    for options in (["--seed=1"], ["--seed=1"], ["--seed=2"]):
        assert command("--steps=2", *options) == 0
        contents.append(Path("start.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_no_steps_leave_the_solved_weights(folder: Path, capsys) -> None:
    assert command("--steps=0") == 0
    assert re.search(r"on 12 crops [\d.]+ dB as solved\n$", capsys.readouterr().out)


def test_training_that_fails_writes_nothing_and_one_that_harms_is_told(
    folder: Path, capsys
) -> None:
    assert command("--steps=0") == 0
    solved = Path("start.safetensors").read_bytes()
    assert "note:" not in capsys.readouterr().out
    # The error of the only step is of the weights before it.
    assert command("--steps=1", "--rate=1e30") == 1
    assert "gave no numbers, so nothing was written: lower --rate" in capsys.readouterr().err
    assert Path("start.safetensors").read_bytes() == solved
    assert command("--steps=1", "--rate=10") == 0
    assert "note: these steps made it worse" in capsys.readouterr().out


@pytest.mark.slow
def test_training_goes_on_from_it(folder: Path) -> None:
    assert command("--steps=0") == 0
    run = short_run(folder / "data", folder / "run", 1)
    assert train([*run, "--config=tiny.yaml", "--data.folder=data", "--loss.lpips=0"]) == 0


REFUSED = {
    "no such config": (["--config=nothing"], 1, "nothing"),
    "no such option": (["--stpes=2"], 2, "unrecognized arguments: --stpes=2"),
    "no samples": (["--samples=0"], 1, "--samples must be at least 1, not 0"),
    "negative steps": (["--steps=-1"], 1, "--steps must be at least 0, not -1"),
    "no rate": (["--rate=0"], 1, "--rate must be above 0, not 0.0"),
}


@pytest.mark.parametrize(("options", "status", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_options_are_told_in_a_line(folder, capsys, options, status, message) -> None:
    try:
        assert command(*options) == status
    except SystemExit as exit:
        assert exit.code == status
    assert message in capsys.readouterr().err
    assert not Path("start.safetensors").exists()


def test_impossible_configs_are_told_in_a_line(folder: Path, capsys) -> None:
    for old, new, message in (
        ("num_res_blocks: 1", "norm: group", "model.norm must be rms"),
        ("height: 16", "height: 17", "multiples of 2"),
        ("frames: 5", "frames: 6", "1 + 2n frames"),
        ("frames: 5", "frames: 1", "all crops have one frame"),
    ):
        Path("tiny.yaml").write_text(CONFIG.replace(old, new))
        assert command() == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("linear_start: ") and message in error
    assert not Path("start.safetensors").exists()
    assert main(["data", "start.pth", "--config=tiny.yaml"]) == 1
    assert "must end in .safetensors" in capsys.readouterr().err
