"""The command line: every command works, and bad input is one clear line and a status."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.commands import Run
from tests.helpers import WAN22, tiny, write_sound
from tests.video.recordings import bytes_of, record, streams_of
from wanvae import WanVAE, __version__, cli
from wanvae.checkpoints import formats
from wanvae.commands.options import DTYPES, load_model
from wanvae.commands.video import opening_command
from wanvae.engine.memory import is_out_of_memory
from wanvae.execution.budget import Planner, parse_memory
from wanvae.execution.cost import Workload
from wanvae.nn.kernels import precision
from wanvae.video import read_video, write_video

SHAPE = {"dim": 4, "z_dim": 2, "num_res_blocks": 1}
BEFORE = b"precious"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint vae.safetensors, a video a.mp4, an image and latents."""
    folder = tmp_path_factory.mktemp("files")
    tiny().float().save_pretrained(folder / "vae.safetensors")
    t, y, x = torch.meshgrid(*map(torch.arange, (7, 22, 30)), indexing="ij")
    video = torch.stack([torch.sin(0.2 * x + 0.3 * t + c + 0.1 * y) for c in range(3)])
    write_video(folder / "a.mp4", video, Fraction(25))
    write_video(folder / "a.png", video[:, :1], Fraction(25))
    save_file({"latents": torch.zeros(2, 3, 3, 4)}, folder / "a.safetensors")
    return folder


@pytest.fixture
def fail(run: Run) -> Callable[..., str]:
    """Run a command that must fail with one line on stderr and nothing on stdout; gives it."""

    def run_command(*arguments: object, status: int = 1) -> str:
        out, err = run(*arguments, status=status)
        assert out == "" and err.startswith("wanvae: ")
        assert err.index("\n") == len(err) - 1
        return err

    return run_command


Fail = Callable[..., str]

# What works


def test_reconstruct(tmp_path: Path, files: Path, run: Run) -> None:
    source, target = files / "a.mp4", tmp_path / "b.mkv"
    model = ["--checkpoint", files / "vae.safetensors"]
    out, err = run("reconstruct", source, target, *model)
    assert out.startswith(f"{source} -> {target}: 7 frames, PSNR ") and out.count("\n") == 1
    assert all(word in out for word in (" dB, SSIM ", "compression 192.5x", "s per frame"))
    assert err == ""
    assert read_video(target)[0].shape == (3, 7, 22, 30)
    run("reconstruct", source, target, "--side-by-side", "--crf", 0, *model)
    assert read_video(target)[0].shape == (3, 7, 22, 60)


@pytest.mark.filterwarnings("default:.*(left out|encoded again)")
def test_sound(tmp_path: Path, files: Path, run: Run, fail: Fail) -> None:
    source = record(tmp_path / "a.mkv", end=Fraction(1), fps=10)
    latents, target = tmp_path / "l.safetensors", tmp_path / "b.mp4"
    model = ["--checkpoint", files / "vae.safetensors"]
    assert run("reconstruct", source, target, *model)[1] == ""
    assert bytes_of(target) == bytes_of(source)
    assert run("reconstruct", source, target, "--no-audio", *model)[1] == ""
    assert not streams_of(target, "audio")
    run("encode", source, latents, *model)
    assert run("decode", latents, target, "--audio-from", source, *model)[1] == ""
    assert bytes_of(target) and bytes_of(source).startswith(bytes_of(target))
    _, err = run("decode", latents, tmp_path / "b.webm", "--audio-from", source, *model)
    told = f"{source}: .webm cannot hold its sound (aac): encoded again as Opus"
    assert err == f"wanvae: warning: {told}\n"
    silent = files / "a.mp4"
    assert "a.mp4 has no sound" in fail("decode", latents, target, "--audio-from", silent, *model)
    assert "overwritten" in fail("decode", latents, source, "--audio-from", source, *model)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_an_image_in_any_precision(tmp_path: Path, files: Path, run: Run, dtype: str) -> None:
    model = ["--checkpoint", files / "vae.safetensors", "--device", "cpu", "--dtype", dtype]
    assert "1 frames, PSNR" in run("reconstruct", files / "a.png", tmp_path / "b.png", *model)[0]
    assert read_video(tmp_path / "b.png")[0].shape == (3, 1, 22, 30)


