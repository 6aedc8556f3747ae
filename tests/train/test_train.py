"""Training a video VAE from its command line."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from tests.helpers import tiny
from tests.metrics.test_lpips import features
from wanvae import WanVAE, WanVAEConfig, cli
from wanvae.engine.command_line.arguments import parse_config
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.train.run import TrainConfig, first_model, main
from wanvae.video import VideoError, probe, write_video

CONFIGS = Path(__file__).parents[2] / "configs"


def options(folder: Path, run: Path, steps: int) -> list[str]:
    return [
        f"--config={CONFIGS / 'video' / 'tiny.yaml'}",
        f"--data.folder={folder}",
        "--data.size=16",
        "--model.dim=4",
        "--model.dim_mult=[1,2]",
        "--model.temporal_downsample=[true]",
        f"--trainer.run={run}",
        f"--trainer.steps={steps}",
        "--trainer.warmup_steps=5",
        "--trainer.learning_rate=3e-3",
        "--trainer.log_every=1",
        "--trainer.workers=0",
    ]


def test_training_improves_the_reconstruction(folder, tmp_path):
    run = tmp_path / "run"
    assert main(options(folder, run, 100)) == 0
    psnr = [json.loads(line)["psnr"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(psnr) == 100
    # From the 12 dB of a gray picture; two runs of other seeds came to 16 and 17.
    assert sum(psnr[-10:]) / 10 > sum(psnr[:5]) / 5 + 2.5
    vae = WanVAE.from_pretrained(run / "model.safetensors")
    assert vae.config.dim_mult == (1, 2)


def test_training_goes_on_from_given_weights(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(options(folder, first, 2)) == 0
    weights = first / "model.safetensors"
    arguments = [*options(folder, second, 1), f"--weights={weights}", "--trainer.learning_rate=0"]
    assert main(arguments) == 0
    before = WanVAE.from_pretrained(weights).state_dict()
    after = WanVAE.from_pretrained(second / "model.safetensors").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return WanVAE.from_pretrained(path).state_dict()


def test_a_frozen_encoder_is_bit_equal_after_training(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(options(folder, first, 1)) == 0
    weights = first / "model.safetensors"
    changes = [f"--weights={weights}", "--freeze_encoder=true", "--trainer.weight_decay=0.1"]
    assert main([*options(folder, second, 3), *changes]) == 0
    before, after = tensors_of(weights), tensors_of(second / "model.safetensors")
    for name, tensor in before.items():
        frozen = name.startswith(("encoder.", "conv1."))
        # Attention starts at zero, and so do the gradients of what is before its projection.
        if frozen or "middle.1." not in name:
            assert torch.equal(after[name], tensor) == frozen, name


def test_an_rgba_model_is_trained_on_transparent_videos_and_images(tmp_path):
    folder, run = tmp_path / "videos", tmp_path / "run"
    folder.mkdir()
    frames, y, x = torch.meshgrid(
        torch.arange(9), torch.arange(32), torch.arange(48), indexing="ij"
    )
    phases = [x / 9, y / 7, (x + y) / 11, x / 5 + frames / 3]
    video = torch.stack([torch.sin(phase) for phase in phases])
    write_video(folder / "a.webm", video, Fraction(25))
    write_video(folder / "b.png", video[:, :1], Fraction(1))
    write_video(folder / "opaque.mp4", video[:3], Fraction(25))
    changes = [
        f"--config={CONFIGS / 'video' / 'rgba.yaml'}",
        "--data.buckets=[{frames: 1, height: 16, width: 16}, {frames: 5, height: 16, width: 16}]",
        "--loss.lpips=0",
        "--trainer.batch_size=4",
        "--trainer.learning_rate=3e-3",
        f"--evaluation.folder={folder}",
        "--evaluation.frames=5",
        "--evaluation.size=16",
        "--trainer.evaluate_every=2",
    ]
    small = [option for option in options(folder, run, 4) if "tiny.yaml" not in option]
    assert main([*changes, *small, "--model.num_res_blocks=1"]) == 0
    vae = WanVAE.from_pretrained(run / "model.safetensors")
    assert (vae.config.in_channels, vae.config.out_channels) == (4, 4)
    assert vae.encoder.conv1.weight.shape[1] == 4
    data = DataConfig(folder=str(folder), frames=1, size=16)
    crops = VideoCrops(data, 0, samples_per_step=1, alpha=True)
    alphas = torch.stack([crops[number][3] for number in range(30)])
    assert (alphas == 1).flatten(1).all(1).any() and (alphas < 0).flatten(1).any(1).any()


def test_an_image_model_is_trained_and_inflated(folder, tmp_path):
    image, video = tmp_path / "image", tmp_path / "video"
    assert main([*options(folder, image, 2), "--model.ndim=2", "--data.frames=1"]) == 0
    weights = image / "model.safetensors"
    config = parse_config(TrainConfig, "test", "", [f"--weights={weights}"])
    assert first_model(config).config.ndim == 3
    assert first_model(replace(config, model=WanVAEConfig(ndim=2))).config.ndim == 2
    assert main([*options(folder, video, 1), f"--weights={weights}"]) == 0
    vae = WanVAE.from_pretrained(video / "model.safetensors")
    assert vae.config == replace(WanVAE.from_pretrained(weights).config, ndim=3)


def test_a_video_model_does_not_become_an_image_model(tmp_path, capsys):
    weights = tmp_path / "vae.safetensors"
    tiny().float().save_pretrained(weights)
    assert main([f"--weights={weights}", "--model.ndim=2"]) == 1
    assert "is a video model, not an image model: set model.ndim to 3" in capsys.readouterr().err


def test_a_new_encoder_cannot_be_frozen(capsys):
    with pytest.raises(SystemExit):
        main(["--freeze_encoder=true"])
    assert "freeze_encoder needs weights" in capsys.readouterr().err


def test_wanvae_train_is_the_same_command(folder, tmp_path, capsys):
    runs = tmp_path / "module", tmp_path / "command"
    assert main(options(folder, runs[0], 2)) == 0
    assert cli.main(["train", *options(folder, runs[1], 2)]) == 0
    of_module, of_command = (tensors_of(run / "model.safetensors") for run in runs)
    assert all(torch.equal(of_command[name], tensor) for name, tensor in of_module.items())
    assert cli.main(["train", *options(tmp_path / "nowhere", tmp_path / "run", 1)]) == 1
    assert "\nwanvae train: no usable video in" in capsys.readouterr().err


def test_a_run_goes_on_only_with_the_same_model_and_data(folder, tmp_path, capsys):
    """A finished run of another architecture does not end well with the old model."""
    run = tmp_path / "run"
    assert main(options(folder, run, 1)) == 0
    for changes, said in (
        (["--model.dim=8"], "model.dim is 4, not 8"),
        (["--model.activation=relu"], "model.activation is 'silu', not 'relu'"),
        (["--loss.kl=1"], "loss.kl is 1e-07, not 1.0"),
        (["--data.flip=false"], "data.flip is True, not False"),
    ):
        assert main([*options(folder, run, 1), *changes]) == 1
        assert said in capsys.readouterr().err
    moved = folder.rename(tmp_path / "moved")
    (moved / "notes.txt").write_text("no video")
    assert main([*options(moved, run, 2), "--gradient_checkpointing=true"]) == 0
    assert f"{moved}: ignored, no videos or images: 1 .txt\n" in capsys.readouterr().out
    shutil.copy(moved / "waves.mp4", moved / "more.mp4")
    assert main(options(moved, run, 3)) == 1
    assert "the training data are 1 entries" in capsys.readouterr().err


def test_weights_to_start_from_bring_their_architecture_to_the_record(folder, tmp_path, capsys):
    weights = tmp_path / "vae.safetensors"
    tiny(num_res_blocks=2).float().save_pretrained(weights)
    arguments = [*options(folder, tmp_path / "run", 1), f"--weights={weights}"]
    assert main(arguments) == 0
    tiny(num_res_blocks=1).float().save_pretrained(weights)
    assert main(arguments) == 1
    assert "model.num_res_blocks is 2, not 1" in capsys.readouterr().err


def test_other_weights_to_start_from_are_refused_and_the_same_in_another_file_are_not(
    folder, tmp_path, capsys
):
    weights, moved = tmp_path / "vae.safetensors", tmp_path / "moved.safetensors"
    vae = tiny().float()
    vae.save_pretrained(weights)

    def train(path: Path, steps: int) -> int:
        return main([*options(folder, tmp_path / "run", steps), f"--weights={path}"])

    assert train(weights, 1) == 0
    shutil.copy(weights, moved)
    assert train(moved, 2) == 0
    with torch.no_grad():
        vae.conv1.bias[0] += 1
    vae.save_pretrained(moved)
    capsys.readouterr()
    assert train(moved, 3) == 1
    assert f"weights is '{moved}' (digest " in capsys.readouterr().err


def test_the_command_of_the_readme_trains(folder, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    command += ["-m", "wanvae.train", *options(folder, tmp_path / "run", 2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert main(options(tmp_path / "nowhere", tmp_path / "run", 1)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no usable video in" in error


def test_an_unknown_key_is_refused_by_name(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  dimension: 8\n")
    with pytest.raises(SystemExit) as exit_:
        main([f"--config={config}"])
    assert exit_.value.code == 2
    assert "dimension" in capsys.readouterr().err


def test_an_impossible_value_is_refused_by_name(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*options(folder, tmp_path / "run", 1), "--model.dim=0"])
    assert exit_.value.code == 2
    assert "dim must be at least 1" in capsys.readouterr().err


def test_an_interruption_before_the_first_step_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(_: TrainConfig) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("wanvae.train.run.run", interrupted)
    assert main(options(tmp_path, tmp_path / "run", 1)) == 130
    assert capsys.readouterr().err == "wanvae.train: interrupted before the first step\n"


@pytest.mark.filterwarnings("ignore:a clip of waves.mp4")
def test_an_error_in_a_loading_process_is_one_line(folder, tmp_path, capsys, monkeypatch):
    def unreadable(*_: object, **__: object) -> torch.Tensor:
        raise VideoError("cannot read it")

    monkeypatch.setattr("wanvae.train.crops.read_clip", unreadable)
    assert main([*options(folder, tmp_path / "run", 1), "--trainer.workers=1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("wanvae.train: 100 files in a row could not be read from ")
    assert "the last: cannot read it" in last


WAN22 = [
    *("--model.dim_mult=[1,1]", "--model.patch_size=2"),
    *("--model.stage_shortcuts=true", "--model.decoder_dim=6"),
]


def test_training_does_not_start_from_damaged_weights(folder, tmp_path, capsys):
    vae = tiny().float()
    vae.conv1.bias.data[0] = float("nan")
    vae.save_pretrained(tmp_path / "a.safetensors")
    weights = f"--weights={tmp_path / 'a.safetensors'}"
    assert main([*options(folder, tmp_path / "run", 1), weights]) == 1
    assert "holds values that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("recompute", ["true", "false"])
def test_a_model_of_the_kind_of_wan22_trains(folder, tmp_path, recompute):
    extra = [*WAN22, f"--gradient_checkpointing={recompute}"]
    assert main([*options(folder, tmp_path / "run", 2), *extra]) == 0
    config = WanVAE.from_pretrained(tmp_path / "run" / "model.safetensors").config
    assert config.stage_shortcuts and config.patch_size == 2 and config.decoder_dim == 6


def test_a_decoder_of_other_channels_has_nothing_to_be_trained_on(folder, tmp_path, capsys):
    assert main([*options(folder, tmp_path / "run", 1), "--model.out_channels=4"]) == 1
    assert "no original that it could learn from" in capsys.readouterr().err


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_new_model_cannot_be_trained(folder, tmp_path, capsys, half):
    assert main([*options(folder, tmp_path / "run", 1), f"--model.half={half}"]) == 1
    assert f"{half} alone, so it cannot" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--loss.gan.weight=1"], ["--loss.equivariance.weight=1"]])
def test_a_loss_that_does_not_compare_is_refused(folder, tmp_path, capsys, more):
    """An adaptive weight of the discriminator is relative to what compares, and would be 0."""
    nothing = [*options(folder, tmp_path / "run", 1), "--loss.l1=0", *more]
    with pytest.raises(SystemExit):
        main(nothing)
    assert "nothing compares the output with the video" in capsys.readouterr().err


def test_options_that_change_nothing_are_told(folder, tmp_path, capsys):
    weights = tmp_path / "vae.safetensors"
    tiny().float().save_pretrained(weights)
    more = [f"--weights={weights}", "--model.dropout=0.5", "--loss.gan.weight=1"]
    more += ["--loss.gan.dim=8", "--loss.gan.start_step=1"]
    assert main([*options(folder, tmp_path / "run", 1), *more]) == 0
    told = capsys.readouterr().out
    assert f"the architecture is the one of {weights}: model." in told
    assert "model.dropout is 0.0, not 0.5" in told
    assert "loss.gan.start_step is 1, and the run has 1 steps, so no discriminator" in told


@pytest.mark.parametrize(("judged", "told"), [("", True), ("inside", True), ("../beside", False)])
def test_clips_to_judge_by_that_are_trained_on_are_told(folder, tmp_path, capsys, judged, told):
    (folder / judged).mkdir(exist_ok=True)
    if judged:
        shutil.copy(folder / "waves.mp4", folder / judged)
    clips = [f"--evaluation.folder={folder / judged}", "--evaluation.frames=5"]
    assert main([*options(folder, tmp_path / "run", 1), *clips, "--evaluation.size=16"]) == 0
    assert ("judged by clips that it is trained on" in capsys.readouterr().out) == told


def test_buckets_train(folder, tmp_path):
    buckets = "[{frames: 5, height: 16, width: 24}, {frames: 1, height: 32, width: 8}]"
    arguments = [*options(folder, tmp_path / "run", 6), f"--data.buckets={buckets}"]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_shapes_that_the_model_cannot_take_are_refused_at_once(folder, tmp_path, capsys):
    for shape, wrong in (
        ("frames: 4, height: 16, width: 16", "not 4"),
        ("frames: 5, height: 16, width: 15", "not 16x15"),
    ):
        buckets = f"[{{frames: 5, height: 16, width: 16}}, {{{shape}}}]"
        assert main([*options(folder, tmp_path / "run", 1), f"--data.buckets={buckets}"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and wrong in error
        assert "training crops of " in error


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


GAN = ["--loss.gan.weight=0.5", "--loss.gan.dim=8", "--loss.gan.layers=2"]


def test_a_discriminator_takes_part_from_its_first_step(folder, tmp_path):
    run = tmp_path / "run"
    changes = [*GAN, "--loss.gan.start_step=2", "--loss.gan.r1=1", "--loss.gan.lecam=0.01"]
    assert main([*options(folder, run, 5), *changes, "--gradient_checkpointing=true"]) == 0
    for line in lines_of(run):
        plays = line["step"] > 2
        assert ({"gan", "hinge", "r1", "lecam", "real_logit"} <= line.keys()) == plays
        assert ("hinge" in line) == plays


def test_an_interrupted_game_goes_on_as_if_it_had_not_been(folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = [*GAN, "--loss.gan.lecam=0.01", "--trainer.ema_decay=0.9", "--trainer.accumulate=2"]
    changes += ["--trainer.checkpoint_every=2"]
    assert main([*options(folder, whole, 4), *changes]) == 0
    # As after kill -9 in step 3 or 4: the newest checkpoint is that of step 2.
    shutil.copytree(whole / "checkpoints", cut / "checkpoints")
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    assert main([*options(folder, cut, 4), *changes]) == 0
    expected, found = (tensors_of(run / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_held_out_clips_are_judged_and_shown_and_the_best_is_kept(folder, tmp_path, capsys):
    run = tmp_path / "run"
    changes = [f"--evaluation.folder={folder}", "--evaluation.frames=5", "--evaluation.size=32"]
    changes += ["--trainer.evaluate_every=3", "--trainer.preview_every=3"]
    changes += ["--trainer.checkpoint_every=3", "--trainer.keep_checkpoints=1"]
    assert main([*options(folder, run, 9), *changes]) == 0
    scores = {
        line["step"]: line["evaluation_psnr"] for line in lines_of(run) if "evaluation_psnr" in line
    }
    assert scores.keys() == {3, 6, 9}
    best = max(scores, key=scores.get)
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {f"step-{step:08d}" for step in {best, 9}}
    for step in scores:
        info = probe(run / "previews" / f"step-{step:08d}.png")
        assert (info.height, info.width) == (2 * 32, 3 * 32)
    for line in lines_of(run):
        if "evaluation_psnr" in line:
            names = {f"evaluation_{name}" for name in ("ssim", "temporal", "flicker", "kl_bits")}
            assert names < line.keys() and "evaluation_lpips" not in line
    assert capsys.readouterr().out.count("LPIPS is left out: ") == 1
    page = (run / "report.html").read_text()
    assert "<dd>complete</dd>" in page and "PSNR (dB), higher is better" in page
    assert "LPIPS is left out: " in page and f"after step {best}: " in page


def test_lpips_is_measured_and_chooses_the_best_if_its_weights_are_there(
    folder, tmp_path, monkeypatch, capsys
):
    changes = [f"--evaluation.folder={folder}", "--evaluation.frames=5", "--evaluation.size=32"]
    changes += ["--trainer.best=lpips", "--trainer.best_is=lowest"]
    assert main([*options(folder, tmp_path / "without", 2), *changes]) == 1
    err = capsys.readouterr().err
    assert "trainer.best is lpips, but LPIPS cannot be measured: " in err and "alexnet" in err
    torch.manual_seed(0)
    cached = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    state = {f"features.{k}": v for k, v in features("alexnet").state_dict().items()}
    torch.save(state, cached)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(
        torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained=False: features(net)
    )
    monkeypatch.setattr("wanvae.metrics.lpips.find_spec", lambda name: name)
    run = tmp_path / "run"
    assert main([*options(folder, run, 2), *changes]) == 0
    assert lines_of(run)[-1]["evaluation_lpips"] > 0
    assert "LPIPS is left out" not in (run / "report.html").read_text()


@pytest.mark.parametrize("frames", [1, 5])
def test_a_figure_that_no_evaluation_gives_is_refused_before_the_first_step(
    folder, tmp_path, capsys, frames
):
    """One frame has no changes. The message names the figures that the log gets."""
    changes = [f"--evaluation.folder={folder}", f"--evaluation.frames={frames}"]
    changes += ["--evaluation.size=16", "--model.temporal_downsample=[true]"]
    run, other = tmp_path / "run", tmp_path / "other"
    assert main([*options(folder, run, 1), *changes]) == 0
    names = [name for name in lines_of(run)[-1] if name.startswith("evaluation_")]
    assert main([*options(folder, other, 1), *changes, "--trainer.best=code_use"]) == 1
    listed = ", ".join(name.removeprefix("evaluation_") for name in names)
    assert f"best must be one of {listed}, not 'code_use'" in capsys.readouterr().err
    assert not (other / "log.jsonl").exists()


def test_a_run_without_evaluation_has_a_page_that_says_so(folder, tmp_path):
    run = tmp_path / "run"
    assert main(options(folder, run, 2)) == 0
    assert "This run is not evaluated." in (run / "report.html").read_text()


def test_held_out_clips_that_the_model_cannot_take_are_refused(folder, tmp_path, capsys):
    changes = [f"--evaluation.folder={folder}", "--evaluation.frames=4"]
    assert main([*options(folder, tmp_path / "run", 1), *changes]) == 1
    error = capsys.readouterr().err
    assert "evaluation.frames 4 and evaluation.size 128: a clip must have" in error
    assert "not 4" in error
