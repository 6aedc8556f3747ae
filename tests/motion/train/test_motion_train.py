"""Training a motion tokenizer from its command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from motion import RVQVAE
from motion.features.recording import read_recording
from motion.features.statistics import FeatureStatistics
from motion.files.formats import read_motion, write_motion
from motion.skeleton.sample import walk
from motion.train.run import TrainConfig, main
from tests.helpers import LAUNCHER
from tests.motion import two_ranks
from tests.motion.helpers import random_clip, random_skeleton
from tests.motion.small_tokenizers import saved_tokenizer, tiny_tokenizer
from tests.motion.train.motion_runs import lines_of, options, quick, reset
from wanvae.engine.checkpoint import read_tensors
from wanvae.video import probe

__all__ = ["quick"]

ROOT = Path(__file__).parents[3]
WAN = [
    "--model.network=wan",
    "--model.wan.dim=8",
    "--model.wan.dim_mult=[1,2]",
    "--model.wan.num_res_blocks=1",
    "--data.window=17",
]
# What changes though the learning rate is 0.
LEARNT = [f"quantizer.books.{name}" for name in ("codes", "sums", "counts")]
# Everything that draws random numbers.
LIVELY = [
    "--model.resnet.dropout=0.2",
    "--model.quantizer.dropout=0.5",
    "--model.quantizer.temperature=0.1",
    "--model.quantizer.revive_below=0.5",
    "--model.quantizer.decay=0.8",
]
# Nothing but the initialization does.
PLAIN = [
    "--model.quantizer.revive_below=0",
    "--trainer.optimizer=sgd",
    "--trainer.learning_rate=0.02",
    "--trainer.gradient_clip=1000",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    write_motion(folder / "walk.npz", walk(120))
    return folder


def tensors_of(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return read_tensors(run / f"{name}.safetensors").tensors


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor), name


@pytest.mark.parametrize("network", [[], WAN])
def test_training_learns_the_walk(folder, tmp_path, network):
    faster = [
        "--trainer.learning_rate=0.01",
        "--model.code_dim=16",
        "--model.quantizer.codebook_size=32",
    ]
    assert main(options(folder, tmp_path, 160, *faster, *network)) == 0
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    assert len(lines) == 160
    terms = {"features", "position", "commitment"}
    assert all(
        line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-3) for line in lines
    )
    losses = [line["features"] for line in lines]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    # The codebooks have not collapsed; the perplexity is at most the number of codes in use.
    assert 4 < lines[-1]["perplexity"] <= 32 * lines[-1]["code_use"]
    model = RVQVAE.from_pretrained(tmp_path / "model.safetensors")
    assert model.config.features.rot6d == "rows" and model.config.fps == 30
    assert model.quantizer.books.initialized and model.normalizer.is_set


def test_the_normalizer_is_of_what_is_trained_on(folder, tmp_path):
    assert main(options(folder, tmp_path, 1)) == 0
    model = RVQVAE.from_pretrained(tmp_path / "model.safetensors")
    features = read_recording(folder / "walk.npz", model.config).features
    expected = FeatureStatistics.fit([features[:96]])
    assert torch.equal(model.normalizer.mean, expected.mean)
    assert torch.equal(model.normalizer.std, expected.std)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(folder, tmp_path):
    """With all that is random, moments of the optimizer and moving averages of the codes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = [*LIVELY, "--trainer.accumulate=2", "--trainer.checkpoint_every=3"]
    assert main(options(folder, whole, 6, *changes)) == 0
    # As after kill -9 in step 4, 5 or 6: the newest checkpoint is of step 3.
    shutil.copytree(whole / "checkpoints", cut / "checkpoints")
    shutil.rmtree(cut / "checkpoints" / "step-00000006")
    reset()
    assert main(options(folder, cut, 6, *changes)) == 0
    assert "quantizer.books.sums" in tensors_of(whole)
    assert_equal(tensors_of(whole), tensors_of(cut))
    half = tensors_of(whole / "checkpoints" / "step-00000003")
    assert not torch.equal(
        half["quantizer.books.counts"], tensors_of(whole)["quantizer.books.counts"]
    )