def test_encode_and_decode(tmp_path: Path, files: Path, run: Run) -> None:
    model = ["--checkpoint", files / "vae.safetensors"]
    latents, target = tmp_path / "l.safetensors", tmp_path / "b.mp4"
    out, err = run("encode", files / "a.mp4", latents, *model)
    assert (out, err) == (f"{files / 'a.mp4'} -> {latents}: mean and logvar (2, 3, 3, 4)\n", "")
    assert load_file(latents)["mean"].shape == (2, 3, 3, 4)
    out, err = run("decode", latents, target, *model)
    assert (out, err) == (f"{latents} -> {target}: 7 frames\n", "")
    video, info = read_video(target)
    assert (video.shape, info.fps) == ((3, 7, 22, 30), 25)


@pytest.mark.filterwarnings("default:.*frames per second are assumed")
def test_numbered_images(tmp_path: Path, files: Path, run: Run, fail: Fail) -> None:
    video, _ = read_video(files / "a.mp4")
    for number, image in enumerate(video.unbind(1)):
        write_video(tmp_path / f"{number:05}.png", image[:, None], Fraction(1))
    source, target, latents = (tmp_path / name for name in ("%05d.png", "b.mp4", "l.safetensors"))
    model = ["--checkpoint", files / "vae.safetensors"]
    out, err = run("reconstruct", source, target, "--fps", "12", *model)
    assert (": 7 frames, " in out, err) == (True, "")
    run("encode", source, latents, "--fps", "30000/1001", *model)
    for written, rate in ((target, Fraction(12)), (tmp_path / "c.mp4", Fraction(30000, 1001))):
        if written != target:
            run("decode", latents, written, *model)
        found, info = read_video(written)
        assert (found.shape, info.fps) == ((3, 7, 22, 30), rate)
    _, err = run("reconstruct", source, target, *model)
    assert err.count("\n") == 1 and "25 frames per second are assumed" in err
    assert read_video(target)[1].fps == 25
    err = fail("encode", files / "a.mp4", latents, "--fps", "12", *model)
    assert "a.mp4 is a video file, and cannot be read at 12 frames per second" in err
    assert "must be a rate" in fail("encode", source, latents, "--fps", "fast", *model)
    assert "would be overwritten" in fail("reconstruct", source, tmp_path / "00001.png", *model)


def test_decode_latents_of_another_program(tmp_path: Path, files: Path, run: Run) -> None:
    arguments = [files / "a.safetensors", tmp_path / "b.mp4", "--normalized", "--fps", "30000/1001"]
    out, _ = run("decode", *arguments, "--checkpoint", files / "vae.safetensors")
    assert out.endswith(": 9 frames\n")
    video, info = read_video(tmp_path / "b.mp4")
    assert (video.shape, info.fps) == ((3, 9, 24, 32), Fraction(30000, 1001))


def test_info(files: Path, run: Run) -> None:
    out, err = run("info", files / "vae.safetensors")
    tensors = load_file(files / "vae.safetensors")
    count = sum(tensor.numel() for tensor in tensors.values())
    assert out.splitlines()[:5] == [
        f"{files / 'vae.safetensors'}: native layout",
        f"parameters: {count:,} in {len(tensors)} tensors, float32",
        "compression: 4x8x8, 2 channels",
        "dim: 4",
        "z_dim: 2",
    ]
    assert err == ""


def test_info_tells_of_a_dtype_that_this_cpu_emulates(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "half.safetensors"
    tiny().half().save_pretrained(path)
    for emulated in ({torch.float16}, set()):
        monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset(emulated))
        notes = [line for line in run("info", path)[0].splitlines() if "emulates float16" in line]
        assert len(notes) == len(emulated)


