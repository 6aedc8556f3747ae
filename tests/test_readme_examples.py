"""The examples of README.md and of the guides run as printed, on small stand-ins for their files.

Commands that would take hours get options besides those printed; each test shows which.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import motion.cli
import motion.train.run
import wanvae.cli
from motion import RVQVAE, MotionVAE, RVQVAEConfig
from motion.checkpoints.formats import Layout as MotionLayout
from motion.commands.convert import convert_checkpoint
from motion.config import WanConfig
from motion.files.formats import read_motion
from tests.helpers import random_video, tiny_autoencoder
from tests.hub_server import HubServer
from tests.latents.caches import musubi, natural
from tests.motion.evaluate.evaluators.published import write_evaluators
from tests.motion.small_tokenizers import ROOTED, tiny_tokenizer
from tests.readme import BLOCKS, EXAMPLES, ROOT, call_of
from tests.rerunning import Rerunner
from tests.stand_ins import small_model, write_official, write_pipeline, write_waves
from tests.two_devices import DEVICES, run_example
from tools.examples import text_to_motion
from wanvae import TinyVAE, WanVAE, WanVAEConfig
from wanvae.checkpoints.formats import Layout
from wanvae.commands.convert import convert
from wanvae.execution import graphs
from wanvae.video import probe

MAINS: dict[str, Callable[[Sequence[str]], int]] = {
    "motion": motion.cli.main,
    "motion.train": motion.train.run.main,
    "tools/examples/text_to_motion.py": text_to_motion.main,
    "wanvae": wanvae.cli.main,
}
PROGRAMS = {
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
    "python": [sys.executable],
    "wanvae": [sys.executable, "-m", "wanvae"],
}
# Programs of this project are run by the test, which is asked through pipes; what is to be
# installed is there.
PRELUDE = """
ask() {
    printf '%q ' "$@" >&$REQUESTS; echo >&$REQUESTS
    local status; read -r status <&$ANSWERS; return "$status"
}
accelerate() { ask accelerate "$@"; }
python() { ask python "$@"; }
wanvae() { ask wanvae "$@"; }
pip() { [ "$1" = install ]; }
"""
# For processes of their own: with the packages of this tree, wherever they run.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
NOTHING: Mapping[str, str] = MappingProxyType({})
# So that training is over soon.
TWO_STEPS = "--trainer.steps 2 --trainer.workers 0"

FRAME_4K = (2160, 3840)
LIMIT_4K = 2 * 2**30
# The example, with what encoding and decoding take besides the model and what they are given.
MEASURE_4K = """
from tests.readme import EXAMPLES
from tools.measuring import measure_peak_resident_memory
from wanvae import WanVAE

def measured(name):
    method = getattr(WanVAE, name)
    def call(*arguments, **options):
        results = []
        run = lambda: results.append(method(*arguments, **options))
        peaks.append(measure_peak_resident_memory(run))
        return results[0]
    setattr(WanVAE, name, call)

