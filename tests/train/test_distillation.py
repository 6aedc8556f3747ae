"""Distillation of a small encoder or decoder from a teacher."""

import copy
import json
import os
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import LAUNCHER, WAN22, random_video, tiny
from tests.train.short_runs import lines, short_run
from wanvae import TinyVAE, WanVAE, cli
from wanvae.checkpoints.formats import save_diffusers
from wanvae.errors import UserError
from wanvae.model import require_wan_vae
from wanvae.posterior import Posterior
from wanvae.train.distillation import (
    DistillConfig,
    Projections,
    feature_error,
    features_of,
    make_student,
    widths_of_features,
)
from wanvae.train.held_out import EvaluationConfig, evaluate, read_held_out
from wanvae.train.run import TrainConfig, main
from wanvae.train.trainee import Trainee
from wanvae.train.upscaling import with_upscaling
from wanvae.video import read_video, write_video

HALVES = ("decoder", "encoder")
ROOTS = {"decoder": ("decoder.", "conv2."), "encoder": ("encoder.", "conv1.")}
OTHER = {"decoder": "encoder", "encoder": "decoder"}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A small teacher, in float32."""
    path = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float().save_pretrained(path)
    return path


def options(folder: Path, teacher: Path, run: Path, steps: int, half: str) -> list[str]:
    weights = ["--distill.features=0.1"]
    weights += ["--distill.posterior=0.1"] if half == "encoder" else []
    return [
        f"--weights={teacher}",
        f"--distill.half={half}",
        *weights,
        "--trainer.checkpoint_every=2",
        *short_run(folder, run, steps),
    ]


def tensors(vae: WanVAE, half: str) -> dict[str, Tensor]:
    return {n: t for n, t in vae.state_dict().items() if n.startswith(ROOTS[half])}


# The student


@pytest.mark.parametrize("start", ["pruned", "new"])
@pytest.mark.parametrize("half", HALVES)
def test_a_student_has_half_the_width_and_the_other_half_of_its_teacher(
    half: str, start: str
) -> None:
    teacher = tiny(dropout=0.5).float()
    student = make_student(teacher, DistillConfig(half=half, start=start))
    assert isinstance(student, WanVAE)
    assert student.config == WanVAE(student.config).config
    widths = {"decoder": (4, 2), "encoder": (2, 4)}[half]
    assert (student.config.dim, student.config.decoder_dim) == widths
    assert student.config.blocks_of_decoder == teacher.config.blocks_of_decoder
    for name, tensor in tensors(student, OTHER[half]).items():
        assert torch.equal(tensor, teacher.state_dict()[name])
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == name.startswith(ROOTS[half])
    # A frozen half does not drop values.
    frozen = {"decoder": student.encoder, "encoder": student.decoder}[half]
    assert student.training and not any(module.training for module in frozen.modules())


def test_a_student_may_have_another_depth() -> None:
    teacher = tiny(num_res_blocks=2).float()
    decoder = make_student(teacher, DistillConfig(half="decoder", res_blocks=1)).config
    assert (decoder.num_res_blocks, decoder.blocks_of_decoder) == (2, 1)
    encoder = make_student(teacher, DistillConfig(half="encoder", res_blocks=1)).config
    assert (encoder.num_res_blocks, encoder.blocks_of_decoder) == (1, 3)


@pytest.mark.parametrize("half", HALVES)
def test_a_student_as_deep_as_its_teacher_has_the_layout_of_diffusers(
    half: str, tmp_path: Path
) -> None:
    teacher = tiny(dim=8).float()
    for dim in (4, 8):
        student = make_student(teacher, DistillConfig(half=half, dim=dim))
        assert isinstance(student, WanVAE)
        folder = tmp_path / str(dim)
        save_diffusers(folder, student.config, student.state_dict())
        read = WanVAE.from_pretrained(folder)
        for name, tensor in student.state_dict().items():
            assert torch.equal(tensor, read.state_dict()[name])


@pytest.mark.parametrize("variant", [{}, WAN22, {"attn_scales": (0.5,)}, {"ndim": 2}])
@pytest.mark.parametrize("half", HALVES)
@torch.no_grad()
def test_features_do_not_change_what_a_half_computes(half: str, variant: dict) -> None:
    vae = tiny(**variant)
    video = random_video(5, 32, 32)
    moments = vae.encode_step(video, None)[0]
    latents = moments.chunk(2, dim=1)[0]
    given, expected = (
        (video, moments) if half == "encoder" else (latents, vae.decode_step(latents, None)[0])
    )
    found = features_of(vae, half, given)
    torch.testing.assert_close(found.output, expected)
    assert len(found.stages) == len(vae.config.dim_mult) + 1
    assert [x.shape[1] for x in found.stages] == widths_of_features(vae, half)
    # Kept features are not overwritten by the layers after them.
    again = features_of(vae, half, given)
    for some, others in zip(found.stages, again.stages, strict=True):
        assert torch.equal(some, others)


@pytest.mark.parametrize("half", HALVES)
def test_features_of_teacher_and_student_have_the_same_sizes(half: str) -> None:
    teacher = tiny(num_res_blocks=2).float()
    student = make_student(teacher, DistillConfig(half=half, res_blocks=1)).eval()
    x = random_video(5, 16, 16).float() if half == "encoder" else torch.randn(1, 2, 2, 2, 2)
    theirs, ours = (features_of(vae, half, x).stages for vae in (teacher, student))
    projections = Projections(*(widths_of_features(vae, half) for vae in (student, teacher)))
    assert [x.shape for x in projections(ours)] == [x.shape for x in theirs]


def test_the_error_of_features_is_relative() -> None:
    features = [torch.randn(2, 3, 2, 4, 4), torch.randn(2, 5, 2, 4, 4)]
    zeros = [torch.zeros_like(x) for x in features]
    assert feature_error(features, features).item() == 0
    torch.testing.assert_close(feature_error(zeros, features), torch.tensor(1.0))
    larger = [100 * x for x in features]
    half = [0.5 * x for x in larger]
    torch.testing.assert_close(feature_error(half, larger), torch.tensor(0.25))


def test_the_divergence_of_posteriors_is_the_one_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        Posterior.from_moments(torch.randn(3, 4, 2, 2, 2, generator=generator)) for _ in range(2)
    )
    normals = [
        torch.distributions.Normal(p.mean.double(), (0.5 * p.logvar.double()).exp())
        for p in (theirs, ours)
    ]
    expected = torch.distributions.kl_divergence(*normals).flatten(1).sum(1)
    torch.testing.assert_close(theirs.kl_from(ours).double(), expected, rtol=1e-5, atol=1e-5)
    standard = Posterior(torch.zeros_like(ours.mean), torch.zeros_like(ours.mean))
    torch.testing.assert_close(ours.kl_from(standard), ours.kl())
    assert ours.kl_from(ours).abs().max() < 1e-5


@pytest.mark.parametrize("half", HALVES)
def test_gradients_reach_the_student_alone(half: str) -> None:
    teacher = tiny().float()
    student = make_student(teacher, DistillConfig(half=half))
    widths = widths_of_features(teacher, half)
    loss = TrainConfig().loss
    trainee = Trainee(student, loss, half=half, teacher_widths=widths)
    trainee.train()
    output = trainee(random_video(5).float())
    terms = [x.square().mean() for x in output.features] + [output.reconstruction.video.mean()]
    torch.stack(terms).sum().backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == name.startswith(ROOTS[half]), name
    assert all(p.grad is not None and p.grad.any() for p in trainee.companion.parameters())


# Runs


def test_an_interruption_of_the_report_says_that_the_student_is_complete(
    folder: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    monkeypatch.setattr("wanvae.train.run.report_student", interrupted)
    assert main(options(folder, teacher, run, 1, "decoder")) == 130
    told = f"interrupted; {run / 'model.safetensors'} is complete; run the same command again"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("half", HALVES)
def test_a_student_learns_and_its_file_has_both_halves(
    folder: Path, teacher: Path, tmp_path: Path, half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # A new teacher has poor latents. An error of pixels would pull the student away from them.
    alone = ["--loss.l1=0"] if half == "encoder" else []
    assert main([*options(folder, teacher, run, 40, half), *alone]) == 0
    logged = [line for line in lines(run) if "loss" in line]
    assert logged[-1]["features"] < 0.8 * logged[0]["features"]
    if half == "encoder":
        assert logged[-1]["posterior"] < logged[0]["posterior"]
        assert logged[-1]["latent_error"] < logged[0]["latent_error"]
    else:
        assert "latent_error" not in logged[0]
        assert logged[-1]["l1"] < logged[0]["l1"]
    student, source = (WanVAE.from_pretrained(p) for p in (run / "model.safetensors", teacher))
    for name, tensor in tensors(student, OTHER[half]).items():
        assert torch.equal(tensor, source.state_dict()[name])
    # The report
    printed = capsys.readouterr().out
    report = run / "student-40"
    assert f"{report / 'report.html'}: the student reaches" in printed
    figures = json.loads((report / "student.json").read_text())
    rows = json.loads((report / "evaluation.json").read_text())["overall"]
    assert [row["model"] for row in rows] == ["teacher", "student"]
    assert [row["psnr"] for row in rows] == [figures["teacher_psnr"], figures["psnr"]]
    for vae, key in ((student, "parameters"), (source, "teacher_parameters")):
        modules = vae.decoding_modules() if half == "decoder" else vae.encoding_modules()
        count = sum(p.numel() for module in modules for p in module.parameters())
        assert figures[key] == count
    assert figures["speed"] > 0
    # All commands take the file.
    source_file, written = folder / "waves.mp4", tmp_path / "out.mp4"
    command = ["reconstruct", str(source_file), str(written)]
    assert cli.main([*command, "--checkpoint", str(run / "model.safetensors")]) == 0
    assert read_video(written)[0].shape == read_video(source_file)[0].shape


@pytest.mark.parametrize("half", HALVES)
def test_an_interrupted_distillation_goes_on_bit_for_bit(
    folder: Path, teacher: Path, tmp_path: Path, half: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*options(folder, teacher, whole, 4, half), "--trainer.ema_decay=0.9"]) == 0
    first = [*options(folder, teacher, parts, 4, half), "--trainer.ema_decay=0.9"]
    assert main(first) == 0
    for name in ("step-00000004",):
        shutil.rmtree(parts / "checkpoints" / name)
    (parts / "model.safetensors").unlink()
    assert main(first) == 0  # from step 2 on
    for name in ("model", "ema", "companion"):
        file = f"checkpoints/step-00000004/{name}.safetensors"
        assert (whole / file).read_bytes() == (parts / file).read_bytes()
    result = "model.safetensors"
    assert (whole / result).read_bytes() == (parts / result).read_bytes()


def test_a_finished_run_with_fewer_steps_is_the_run_that_it_was(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(options(folder, teacher, run, 4, "decoder")) == 0
    written = (run / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(options(folder, teacher, run, 2, "decoder")) == 0
    assert (run / "model.safetensors").read_bytes() == written
    assert [path.name for path in run.glob("student-*")] == ["student-4"]
    printed = capsys.readouterr().out
    assert f"{run} has 4 steps already, more than steps 2: nothing is trained" in printed
    assert "the model after 4 steps" in printed
    assert f"{run / 'student-4' / 'report.html'}: the student reaches" in printed
    assert "4 of 4" in (run / "report.html").read_text()


def test_a_run_goes_on_only_with_the_same_teacher_and_student(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(options(folder, teacher, run, 2, "decoder")) == 0
    again = options(folder, teacher, run, 4, "decoder")
    assert main([*again, "--distill.dim=3"]) == 1
    assert "distill.dim" in capsys.readouterr().err
    vae = WanVAE.from_pretrained(teacher)
    vae.decoder.head[2].bias.data += 1
    vae.save_pretrained(teacher)
    assert main(again) == 1
    assert "weights is" in capsys.readouterr().err


def test_a_tiny_autoencoder_learns_the_latents_of_its_teacher(
    folder: Path, teacher: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ["--distill.tiny_dims=[6,4]", "--distill.start=new", "--distill.features=0"]
    more += ["--distill.res_blocks=1", "--trainer.ema_decay=0.9"]
    assert main([*options(folder, teacher, run, 30, "decoder"), *more]) == 0
    logged = [line for line in lines(run) if "loss" in line]
    assert logged[-1]["l1"] < logged[0]["l1"]
    student = WanVAE.from_pretrained(run / "model.safetensors")
    assert isinstance(student, TinyVAE)
    assert student.encoder is None and student.config.decoder_dims == (6, 4)
    figures = json.loads((run / "student-30" / "student.json").read_text())
    assert figures["parameters"] == sum(p.numel() for p in student.parameters())
    # It decodes the latents that the teacher encodes, to as many frames.
    source = WanVAE.from_pretrained(teacher)
    latents = source.encode(random_video(5).float()).mode()
    assert student.decode(latents).shape == source.decode(latents).shape


def test_a_tiny_student_goes_on_bit_for_bit(folder: Path, teacher: Path, tmp_path: Path) -> None:
    more = ["--distill.tiny_dims=[6,4]", "--distill.start=new", "--distill.features=0"]
    runs = tmp_path / "whole", tmp_path / "parts"
    for run in runs:
        assert main([*options(folder, teacher, run, 4, "decoder"), *more]) == 0
    shutil.rmtree(runs[1] / "checkpoints/step-00000004")
    (runs[1] / "model.safetensors").unlink()
    assert main([*options(folder, teacher, runs[1], 4, "decoder"), *more]) == 0
    whole, parts = ((run / "model.safetensors").read_bytes() for run in runs)
    assert whole == parts


@pytest.mark.parametrize("half", HALVES)
def test_gradients_with_gradient_checkpointing_are_the_same(half: str) -> None:
    teacher = tiny(dim=2)
    students = [make_student(teacher, DistillConfig(half=half)).double()]
    if half == "decoder":
        tiny_student = DistillConfig(half=half, tiny_dims=(4, 4, 2, 2), start="new")
        students.append(make_student(teacher, tiny_student).double())
    video = random_video(5)
    for student in students:
        trainee = Trainee(student, TrainConfig().loss, half=half).double().train()
        gradients = []
        for recompute in (False, True):
            torch.manual_seed(0)
            output = trainee(video, recompute=recompute).reconstruction.video
            trained = [p for p in student.parameters() if p.requires_grad]
            gradients.append(torch.autograd.grad(output.square().mean(), trained))
        for some, others in zip(*gradients, strict=True):
            torch.testing.assert_close(some, others)


def test_clips_that_cannot_be_judged_leave_the_student(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    write_video(images / "one.png", random_video(1, 16, 16)[0].float(), Fraction(1))
    more = [f"--evaluation.folder={images}"]
    assert main([*options(folder, teacher, run, 1, "decoder"), *more]) == 0
    assert (run / "model.safetensors").exists()
    assert "no report of the student beside its teacher: nothing to judge" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("downscaling", ["area", "bicubic"])
def test_a_student_that_upscales_is_judged_at_the_full_size(
    folder: Path,
    teacher: Path,
    tmp_path: Path,
    downscaling: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    more = ["--model.upscale_factor=2", f"--downscaling={downscaling}"]
    assert main([*options(folder, teacher, run, 1, "decoder"), *more]) == 0
    student = WanVAE.from_pretrained(run / "model.safetensors")
    assert student.config.upscale_factor == 2
    report = run / "student-1"
    assert f"{report / 'report.html'}: the student reaches" in capsys.readouterr().out
    evaluation = json.loads((report / "evaluation.json").read_text())
    assert [row["height"] for row in evaluation["records"]] == [16]
    # The same as from the middle of the frames, which the evaluation of the run takes.
    figures = json.loads((report / "student.json").read_text())
    larger = with_upscaling(require_wan_vae(WanVAE.from_pretrained(teacher), teacher, "this"), 2)
    config = EvaluationConfig(folder=str(folder), frames=5, size=16)
    clips = read_held_out(config, larger.config).clips
    for vae, name in ((larger, "teacher_psnr"), (student, "psnr")):
        means = evaluate(vae, clips, downscaling=downscaling).means
        assert figures[name] == pytest.approx(means["psnr"], abs=3)


def test_a_student_with_alpha_is_judged_with_its_error_of_alpha(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgba, run = tmp_path / "rgba.safetensors", tmp_path / "run"
    config = {"dim_mult": (1, 2), "temporal_downsample": (True,)}
    tiny(**config, in_channels=4, out_channels=4).float().save_pretrained(rgba)
    images = tmp_path / "images"
    images.mkdir()
    picture = random_video(1, 16, 16, channels=4)[0].float()
    write_video(images / "one.png", picture, Fraction(1))
    more = [f"--evaluation.folder={images}", "--evaluation.frames=1"]
    assert main([*options(folder, rgba, run, 1, "decoder"), *more]) == 0
    assert "dB), and errs in alpha by" in capsys.readouterr().out
    figures = json.loads((run / "student-1" / "student.json").read_text())
    student = WanVAE.from_pretrained(run / "model.safetensors")
    records = json.loads((run / "student-1" / "evaluation.json").read_text())["records"]
    errors = [row["alpha"] for row in records[0]["models"]]
    assert errors == [figures["teacher_alpha"], figures["alpha"]]
    original = read_video(images / "one.png", alpha=True)[0][None]
    with torch.no_grad():
        decoded = student.decode(student.encode(original).mode())
    error = 127.5 * (decoded - original)[:, 3].abs().mean().item()
    assert figures["alpha"] == pytest.approx(error, rel=1e-3)


def test_a_student_without_clips_to_judge_it_on_is_kept(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*options(folder, teacher, run, 1, "decoder"), "--evaluation.folder=null"]) == 0
    assert (run / "model.safetensors").exists()
    assert "no report of the student beside its teacher: there is no evaluation.folder" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_two_processes_end_with_the_report_of_the_student(
    folder: Path, teacher: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    write_video(images / "one.png", random_video(1, 16, 16)[0].float(), Fraction(1))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for judged, line in ((folder, "the student reaches"), (images, "nothing to judge")):
        run = tmp_path / f"run-{judged.name}"
        given = [*options(folder, teacher, run, 1, "decoder"), f"--evaluation.folder={judged}"]
        command = [*LAUNCHER, "-m", "wanvae.train", *given]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(line) == 1
        assert (run / "model.safetensors").exists()


@pytest.mark.slow
def test_a_student_learns_against_a_discriminator(
    folder: Path, teacher: Path, tmp_path: Path
) -> None:
    gan = ["--loss.gan.weight=0.1", "--loss.gan.dim=4", "--loss.gan.layers=1"]
    for half in HALVES:
        run = tmp_path / half
        assert main([*options(folder, teacher, run, 2, half), *gan]) == 0
        assert all("gan" in line for line in lines(run) if "loss" in line)


# What is refused


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--freeze_encoder=true"], "leave freeze_encoder out"),
        (["--lora.rank=2"], "leave lora.rank out"),
        (["--distill.posterior=1"], "0 without an encoder to train"),
        (["--distill.tiny_dims=[6,4]"], "distill.start must be new with distill.tiny_dims"),
        (["--distill.half=null"], "distill.features must be left out without distill.half"),
        (["--distill.dim=0"], "distill.dim must be at least 1"),
        (
            ["--distill.tiny_dims=[6,4,4]", "--distill.start=new", "--distill.features=0"],
            "distill.tiny_dims must be 2 numbers, because the teacher halves the size 1 times",
        ),
        (["--distill.dim=9"], "choose a smaller distill.dim"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    folder: Path,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(main([*options(folder, teacher, tmp_path / "run", 2, "decoder"), *more]))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("teachers_half", HALVES)
@pytest.mark.parametrize("half", HALVES)
def test_a_teacher_of_one_half_is_refused(
    folder: Path, tmp_path: Path, half: str, teachers_half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "half.safetensors"
    tiny(half=teachers_half).float().save_pretrained(teacher)
    assert main(options(folder, teacher, tmp_path / "run", 2, half)) == 1
    assert f"load a checkpoint that has the {OTHER[teachers_half]} too" in capsys.readouterr().err


def test_a_pair_of_decoders_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = tmp_path / "pair.safetensors"
    tiny(alpha_decoder=True, out_channels=4).float().save_pretrained(pair)
    assert main(options(folder, pair, tmp_path / "run", 2, "decoder")) == 1
    error = capsys.readouterr().err
    assert "colour and of alpha, cannot be trained" in error and "rgba.yaml" in error


def test_a_teacher_is_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--data.folder={folder}", "--distill.half=decoder"])
    assert "distill.half needs weights" in capsys.readouterr().err


def test_an_image_model_has_no_tiny_student() -> None:
    config = DistillConfig(half="decoder", tiny_dims=(4, 4, 4, 4), start="new")
    with pytest.raises(UserError, match=r"leave distill\.tiny_dims out"):
        make_student(tiny(ndim=2), config)


def test_a_student_shares_nothing_with_its_teacher() -> None:
    teacher = tiny().float()
    before = copy.deepcopy(teacher.state_dict())
    for half in HALVES:
        for parameter in make_student(teacher, DistillConfig(half=half)).parameters():
            parameter.data.zero_()
    assert all(torch.equal(before[name], x) for name, x in teacher.state_dict().items())