def test_an_image_model(tmp_path: Path, files: Path, run: Run) -> None:
    path = tmp_path / "image.safetensors"
    tiny(ndim=2).float().save_pretrained(path)
    assert "compression: 1x8x8, 2 channels, an image model\n" in run("info", path)[0]
    run("reconstruct", files / "a.mp4", tmp_path / "b.mkv", "--checkpoint", path)
    assert read_video(tmp_path / "b.mkv")[0].shape == (3, 7, 22, 30)


def test_wan22(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "wan22.safetensors"
    tiny(**WAN22).float().save_pretrained(path)
    assert "compression: 4x16x16, 2 channels\n" in run("info", path)[0]
    size = "plan", "--checkpoint", path, "--frames", 9, "--height", 64, "--width", 96
    encode, decode = run(*size, "--tile-size", 32, "--processes", 2)[0].splitlines()[::2]
    assert "6 tiles of at most 32x32 pixels" in encode and "6 tiles" in decode


def test_a_pair_of_colour_and_alpha(tmp_path: Path, files: Path, run: Run, fail: Fail) -> None:
    pair, latents = tmp_path / "pair.safetensors", files / "a.safetensors"
    model = files / "vae.safetensors"
    out, _ = run("convert", model, pair, "--alpha", model)
    assert out.startswith("native to native: ")
    assert "alpha_decoder: True\n" in run("info", pair)[0]
    run("decode", latents, tmp_path / "a.webm", "--checkpoint", pair)
    assert read_video(tmp_path / "a.webm", alpha=True)[1].has_alpha
    err = fail("decode", latents, tmp_path / "a.mp4", "--checkpoint", pair)
    assert ".mp4 holds no alpha; use one of .mov (prores) .mkv (ffv1) .webm" in err
    run("decode", latents, tmp_path / "a.mp4", "--checkpoint", pair, "--drop-alpha")
    size = "--frames", 9, "--height", 32, "--width", 48
    whole, half = (run("plan", "--checkpoint", path, *size)[0] for path in (pair, model))
    work = [float(re.findall(r"([\d.]+) T multiply-adds", text)[1]) for text in (whole, half)]
    assert work[0] == pytest.approx(2 * work[1], abs=0.02)


def test_a_lora_is_merged_and_is_no_model(
    tmp_path: Path, files: Path, run: Run, fail: Fail
) -> None:
    lora, target = tmp_path / "lora.safetensors", tmp_path / "b.safetensors"
    names = [f"vae.decoder.middle.1.proj.lora_{kind}.weight" for kind in "AB"]
    weight = load_file(files / "vae.safetensors")["decoder.middle.1.proj.weight"]
    side = len(weight)
    save_file(dict(zip(names, (torch.ones(1, side), torch.ones(side, 1)), strict=True)), lora)
    out, _ = run("convert", files / "vae.safetensors", target, "--lora", lora)
    assert "note: merged a LoRA of rank 1 into 1 layers" in out
    assert torch.allclose(load_file(target)["decoder.middle.1.proj.weight"], weight + 1)
    # A LoRA may hold the weights that it changes, too.
    weights = {f"vae.{n}": t for n, t in load_file(files / "vae.safetensors").items()}
    save_file(load_file(lora) | weights, lora)
    assert "It is a LoRA; it changes another model; merge it" in fail("info", lora)


def test_an_upscaling_decoder_is_planned_for_what_it_decodes(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "vae.safetensors"
    tiny(upscale_factor=2).float().save_pretrained(path)
    size = "plan", "--checkpoint", path, "--frames", 9, "--height", 32, "--width", 48
    encode, decode = run(*size, "--tile-size", 32)[0].splitlines()
    assert "2 tiles of at most 32x32 pixels" in encode and "6 tiles" in decode


def test_convert(tmp_path: Path, files: Path, run: Run) -> None:
    source, target = files / "vae.safetensors", tmp_path / "vae.pth"
    out, _ = run("convert", source, target, "--to", "wan", "--dtype", "bfloat16")
    tensors = load_file(source)
    summary, note = out.splitlines()
    assert summary == f"native to wan: {len(tensors)} tensors, 0 renamed"
    assert note.startswith("note: latent statistics: none")
    written = torch.load(target, weights_only=True)
    assert all(torch.equal(written[name], tensors[name].bfloat16()) for name in tensors)
    out, _ = run("info", target)
    assert "wan layout" in out and "note: architecture: inferred" in out


def test_without_input_the_demo_runs(
    tmp_path: Path, files: Path, run: Run, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wanvae.commands.options.demo_weights", lambda: files / "vae.safetensors")
    monkeypatch.setattr("wanvae.demo.find_spec", lambda name: None)
    assert 'pip install "wanvae[demo]"' in fail("reconstruct")
    monkeypatch.setattr("wanvae.commands.video.demo_clip", lambda: files / "a.mp4")
    monkeypatch.setattr("wanvae.commands.video.DEMO_SECONDS", 0.2)
    monkeypatch.setattr("wanvae.commands.video.opening_command", lambda: ["see"])
    out, _ = run("reconstruct")
    assert "-> reconstruction.mp4: 5 frames" in out
    assert read_video("reconstruction.mp4")[0].shape == (3, 5, 22, 60)
    path = (tmp_path / "reconstruction.mp4").resolve()
    assert f"The result is {path}" in out and path.as_uri() in out and f"see {path}" in out
    assert "--whole takes all of it" in out
    monkeypatch.setattr("wanvae.commands.video.opening_command", lambda: None)
    out, _ = run("reconstruct", "--whole")
    assert "-> reconstruction.mp4: 7 frames" in out and "copy the file" in out
    assert "--whole" not in out
    assert "2 frames" in run("reconstruct", "--duration", 0.08)[0]
    assert "leave out one" in fail("reconstruct", "--whole", "--duration", 1)
    # Of a video of one's own, all is taken, and nobody needs to be told how to open it.
    out, _ = run("reconstruct", files / "a.mp4", "own.mp4")
    assert "7 frames" in out and "The result is" not in out
    assert run("info")[0].startswith(f"{files / 'vae.safetensors'}: native layout")


def test_a_file_is_opened_as_the_system_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanvae.commands.video.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for system, display, expected in (
        ("linux", ":0", ["xdg-open"]),
        ("linux", "", None),
        ("darwin", "", ["open"]),
        ("win32", "", ["explorer"]),
    ):
        monkeypatch.setattr("wanvae.commands.video.sys.platform", system)
        monkeypatch.setenv("DISPLAY", display)
        assert opening_command() == expected


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
        text = capsys.readouterr().out
        assert text.startswith("usage: wanvae")
        assert command in text
        assert not any(noise in text for noise in ("null", "None"))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "train or fine-tune a model" in text
    assert all(command.summary in text for command in cli.COMMANDS.values())
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"wanvae {__version__}\n"


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], 'expected "command" to be one of'),
        (["transcode"], "invalid choice: 'transcode'"),
        (["info", "--colour"], "unrecognized arguments: --colour"),
        (["encode", "a.mp4"], "required: output (see wanvae encode --help)"),
        (["convert", "a", "b", "--to", "onnx"], "argument --to: invalid choice: 'onnx'"),
        (["reconstruct", "a", "b", "--crf", "low"], "crf must be a whole number, not low"),
        (["reconstruct", "a", "b", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("wanvae") and ": error: " in line and reason in line


@pytest.mark.parametrize("limits", [["--tile-size", 16], ["--max-memory", "600MB"]])
def test_limits_change_nothing(tmp_path: Path, files: Path, run: Run, limits: list[object]) -> None:
    model = "--checkpoint", files / "vae.safetensors"
    for name, options in (("a", []), ("b", limits)):
        run("encode", files / "a.mp4", tmp_path / f"{name}.safetensors", *model, *options)
        options = *model, *options, "--crf", 0
        run("reconstruct", files / "a.mp4", tmp_path / f"{name}.mp4", *options)
        run("decode", files / "a.safetensors", tmp_path / f"{name}.mkv", *options)
    plain, limited = (load_file(tmp_path / f"{name}.safetensors")["mean"] for name in "ab")
    torch.testing.assert_close(limited, plain, atol=1e-5, rtol=0)
    for suffix in ("mp4", "mkv"):
        plain, limited = (read_video(tmp_path / f"{name}.{suffix}")[0] for name in "ab")
        torch.testing.assert_close(limited, plain, atol=0.05, rtol=0)


def test_encoding_and_decoding_can_have_different_dtypes(files: Path) -> None:
    options = ["--checkpoint", str(files / "vae.safetensors"), "--encode-dtype", "bfloat16"]
    parsed = cli.PROGRAM.make_parser().parse_args(["reconstruct", "a.mp4", *options, "--compile"])
    vae = load_model(parsed["reconstruct"], files / "vae.safetensors")
    assert (vae.encode_dtype, vae.decode_dtype) == (torch.bfloat16, torch.float32)
    assert vae.compiled


def test_a_budget_too_small_for_a_stream_is_enough_for_tile_after_tile(
    tmp_path: Path, files: Path, run: Run, fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = partial(Planner, overhead=0, planning_memory=0, smallest_tile=16)
    monkeypatch.setattr("wanvae.execution.budget.Planner", planner)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, tmp_path / "l.safetensors")
    command = "decode", tmp_path / "l.safetensors"
    model = "--checkpoint", files / "vae.safetensors"
    stream = fail(*command, tmp_path / "a.mp4", *model, "--max-memory", "0.001MB")
    assert "it takes at least" in stream
    smallest = stream.split("at least ")[1].split(",")[0]
    lossless = "--crf", 0
    run(*command, tmp_path / "a.mp4", *model, *lossless, "--max-memory", smallest)
    run(*command, tmp_path / "b.mp4", *model, *lossless)
    torch.testing.assert_close(
        read_video(tmp_path / "a.mp4")[0], read_video(tmp_path / "b.mp4")[0], atol=0.05, rtol=0
    )


def test_encoder_and_decoder_share_a_limit(
    tmp_path: Path, files: Path, fail: Callable[..., str]
) -> None:
    model = "--checkpoint", files / "vae.safetensors"
    message = fail(
        "reconstruct", files / "a.mp4", tmp_path / "b.mp4", *model, "--max-memory", "1KB"
    )
    assert message.endswith("the limit is shared by 2 coders\n")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tile-size", 12, "multiple of 8, not (12, 12)"),
        ("--tile-size", 0, "multiple of 8, not (0, 0)"),
        ("--max-memory", "much", "cannot read 'much' as memory"),
        ("--max-memory", "1KB", "1MB is too little memory"),
    ],
)
def test_bad_limits(
    tmp_path: Path, files: Path, fail: Callable[..., str], option: str, value: object, message: str
) -> None:
    model = "--checkpoint", files / "vae.safetensors"
    for command, output in (("reconstruct", "b.mp4"), ("encode", "b.safetensors")):
        assert message in fail(command, files / "a.mp4", tmp_path / output, *model, option, value)
    assert not list(tmp_path.iterdir())
    assert message in fail("plan", "--height", 32, "--width", 32, *model, option, value)


def test_plan(files: Path, run: Run, fail: Callable[..., str]) -> None:
    size = "plan", "--checkpoint", files / "vae.safetensors", "--height", 64, "--width", 96
    encode, decode = run(*size, "--frames", 9)[0].splitlines()
    assert encode.startswith("encode: whole frames") and decode.startswith("decode: whole frames")
    assert decode.endswith(" 1.00 times the work of whole frames")
    encode, decode = run(*size, "--frames", 9, "--tile-size", 32)[0].splitlines()
    assert "6 tiles of at most 32x32 pixels" in encode and "6 tiles" in decode
    assert "MB, on a GPU with states offloaded: " in encode
    assert all(float(line.split()[-7]) > 1.2 for line in (encode, decode))
    lines = run(*size, "--frames", 9, "--processes", 3)[0].splitlines()
    assert lines[::2] == [*run(*size, "--frames", 9)[0].splitlines()]
    for task, line in zip(("encode", "decode"), lines[1::2], strict=True):
        assert line.startswith(f"{task} by 3 processes: 3 tiles for 3 of them, ")
        assert 1 < float(line.split()[-6]) < 3
    assert "--processes must be positive, not 0" in run(*size, "--processes", 0, status=1)[1]
    assert "not 10: drop frames to 9" in fail(*size, "--frames", 10)
    assert "multiples of 8, not 60x96" in fail(*size, "--height", 60)


def test_a_plan_for_a_gpu_is_the_plan_that_a_gpu_chooses(
    files: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = partial(Planner, overhead=0, planning_memory=0, smallest_tile=16)
    monkeypatch.setattr("wanvae.commands.plan.Planner", planner)
    size = "plan", "--checkpoint", files / "vae.safetensors", "--height", 64, "--width", 96
    size = *size, "--frames", 9, "--max-memory"
    limit = "1.4MB"
    lines = run(*size, limit, "--device", "cuda")[0].splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "encode",
        "encode as a stream",
        "decode",
        "decode as a stream",
    ]
    vae = WanVAE.from_pretrained(files / "vae.safetensors")
    for line, network, channels in (
        (lines[1], vae.encoder_network(), 3),
        (lines[3], vae.decoder_network(), 2),
    ):
        stream = Workload(1, channels, None, 64, 96, torch.float32, offloads=True)
        chosen = planner(network).plan_for(stream, parse_memory(limit))
        assert chosen.offload
        assert "states offloaded" in line
        assert f"at most {chosen.tile_size[0]}x{chosen.tile_size[1]} pixels" in line
    assert len(run(*size, "1GB", "--device", "cpu")[0].splitlines()) == 2


@pytest.mark.parametrize("fps", ["0", "-1", "fast", "1/0", "1e99999999"])
def test_impossible_rates(tmp_path: Path, files: Path, fail: Fail, fps: str) -> None:
    arguments = [files / "a.safetensors", tmp_path / "b.mp4", f"--fps={fps}"]
    err = fail("decode", *arguments, "--checkpoint", files / "vae.safetensors")
    assert f"fps must be a rate like 25 or 30000/1001, from 1/1000 to 10000, not '{fps}'" in err


def test_impossible_quality(tmp_path: Path, files: Path, fail: Fail) -> None:
    arguments = [files / "a.mp4", tmp_path / "b.mp4", "--crf", 52]
    err = fail("reconstruct", *arguments, "--checkpoint", files / "vae.safetensors")
    assert "crf 52; sizes must be positive, fps 1/1000 to 10000 and crf 0 to 51" in err


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", "cuda:99", "xla"])
def test_unusable_devices(tmp_path: Path, files: Path, fail: Fail, device: str) -> None:
    arguments = [files / "a.mp4", tmp_path / "b.mp4", "--device", device]
    err = fail("reconstruct", *arguments, "--checkpoint", files / "vae.safetensors")
    assert f"cannot compute in float32 on device {device!r}: " in err
    assert "try --device cpu" in err
    assert os.listdir(tmp_path) == []


# Videos that cannot be read


def truncated(path: Path) -> None:
    noise = torch.rand(3, 20, 24, 32, generator=torch.Generator().manual_seed(0))
    write_video(path, noise, Fraction(25))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BAD_VIDEOS = {
    "missing.mp4": (lambda path: None, "No such file or directory"),
    "directory.mp4": (lambda path: path.mkdir(), ""),
    "empty.mp4": (lambda path: path.touch(), "not a video or image"),
    "text.mp4": (lambda path: path.write_text("a text\n" * 99), "not a video or image"),
    "sound.wav": (write_sound, "it has no video"),
    "truncated.mp4": (truncated, "damaged or cut short"),
}


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_bad_videos(tmp_path: Path, files: Path, fail: Fail, name: str, command: str) -> None:
    make, reason = BAD_VIDEOS[name]
    make(tmp_path / name)
    target = tmp_path / ("b.mp4" if command == "reconstruct" else "b.safetensors")
    target.write_bytes(BEFORE)
    inside = sorted(os.listdir(tmp_path))
    err = fail(command, tmp_path / name, target, "--checkpoint", files / "vae.safetensors")
    assert f"cannot read {tmp_path / name}: " in err and reason in err
    assert target.read_bytes() == BEFORE
    assert sorted(os.listdir(tmp_path)) == inside


@pytest.mark.filterwarnings("default:.*damaged or cut short")
@pytest.mark.parametrize("progress", ["--progress", "--no-progress"])
def test_warnings_are_one_line(tmp_path: Path, files: Path, run: Run, progress: str) -> None:
    write_video(tmp_path / "a.mkv", torch.zeros(3, 60, 24, 32), Fraction(25))
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) * 2 // 3])
    arguments = [tmp_path / "a.mkv", tmp_path / "b.mp4", progress]
    out, err = run("reconstruct", *arguments, "--checkpoint", files / "vae.safetensors")
    assert " frames, PSNR" in out
    lines = [line for line in err.replace("\r", "\n").split("\n") if "warning" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"wanvae: warning: {tmp_path / 'a.mkv'}: it is damaged or cut short")
    assert ("frame/s" in err) == (progress == "--progress")