peaks = []
measured("encode")
measured("decode")
exec(EXAMPLES["tile a 4K frame in 2 GB"].text)
print(*peaks, *frames.shape)
"""

Run = Callable[[Sequence[str]], int]


def run_here(words: Sequence[str]) -> int:
    """Run a command of this project in this process, which has loaded the libraries already."""
    call = call_of(words)
    return MAINS[call.module](call.arguments)


def run_alone(words: Sequence[str]) -> int:
    """Run a command in processes of its own."""
    program, *arguments = words
    return subprocess.run([*PROGRAMS[program], *arguments], env=ENVIRONMENT).returncode


@pytest.fixture(params=[run_here, pytest.param(run_alone, marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def run_bash(example: str, run: Run, more: Mapping[str, str] = NOTHING) -> None:
    """Run a block of commands, which fails where one of them does.

    Args:
        run: runs a command of this project.
        more: options that a command gets besides those that are printed.
    """
    requests, write_requests = os.pipe()
    read_answers, answers = os.pipe()
    pipes = f"REQUESTS={write_requests} ANSWERS={read_answers}\n"
    command = ["bash", "-euc", pipes + PRELUDE + EXAMPLES[example].text]
    with subprocess.Popen(command, pass_fds=(write_requests, read_answers)) as shell:
        os.close(write_requests)
        os.close(read_answers)
        with open(requests) as lines, open(answers, "w", buffering=1) as answer:
            for line in lines:
                added = [options for name, options in more.items() if f"{name} " in line]
                print(run(shlex.split(" ".join([line, *added]))), file=answer)
    assert shell.returncode == 0


# The stand-in is no published model, so its latent statistics are not known, which is told.
NOT_PUBLISHED = pytest.mark.filterwarnings("ignore:latent statistics")


def run_python(example: str, **names: object) -> dict[str, Any]:
    """Run a block of Python, given the names that it takes as known; returns all names after it."""
    block = EXAMPLES[example]
    # Errors are reported at their line of the guide.
    code = compile("\n" * (block.line - 1) + block.text, ROOT / block.guide, "exec")
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name."""
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    write_official(small_model(), folder / "Wan2.1_VAE.pth")
    torch.save(tiny_autoencoder(z_dim=16).float().state_dict(), folder / "taew2_1.pth")
    write_waves(folder / "in.mp4", 71, 32, 32, fps=1)
    for name in ("my_videos/a.mp4", "my_videos/b.mp4", "held_out_videos/c.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_waves(folder / name, 17, 128, 144, fps=16)
    return folder


@pytest.fixture
def folder(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to work in."""
    copy = shutil.copytree(stand_ins, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def vae() -> WanVAE:
    return small_model()


@pytest.fixture
def video() -> Tensor:
    return random_video(9, 32, 48).float()


@pytest.fixture
def latents(vae: WanVAE, video: Tensor) -> Tensor:
    return vae.encode(video).mode()


def assert_close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_every_example_is_run() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in EXAMPLES if f'"{name}"' not in tests] == []
    named = [block.example for block in BLOCKS if block.example is not None]
    assert len(named) == len(EXAMPLES)
    unnamed = [block for block in BLOCKS if block.language == "python" and block.example is None]
    assert unnamed == []


def test_python(folder: Path, vae: WanVAE, video: Tensor, latents: Tensor) -> None:
    # The stand-in is no published model, so its latent statistics are not known.
    with pytest.warns(UserWarning, match="latent statistics"):
        names = run_python("use it from Python", video=video)
    assert_close(names["latents"], latents)
    assert_close(names["video"], vae.decode(latents))
    again = WanVAE.from_pretrained("vae.safetensors")
    assert_close(again.normalize(latents), names["for_diffusion"])


def test_loading_a_model(folder: Path) -> None:
    vae = run_python("load a model")["vae"]
    assert (vae.encode_dtype, vae.decode_dtype) == (torch.float32, torch.bfloat16)


def test_a_stream(vae: WanVAE) -> None:
    """Of 11 frames, so that the end repeats two."""
    clip = random_video(11, 32, 48).float()
    shown: list[Tensor] = []
    names = run_python("a stream", vae=vae, source=clip.split(4, dim=2), show=shown.append)
    whole = torch.cat([clip, clip[:, :, -1:], clip[:, :, -1:]], dim=2)
    assert names["end"].padded_frames == 2
    assert_close(torch.cat(shown, dim=2), vae.decode(vae.encode(whole).mode())[:, :, :11])


def test_a_stream_that_is_saved(folder: Path, vae: WanVAE, latents: Tensor) -> None:
    decoder = vae.stream_decode()
    first, rest = latents[:, :, :1], latents[:, :, 1:]
    shown = decoder.push(first)
    again = run_python("save and continue a stream", vae=vae, decoder=decoder)["decoder"]
    assert again is not decoder
    assert_close(torch.cat([shown, again.push(rest)], dim=2), vae.decode(latents))


def test_a_preview(folder: Path, video: Tensor, latents: Tensor) -> None:
    normalized = torch.randn_like(latents)
    names = run_python(
        "a preview",
        WanVAE=WanVAE,
        video=video,
        latents=latents,
        latents_of_a_diffusion_model=normalized,
    )
    preview = names["preview"]
    assert isinstance(preview, TinyVAE)
    assert_close(names["rough"], preview.decode(preview.denormalize(normalized)))
    assert names["rough"].shape == video.shape and names["rough_latents"].shape == latents.shape


def test_gradients(vae: WanVAE, video: Tensor, latents: Tensor) -> None:
    names = run_python("keep gradients", vae=vae, video=video, latents=latents)
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert names["moments"].requires_grad and names["frames"].requires_grad
    assert_close(names["reconstruction"].video, vae.decode(latents, clamp=False))
    assert_close(names["frames"], names["reconstruction"].video)


def test_limits_of_memory(vae: WanVAE, video: Tensor, latents: Tensor) -> None:
    expected = vae.decode(latents)
    names = run_python("limit memory", vae=vae, video=video, latents=latents)
    assert_close(names["video"], expected)
    assert_close(names["posterior"].mean, vae.encode(expected).mean)
    assert_close(names["decoder"].push(latents), expected)


def test_progress(
    vae: WanVAE, latents: Tensor, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    names = run_python("show progress", vae=vae, latents=latents)
    assert_close(names["video"], vae.decode(latents))
    shares = capsys.readouterr().out.split("\r")
    assert len(shares) > 10 and shares[-2:] == ["100%", ""]


def test_graphs(vae: WanVAE, latents: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "CUDARecorder", Rerunner)
    expected = vae.decode(latents)
    names = run_python("replay steps on a GPU", vae=vae, latents=latents)
    assert_close(names["video"], expected)
    assert_close(names["frames"], expected[:, :, -4:])


def test_several_devices(folder: Path, vae: WanVAE, video: Tensor, latents: Tensor) -> None:
    """Of two processes on the CPU, which must not both get the video."""
    torch.save({"clip": video, "latents": latents}, "inputs.pt")
    torch.multiprocessing.spawn(run_example, ("several devices", folder), nprocs=DEVICES)
    first, second = (torch.load(f"rank-{rank}.pt") for rank in range(DEVICES))
    assert first["processes"] == second["processes"] == DEVICES
    expected = vae.decode(latents)
    for name in ("video", "frames"):
        assert_close(first[name], expected)
        assert second[name].shape == expected[:, :, :0].shape
    for results in (first, second):
        assert_close(results["mean"], vae.encode(video).mean)


def test_the_hub(hub: HubServer, folder: Path, vae: WanVAE) -> None:
    repository = hub.repository("org/name")
    convert("Wan2.1_VAE.pth", repository / "vae", Layout.DIFFUSERS)
    names = run_python("the Hugging Face Hub", WanVAE=WanVAE)
    assert names["vae"].config.dim == vae.config.dim
    assert (repository / "wanvae.safetensors").is_file()


def test_diffusers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5 small frames in two steps on the CPU; what diffusers writes videos with is left out."""
    written: dict[str, np.ndarray] = {}

    def export(frames: np.ndarray, path: str, *, fps: int) -> None:
        written[path] = frames

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers warns of is not ours
        from diffusers import WanPipeline

        write_pipeline(small_model(), Path("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"))
        size = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2}
        monkeypatch.setattr(WanPipeline, "__call__", partialmethod(WanPipeline.__call__, **size))
        offload = partialmethod(WanPipeline.enable_model_cpu_offload, device="cpu")
        monkeypatch.setattr(WanPipeline, "enable_model_cpu_offload", offload)
        monkeypatch.setattr("diffusers.utils.export_to_video", export)
        names = run_python("use it in diffusers")
    frames = written["cat.mp4"]
    assert frames.shape == (5, 32, 48, 3) and np.isfinite(frames).all() and frames.std() > 0.01
    vae = names["vae"]
    assert names["pipeline"].vae is vae and vae.use_tiling
    assert vae.enable_tiling.__self__.max_memory == 4 * 2**30
    assert vae.dtype == torch.float32 and vae.decoder.conv_in.weight.dtype == torch.bfloat16


def test_a_preview_in_diffusers(folder: Path, latents: Tensor) -> None:
    pipeline = SimpleNamespace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers warns of is not ours
        names = run_python(
            "a preview in diffusers", WanVAE=WanVAE, latents=latents, pipeline=pipeline
        )
    assert pipeline.vae is names["preview"]
    assert_close(names["rough"], WanVAE.from_pretrained("taew2_1.pth").decode(latents))


def test_the_command_line(folder: Path, run: Run) -> None:
    run_bash("the command line", run, {"wanvae train": TWO_STEPS})
    assert probe("out.mp4").frames == probe("rough.mp4").frames == 71
    assert {path.name for path in Path("vae").iterdir()} >= {"config.json"}
    assert Path("runs/tiny/model.safetensors").exists()
    assert Path("latents/dataset.json").exists()


@NOT_PUBLISHED
def test_encoding_a_data_set(folder: Path, run: Run) -> None:
    """Of clips of 5 small frames, not of 81 large ones."""
    small = {"wanvae encode-dataset": "--frames 5 --resize 32x48"}
    run_bash("encode a data set", run, small)
    names = run_python("read the latents")
    assert names["latents"].shape == (16, 2, 4, 6) and names["fps"] == 16
    assert len(names["dataset"]) == 6
    assert {clip.source for clip in names["dataset"].clips} == {"a.mp4", "b.mp4"}


@NOT_PUBLISHED
def test_training_on_buckets(folder: Path, run: Run) -> None:
    """Of small shapes and few frames."""
    small = {"wanvae encode-dataset": "--area 32x48 --multiple 8 --frames 5,9"}
    run_bash("encode buckets", run, small)
    model = torch.nn.Conv3d(16, 16, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = model.weight.detach().clone()
    names = run_python(
        "train on buckets", accelerator=Accelerator(cpu=True), model=model, optimizer=optimizer
    )
    assert len({clip.frames for clip in names["dataset"].clips}) > 1
    assert names["batches"].epoch == 2 and not torch.equal(model.weight, before)


@NOT_PUBLISHED
def test_caches_of_other_programs(folder: Path, run: Run) -> None:
    (folder / "cache").mkdir()
    path = musubi(folder / "cache", natural(length=2))
    path.rename(path.with_name("cat_00000-081_0832x0480_wan.safetensors"))
    run_bash("decode what others cached", run)
    assert probe("cat.mp4").frames == probe("out.mp4").frames == 5
    dataset = run_python("train on what others cached")["dataset"]
    assert (dataset[0].latents - natural(length=2)).abs().max() < 2**-5
    shutil.rmtree("cache")
    run_bash("write a cache", run, {"wanvae encode-dataset": "--frames 5 --resize 32x48"})
    names = {path.name for path in Path("cache").glob("*_wan.safetensors")}
    assert {f"{name}_00005-005_0048x0032_wan.safetensors" for name in "ab"} <= names


def test_fine_tuning_a_decoder(folder: Path, run: Run) -> None:
    """For two steps, without LPIPS, whose network would be downloaded."""
    run_bash("fine-tune a decoder", run, {"wanvae train": f"{TWO_STEPS} --loss.lpips 0"})
    trained = "runs/finetune_decoder/model.safetensors"
    check_that_only_the_decoder_changed("Wan2.1_VAE.pth", trained)
    after = WanVAE.from_pretrained(trained).state_dict()
    assert torch.equal(
        WanVAE.from_pretrained("vae").conv2.weight, after["conv2.weight"].to(torch.float32)
    )
    assert probe("out.mp4").frames == 71


def check_that_only_the_decoder_changed(before: str, after: str) -> None:
    tensors, trained = (WanVAE.from_pretrained(path).state_dict() for path in (before, after))
    changed = {name for name in tensors if not torch.equal(tensors[name], trained[name])}
    assert changed and all(name.startswith(("conv2.", "decoder.")) for name in changed)


def test_training_a_lora(folder: Path, run: Run) -> None:
    """For two steps, without LPIPS, whose network would be downloaded."""
    run_bash("train a LoRA", run, {"wanvae train": f"{TWO_STEPS} --loss.lpips 0"})
    check_that_only_the_decoder_changed("Wan2.1_VAE.pth", "merged.safetensors")
    assert probe("out.mp4").frames == 71


def test_distilling_a_decoder(folder: Path, run: Run) -> None:
    """For two steps on smaller crops, without LPIPS."""
    more = f"{TWO_STEPS} --data.buckets [] --data.size 64 --loss.lpips 0"
    run_bash("distil a decoder", run, {"wanvae train": more})
    result = "runs/distill_decoder/model.safetensors"
    check_that_only_the_decoder_changed("Wan2.1_VAE.pth", result)
    teacher, student = (WanVAE.from_pretrained(path) for path in ("Wan2.1_VAE.pth", result))
    assert student.config.decoder_dim == teacher.config.dim // 2
    assert Path("runs/distill_decoder/student-2/report.html").exists()
    assert probe("out.mp4").frames == 71


def test_training_an_upscaling_decoder(folder: Path, run: Run) -> None:
    """For two steps on smaller crops, without LPIPS."""
    smaller = "--data.buckets [] --data.size 64 --evaluation.size 64"
    more = f"{TWO_STEPS} {smaller} --loss.lpips 0"
    run_bash("train an upscaling decoder", run, {"wanvae train": more})
    read, written = probe("in.mp4"), probe("out.mp4")
    assert (written.width, written.height) == (2 * read.width, 2 * read.height)


def test_training_a_model_that_restores(folder: Path, run: Run) -> None:
    """For two steps, without LPIPS, whose network would be downloaded."""
    run_bash("train a model that restores", run, {"wanvae train": f"{TWO_STEPS} --loss.lpips 0"})
    before, after = Path("Wan2.1_VAE.pth"), Path("runs/restoration/model.safetensors")
    tensors, trained = (WanVAE.from_pretrained(path).state_dict() for path in (before, after))
    changed = {name for name in tensors if not torch.equal(tensors[name], trained[name])}
    assert {name.partition(".")[0] for name in changed} >= {"encoder", "decoder"}
    assert probe("out.mp4").frames == 71


@pytest.mark.filterwarnings("ignore:the skeleton of the motion is another:UserWarning")
def test_the_tokenizer_of_the_package(folder: Path, run: Run) -> None:
    """With a walk of half a second."""
    more = {"motion sample": "--frames 15", "motion reconstruct": "--device cpu"}
    more |= {"motion tokenize": "--device cpu", "motion detokenize": "--device cpu"}
    run_bash("the tokenizer of the package", run, more)
    assert probe("again.mp4").frames == 15
    assert read_motion("again.bvh").skeleton.joints == 22


def test_published_features(folder: Path) -> None:
    run_here(shlex.split("python -m motion sample walk.bvh --frames 15"))  # an earlier example
    assert run_python("published features")["features"].shape == (9, 263)  # at 20 frames per second


def test_continuous_latents(folder: Path) -> None:
    config = RVQVAEConfig(channels=9, code_dim=8, bottleneck="gaussian")
    path = Path("runs/beat2_vae/model.safetensors")
    path.parent.mkdir(parents=True)
    MotionVAE(config).save_pretrained(path)
    names = run_python("continuous latents", motion=torch.randn(2, 32, 9), lengths=[32, 20])
    assert names["latents"].shape == (2, 8, 8) and names["motion"].shape == (2, 32, 9)


def test_tokenizing_a_bvh(folder: Path, run: Run) -> None:
    """With a model that was trained for two steps."""
    run_here(shlex.split("python -m motion sample walk.bvh --frames 15"))  # the example before
    run_bash("tokenize a BVH", run, {"motion.train": TWO_STEPS})
    model = RVQVAE.from_pretrained("runs/motion_tiny/model.safetensors")
    whole = model.encode(torch.zeros(1, 15, model.config.channels))
    assert np.load("walk.tokens.npz")["indices"].shape == whole.shape[1:]
    assert probe("pair.mp4").frames == 15
    assert Path("again.bvh").stat().st_size > 0


def test_training_on_tokens(folder: Path, run: Run) -> None:
    """Of a walk of half a second, with a model that was not trained, for two steps."""
    Path("runs/motion_tiny").mkdir(parents=True)
    tiny_tokenizer(ROOTED).save_pretrained("runs/motion_tiny/model.safetensors")
    small = {"motion sample": "--frames 15", "text_to_motion.py": "--steps 2 --longest 4"}
    run_bash("captions", run, small)
    assert 0 < len(read_motion("out.bvh")) <= 16
    seen: list[tuple[list[str], tuple[int, ...], Tensor]] = []

    def learn(captions: list[str], ids: Tensor, mask: Tensor) -> None:
        seen.append((captions, tuple(ids.shape), mask))

    run_python("train on tokens", accelerator=Accelerator(cpu=True), learn=learn)
    assert [each[:2] for each in seen] == [(["a person walks"], (1, 7, 2))] * 2


def test_motion_from_python(folder: Path) -> None:
    tiny_tokenizer(None, channels=263).save_pretrained("tiny.safetensors")
    convert_checkpoint("tiny.safetensors", "net_best_fid.tar", MotionLayout.MOMASK)
    clips = torch.randn(2, 30, 263, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="has no mean and standard deviation"):
        names = run_python("motion from Python", motion=clips, lengths=[30, 21])
    assert names["indices"].shape == (2, 8, 2) and (names["indices"][1, 6:] == -1).all()
    assert names["motion"].shape == clips.shape
    again = RVQVAE.from_pretrained("model.safetensors")
    assert torch.equal(again.encode(clips, [30, 21]), names["indices"])
    assert torch.equal(again.decode(names["indices"][..., :1], [30, 21]), names["rough"])


def test_multimodality(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of motion that differs within each text; the networks have random weights."""
    write_evaluators(Path())
    generator = torch.Generator().manual_seed(0)
    generated = [
        [torch.randn(frames, 263, generator=generator) for frames in (40, 40, 44)] for _ in range(2)
    ]
    vectors = run_python("multimodality", generated=generated)["vectors"]
    distances = torch.cdist(vectors.double(), vectors.double())
    assert 0 <= float(capsys.readouterr().out) <= distances.max()
    alike = [[motions[0]] * 3 for motions in generated]
    run_python("multimodality", generated=alike)
    # The same motion at two places of a batch has vectors that may differ by rounding.
    assert float(capsys.readouterr().out) < 1e-6 * distances.max()


def test_files_of_motion_from_python(folder: Path) -> None:
    run_here(shlex.split("python -m motion sample walk.bvh --frames 15"))  # an earlier example
    names = run_python("files from Python")
    clip, again = names["clip"], names["again"]
    assert names["features"].shape == (15, 333)
    assert_close(again.pose.positions, clip.pose.positions)
    assert_close(motion.read_motion("again.bvh").pose.positions, clip.pose.positions)


def test_a_quantizer_alone() -> None:
    names = run_python("a quantizer alone")
    result, mask = names["result"], names["mask"]
    assert result.latents.shape == (8, 100, 256) and result.indices.shape == (8, 100, 6)
    assert (result.latents[~mask] == 0).all() and (result.indices[~mask] == -1).all()
    assert names["quantizer"].books.initialized


def test_a_stream_of_motion(folder: Path) -> None:
    tiny = tiny_tokenizer(None, channels=263)
    wan = WanConfig(dim=4, attention_window=3)
    model = RVQVAE(replace(tiny.config, network="wan", wan=wan)).eval()
    model.quantizer.load_state_dict(tiny.quantizer.state_dict())
    Path("runs/wan1d").mkdir(parents=True)
    model.save_pretrained("runs/wan1d/model.safetensors")
    clip = torch.randn(1, 21, 263, generator=torch.Generator().manual_seed(0))
    shown: list[Tensor] = []
    run_python("a stream of motion", RVQVAE=RVQVAE, source=clip.split(3, dim=1), show=shown.append)
    assert_close(torch.cat(shown, dim=1), model.decode(model.encode(clip)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_4k_frame_in_2_gb(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a model of few channels, but so many at full size that whole frames take more."""
    torch.manual_seed(0)
    config = WanVAEConfig(dim=16, dim_mult=(1, 1, 1, 1), num_res_blocks=1)
    write_official(WanVAE(config), Path("Wan2.1_VAE.pth"))
    write_waves(Path("photo.png"), 1, *FRAME_4K, fps=1)
    height, width = map(str, FRAME_4K)
    size = ["--frames", "1", "--height", height, "--width", width]
    assert wanvae.cli.main(["plan", *size, "--checkpoint", "Wan2.1_VAE.pth"]) == 0
    whole = re.findall(r"whole frames, .*?(\d+)MB \(", capsys.readouterr().out)
    assert len(whole) == 2 and min(map(int, whole)) * 2**20 > LIMIT_4K
    # Only a process of its own has a peak of its own.
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE_4K], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert measured.returncode == 0, measured.stderr
    encoding, decoding, *shape = map(int, measured.stdout.split())
    print(f"encode {encoding / 2**20:.0f} MB, decode {decoding / 2**20:.0f} MB")
    assert shape == [3, 1, *FRAME_4K]
    assert min(encoding, decoding) > LIMIT_4K / 4 and max(encoding, decoding) < LIMIT_4K