def test_two_processes_hold_the_codebooks_of_one_with_twice_the_batch(folder, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    run_command(*LAUNCHER[2:], "-m", "tests.motion.two_ranks", *options(folder, two, 50, *PLAIN))
    first, second = (tensors_of(two, f"rank-{rank}") for rank in (0, 1))
    assert_equal(first, second)
    two_ranks.main(options(folder, one, 50, *PLAIN, "--trainer.batch_size=8"))
    expected = tensors_of(one, "rank-0")
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("initialization", ["kmeans", "samples"])
def test_accumulated_batches_give_the_codebooks_of_a_large_one(folder, tmp_path, initialization):
    """And the same log, in which the use of codes is over the whole step."""
    changes = [*PLAIN, f"--model.quantizer.initialization={initialization}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(options(folder, whole, 5, *changes, "--trainer.batch_size=8")) == 0
    reset()
    changes += ["--trainer.batch_size=4", "--trainer.accumulate=2"]
    assert main(options(folder, parts, 5, *changes)) == 0
    found = tensors_of(parts)
    for name, tensor in tensors_of(whole).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    for one, other in zip(lines_of(whole), lines_of(parts), strict=True):
        for name in ("loss", "perplexity", "code_use"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-3)


def test_a_run_goes_on_only_with_the_same_model_and_data(folder, tmp_path, capsys):
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(folder, data)
    assert main(options(data, run, 1)) == 0
    for changes, said in (
        (["--model.resnet.width=32"], "model.resnet.width is 16, not 32"),
        (["--model.quantizer.decay=0.5"], "model.quantizer.decay is 0.99, not 0.5"),
        (["--data.window=32"], "data.window is 16, not 32"),
    ):
        reset()
        assert main(options(data, run, 1, *changes)) == 1
        assert said in capsys.readouterr().err
    moved = data.rename(tmp_path / "moved")
    (moved / "notes.txt").write_text("no motion")
    reset()
    capsys.readouterr()
    assert main(options(moved, run, 2)) == 0
    assert f"{moved}: ignored, no motion files: 1 .txt\n" in capsys.readouterr().out
    # Another motion in a file of the same name and length.
    write_motion(moved / "walk.npz", walk(240)[120:])
    reset()
    assert main(options(moved, run, 3)) == 1
    assert "the training data are 1 entries" in capsys.readouterr().err


def test_the_skeleton_of_the_data_is_kept_and_wanted(folder, tmp_path, capsys):
    """Another one of 55 joints is refused, and one of the same joints goes on."""
    run = tmp_path / "run"
    assert main(options(folder, run, 1)) == 0
    weights = run / "model.safetensors"
    assert RVQVAE.from_pretrained(weights).skeleton == read_motion(folder / "walk.npz").skeleton
    other = tmp_path / "other"
    other.mkdir()
    write_motion(other / "a.bvh", random_clip(random_skeleton(55), 40))
    reset()
    assert main(options(other, tmp_path / "two", 1, f"--weights={weights}")) == 1
    assert "a.bvh has no pelvis, " in capsys.readouterr().err
    assert main(options(folder, run, 2)) == 0


def test_training_does_not_start_from_damaged_weights(folder, tmp_path, capsys):
    weights = tmp_path / "start.safetensors"
    model = RVQVAE.from_pretrained(saved_tokenizer(weights))
    next(model.parameters()).data[0] = float("nan")
    model.save_pretrained(weights)
    assert main(options(folder, tmp_path / "run", 1, f"--weights={weights}")) == 1
    assert "holds values that are not finite" in capsys.readouterr().err


def test_other_weights_to_start_from_are_refused(folder, tmp_path, capsys):
    weights, run = tmp_path / "start.safetensors", tmp_path / "run"
    saved_tokenizer(weights)
    assert main(options(folder, run, 1, f"--weights={weights}")) == 0
    moved = weights.rename(tmp_path / "moved.safetensors")
    reset()
    assert main(options(folder, run, 2, f"--weights={moved}")) == 0
    tiny_tokenizer(seed=1).save_pretrained(moved)
    reset()
    capsys.readouterr()
    assert main(options(folder, run, 3, f"--weights={moved}")) == 1
    assert f"weights is '{moved}' (digest " in capsys.readouterr().err


def run_command(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_held_out_motion_is_judged_and_shown_and_the_best_is_kept(folder, tmp_path, capsys):
    changes = ["--trainer.evaluate_every=2", "--trainer.preview_every=4"]
    changes += ["--trainer.checkpoint_every=2", "--trainer.keep_checkpoints=1"]
    # Too fast to learn: the first evaluation is not the worst.
    assert main(options(folder, tmp_path, 6, *changes, "--trainer.learning_rate=0.1")) == 0
    found = {line["step"]: line for line in lines_of(tmp_path) if "evaluation_mpjpe" in line}
    assert found.keys() == {2, 4, 6}
    figures = ("mpjpe", "rotation_error", "code_use", "perplexity", "perplexity_1", "perplexity_2")
    for line in found.values():
        assert {f"evaluation_{name}" for name in figures} < line.keys()
        layers = line["evaluation_perplexity_1"], line["evaluation_perplexity_2"]
        assert line["evaluation_perplexity"] == pytest.approx(sum(layers) / 2, rel=1e-3)
    best = min(found, key=lambda step: found[step]["evaluation_mpjpe"])
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {f"step-{step:08d}" for step in {best, 6}}
    assert {path.name for path in (tmp_path / "previews").iterdir()} == {
        "step-00000004.png",
        "step-00000006.png",
    }
    info = probe(tmp_path / "previews" / "step-00000006.png")
    assert (info.width, info.height) == (8 * 240, 2 * 320)
    page = (tmp_path / "report.html").read_text()
    assert "<dd>complete</dd>" in page and "MPJPE (mm), lower is better" in page
    assert "after step 6: " in page and "after step 4: " in page
    assert refused_figures(folder, tmp_path / "other", capsys) == list(figures)


def refused_figures(folder: Path, run: Path, capsys, *changes: str) -> list[str]:
    """The figures that a run names before its first step, because they do not include "psnr"."""
    assert main(options(folder, run, 1, *changes, "--trainer.best=psnr")) == 1
    assert not (run / "log.jsonl").exists()
    return capsys.readouterr().err.split("one of ")[1].split(", not ")[0].split(", ")


def test_nothing_held_out_is_nothing_judged(folder, tmp_path):
    assert main(options(folder, tmp_path, 2, "--data.held_out=0")) == 0
    assert not any("evaluation_mpjpe" in line for line in lines_of(tmp_path))
    assert not (tmp_path / "previews").exists()
    assert "This run is not evaluated." in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("biased", [False, True])
def test_humanml3d_is_trained_on(tmp_path, biased):
    features = np.random.default_rng(0).normal(size=(60, 263)).astype(np.float32)
    (tmp_path / "new_joint_vecs").mkdir()
    np.save(tmp_path / "new_joint_vecs" / "000000.npy", features)
    changes = ["--model.channels=263", "--model.features=null", "--model.fps=20"]
    changes += ["--data.feature_bias=5"] if biased else []
    run = tmp_path / "run"
    assert main(options(tmp_path, run, 2, *changes)) == 0
    std = RVQVAE.from_pretrained(run / "model.safetensors").normalizer.std
    expected = torch.from_numpy(features[:48]).double().std(0, correction=0).float()
    expected[[*range(4), *range(-4, 0)]] /= 5 if biased else 1
    torch.testing.assert_close(std, expected)
    assert (run / "previews" / "step-00000002.png").exists()


def test_training_goes_on_from_given_weights(folder, tmp_path, capsys):
    """With their architecture, which is told, and their normalizer."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(options(folder, first, 2)) == 0
    weights = first / "model.safetensors"
    reset()
    changes = [f"--weights={weights}", "--trainer.learning_rate=0", "--data.held_out=0"]
    changes += ["--model.resnet.width=32", "--model.quantizer.decay=0.5"]
    assert main(options(folder, second, 1, *changes)) == 0
    told = f"the architecture is the one of {weights}: model.resnet.width is 16, not 32, "
    assert told in capsys.readouterr().out
    before, after = tensors_of(first), tensors_of(second)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) != (name in LEARNT), name


def broken(path: Path) -> Path:
    """A walk with a number that is none."""
    path.mkdir()
    write_motion(path / "walk.npz", walk(40))
    arrays = dict(np.load(path / "walk.npz"))
    arrays["trans"][3, 1] = float("nan")
    np.savez(path / "walk.npz", **arrays)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--data.folder={empty}"], "has no .bvh or .npz or .pkl files"),
        (["--data.folder={none}"], "does not exist; check the path"),
        (["--data.folder={broken}"], "walk.npz: trans is nan"),
        (["--model.channels=330"], "has 333 channels of 55 joints, but the model has 330"),
        (["--data.window=97"], "97 frames to train on, the longest has 96: lower data.window"),
        (["--data.feature_bias=5"], "feature_bias must be 1"),
        (["--weights={none}"], "none"),
        (["--data.held_out=0", "--trainer.best=mpjpe"], "nothing is evaluated"),
        (["--trainer.best=psnr"], "best must be one of mpjpe, rotation_error"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(folder, tmp_path, capsys, changes, message):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "none": tmp_path / "none"}
    places["broken"] = broken(tmp_path / "broken")
    changes = [change.format(**places) for change in changes]
    assert main(options(folder, tmp_path / "run", 1, *changes)) == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "motion.train:" in x)
    assert message in line
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model.widht=3"], "widht"),
        (["--loss.position=-1"], "position must be at least 0"),
        (["--trainer.ema_decay=0.9"], "ema_decay is 0.9, but the codes follow the current encoder"),
        (["--model.features.rot6d=diagonal"], "rot6d"),
    ],
)
def test_impossible_options_are_refused_by_name(folder, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as exit_:
        main(options(folder, tmp_path, 1, *changes))
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interruption_before_the_first_step_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(_: TrainConfig) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("motion.train.run.run", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "motion.train: interrupted before the first step\n"


def test_it_trains_through_the_launcher(folder, tmp_path):
    command = ["accelerate.commands.launch", "--cpu", "--num_processes=1", "-m", "motion.train"]
    run_command(*command, *options(folder, tmp_path, 2))
    assert (tmp_path / "model.safetensors").exists()


# The dilation 9 over the 4 positions of latents of a window.
FAR = ["--model.resnet.depth=2", "--model.resnet.dilation_growth_rate=[1,9]"]


def outer_taps(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    blocks = "encoder.model.3.1.model.0", "decoder.model.2.0.model.0"
    return [tensors[f"{block}.conv1.weight"][:, :, [0, 2]] for block in blocks]


def test_taps_that_windows_do_not_reach_stay_at_zero(folder, tmp_path, capsys):
    assert main(options(folder, tmp_path / "run", 12, *FAR, "--trainer.weight_decay=0.1")) == 0
    assert "outer taps of 2 convolutions start at zero and stay so" in capsys.readouterr().out
    tensors = tensors_of(tmp_path / "run")
    assert all(taps.eq(0).all() for taps in outer_taps(tensors))
    assert tensors["encoder.model.3.1.model.0.conv1.weight"][:, :, 1].ne(0).all()
    reset()
    # Others are the same numbers as without the zeros.
    assert main(options(folder, tmp_path / "covered", 1, *FAR, "--data.window=40")) == 0
    assert "outer taps" not in capsys.readouterr().out
    assert all(taps.any() for taps in outer_taps(tensors_of(tmp_path / "covered")))


@pytest.mark.filterwarnings("always:.*look further than windows:UserWarning")
def test_weights_whose_taps_windows_do_not_reach_are_told(folder, tmp_path, capsys):
    weights = tmp_path / "covered" / "model.safetensors"
    assert main(options(folder, weights.parent, 1, *FAR, "--data.window=40")) == 0
    reset()
    run = tmp_path / "shorter"
    assert main(options(folder, run, 1, f"--weights={weights}")) == 0
    told = capsys.readouterr().err
    assert f"2 convolutions of {weights} look further than windows of 16 frames" in told
    assert "set data.window to at least 40" in told
    # They are weights of somebody, and stay.
    before, after = (outer_taps(tensors_of(path)) for path in (weights.parent, run))
    assert all(map(torch.equal, before, after))
    reset()
    # As trained from the start with such windows: zeroed, so there is nothing to tell.
    zeroed = tmp_path / "zeroed" / "model.safetensors"
    assert main(options(folder, zeroed.parent, 1, *FAR)) == 0
    reset()
    assert main(options(folder, tmp_path / "again", 1, f"--weights={zeroed}")) == 0
    assert "look further" not in capsys.readouterr().err


def test_a_run_of_taps_with_random_numbers_goes_on_with_them(folder, tmp_path, monkeypatch):
    """Of an earlier version: a run that is resumed is not changed."""
    with monkeypatch.context() as patched:
        patched.setattr("motion.train.run.find_unreached_taps", lambda *_: [])
        assert main(options(folder, tmp_path, 2, *FAR)) == 0
    before = outer_taps(tensors_of(tmp_path))
    assert all(taps.any() for taps in before)
    reset()
    assert main(options(folder, tmp_path, 4, *FAR)) == 0
    assert all(map(torch.equal, before, outer_taps(tensors_of(tmp_path))))


SMOOTH = [
    "--model.smoothing.before=1",
    "--model.smoothing.after=1",
    "--model.features.heading=relative",
    "--model.channels=334",
    "--loss.acceleration=0.1",
    "--loss.foot_velocity=1",
    "--data.mirror=true",
]


def test_smooth_motion_is_trained(folder, tmp_path, capsys):
    assert main(options(folder, tmp_path, 3, *SMOOTH)) == 0
    terms = {"features", "position", "acceleration", "foot_velocity", "commitment"}
    for line in lines_of(tmp_path):
        if "loss" in line:
            assert line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-3)
    model = RVQVAE.from_pretrained(tmp_path / "model.safetensors")
    assert model.smoother is not None and model.config.features.relative
    reset()
    # Turned windows need features that turn.
    assert main(options(folder, tmp_path / "other", 1, *SMOOTH, "--data.turn=true")) == 1
    assert "set data.turn to false" in capsys.readouterr().err


def test_turned_windows_are_trained_on(folder, tmp_path):
    assert main(options(folder, tmp_path, 1, "--data.turn=true")) == 0
    mean = RVQVAE.from_pretrained(tmp_path / "model.safetensors").normalizer.mean
    # The root faces all directions: the rows of x and z have no mean, the row of y stays.
    torch.testing.assert_close(mean[:3], torch.zeros(3), rtol=0, atol=1e-6)
    assert mean[4] > 0.9


def test_mirrored_files_are_the_files_of_the_run(folder, tmp_path):
    """They are not other files, but a run goes on only with the same choice."""
    assert main(options(folder, tmp_path, 1, "--data.mirror=true")) == 0
    reset()
    assert main(options(folder, tmp_path, 2, "--data.mirror=true")) == 0
    reset()
    assert main(options(folder, tmp_path, 3)) == 1