# Checkpoints that cannot be used


class Harmful:
    """Makes a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("command", ["info", "convert", "reconstruct"])
def test_nothing_of_a_pickle_runs(
    tmp_path: Path, files: Path, fail: Fail, command: str, zipped: bool
) -> None:
    path, mark = tmp_path / "vae.pth", tmp_path / "mark"
    content = {"conv1.weight": torch.zeros(1), "extra": Harmful(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    arguments = {
        "info": [path],
        "convert": [path, tmp_path / "b.safetensors", "--to", "native"],
        "reconstruct": [files / "a.mp4", tmp_path / "b.mp4", "--checkpoint", path],
    }
    err = fail(command, *arguments[command])
    assert f"{path} holds objects that are not tensors" in err and "mkdir" in err
    assert os.listdir(tmp_path) == ["vae.pth"]
    torch.load(path, weights_only=False)  # it would have
    assert mark.is_dir()


KEY = "decoder.middle.1.proj.bias"
CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    f"1 missing: {KEY}": lambda tensors: tensors.pop(KEY),
    "1 unexpected: extra.weight": lambda t: t.update({"extra.weight": torch.zeros(1)}),
    f"{KEY} is float32 (3,), not float32 (": lambda t: t.update({KEY: torch.zeros(3)}),
}


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.parametrize("command", ["info", "convert", "reconstruct", "encode", "decode"])
def test_unfit_keys_are_named(
    tmp_path: Path, files: Path, fail: Fail, command: str, reason: str
) -> None:
    whole, path = formats.load(files / "vae.safetensors"), tmp_path / "vae.safetensors"
    tensors = dict(whole.tensors)
    CHANGES[reason](tensors)
    formats.save_native(path, whole.config, tensors)
    arguments = {
        "info": [path],
        "convert": [path, tmp_path / "b.pth", "--to", "wan"],
        "reconstruct": [files / "a.mp4", tmp_path / "b.mp4", "--checkpoint", path],
        "encode": [files / "a.mp4", tmp_path / "b.safetensors", "--checkpoint", path],
        "decode": [files / "a.safetensors", tmp_path / "b.mp4", "--checkpoint", path],
    }
    err = fail(command, *arguments[command])
    assert f"{path} does not fit the model" in err and reason in err
    assert os.listdir(tmp_path) == ["vae.safetensors"]


def test_a_missing_checkpoint(tmp_path: Path, fail: Fail) -> None:
    assert f"{tmp_path / 'vae.pth'} does not exist" in fail("info", tmp_path / "vae.pth")


def test_diffusers_has_no_attention_scales(tmp_path: Path, fail: Fail) -> None:
    path = tmp_path / "vae.safetensors"
    tiny(attn_scales=(0.25,)).float().save_pretrained(path)
    err = fail("convert", path, tmp_path / "b", "--to", "diffusers")
    assert "the diffusers layout has no attn_scales (0.25,), only ()" in err
    assert os.listdir(tmp_path) == ["vae.safetensors"]


# Latents that cannot be read


def test_bad_latents(tmp_path: Path, files: Path, fail: Fail) -> None:
    path = tmp_path / "l.safetensors"
    arguments = [path, tmp_path / "b.mp4", "--checkpoint", files / "vae.safetensors"]
    assert "l.safetensors does not exist" in fail("decode", *arguments)
    path.write_text("no latents")
    assert "l.safetensors cannot be read as latents" in fail("decode", *arguments)
    save_file({"latents": torch.zeros(16, 3, 3, 4)}, path)
    assert "16 channels, but this model has 2" in fail("decode", *arguments)
    assert os.listdir(tmp_path) == ["l.safetensors"]


# Files that cannot be written


@pytest.mark.parametrize("name", ["missing/b{}", "directory{}", "b.xyz"])
@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode", "convert"])
def test_unwritable_outputs(
    tmp_path: Path, files: Path, fail: Fail, command: str, name: str
) -> None:
    sources = {
        "reconstruct": ("a.mp4", ".mp4"),
        "encode": ("a.mp4", ".safetensors"),
        "decode": ("a.safetensors", ".mp4"),
        "convert": ("vae.safetensors", ".pth"),
    }
    source, suffix = sources[command]
    target = tmp_path / name.format(suffix)
    (tmp_path / f"directory{suffix}").mkdir()
    options = ["--checkpoint", files / "vae.safetensors"]
    if command == "convert":
        options = ["--to", "wan"]
    assert str(target) in fail(command, files / source, target, *options)
    assert os.listdir(tmp_path) == [f"directory{suffix}"]


def test_an_error_is_on_its_own_line_below_the_bar(tmp_path: Path, files: Path, run: Run) -> None:
    target = tmp_path / "b.png"
    target.write_bytes(BEFORE)
    options = ["--progress", "--checkpoint", files / "vae.safetensors"]
    _, err = run("reconstruct", files / "a.mp4", target, *options, status=1)
    bar, line, rest = err.split("\n")
    assert "frame" in bar and rest == ""
    assert line == f"wanvae: cannot write {target}: an image holds one frame; " + (
        "give a video suffix or numbered images, like frames/%05d.png, for more"
    )
    assert target.read_bytes() == BEFORE


# Memory and Ctrl-C


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore."),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory(
    files: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("wanvae.commands.video.reconstruct_file", run_out)
    err = fail("reconstruct", "a.mp4", "--checkpoint", files / "vae.safetensors")
    assert "out of memory; try a smaller video" in err


def test_memory_really_runs_out_that_way() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_bugs_are_not_hidden(files: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("wanvae.commands.video.reconstruct_file", stumble)
    model = "--checkpoint", files / "vae.safetensors"
    _, err = run("reconstruct", "a.mp4", "b.mp4", *model, status=1)
    assert "\nRuntimeError: a bug\n" in err and "this is a fault of the program" in err


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interruption_leaves_nothing_half_done(
    tmp_path: Path, files: Path, sent: str, status: int
) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(source, torch.zeros(3, 4000, 24, 32), Fraction(25))
    target.write_bytes(BEFORE)
    command = [sys.executable, "-m", "wanvae", "reconstruct", str(source), str(target)]
    command += ["--progress", "--checkpoint", str(files / "vae.safetensors")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=0) as process:
        deadline = time.monotonic() + 60
        # Encoding begins when the partial file is there.
        while len(os.listdir(tmp_path)) < 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.Signals[sent])
        _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    *bars, line, rest = err.split("\n")
    assert (line, rest) == ("wanvae: interrupted; nothing was written", "")
    assert "Traceback" not in "".join(bars)
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"]
    assert target.read_bytes() == BEFORE
