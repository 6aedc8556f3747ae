"""The command: what it writes, that it goes on, and that each failure is one line."""

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.commands import outputs_of
from tests.helpers import launched, occupied, tiny
from tests.metrics.test_frechet import Stand, save
from wanvae import WanVAE, cli
from wanvae.evaluate import evaluation, run
from wanvae.frames import pad_to_multiple
from wanvae.metrics.images import psnr, ssim
from wanvae.video import read_video, write_video

HOSTILE = "<script>alert(1)<|script>.mp4"
LENGTHS = {"a.mp4": 18, "b/c.mkv": 5, HOSTILE: 7}

Run = Callable[..., tuple[str, str]]


def noise(frames: int, height: int = 24, width: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, frames, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, a stand-in for I3D, and a folder of videos, an image and a broken file."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        tiny().float().save_pretrained(folder / f"{name}.safetensors")
    save(Stand(), folder / "i3d.pt")
    videos = folder / "videos"
    (videos / "b").mkdir(parents=True)
    for seed, (name, length) in enumerate(LENGTHS.items()):
        write_video(videos / name, noise(length, seed=seed), Fraction(25))
    write_video(videos / "d.png", noise(1, 21, 33), Fraction(1))
    (videos / "e.mp4").write_text("no video")
    return folder


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str], files: Path) -> Run:
    """Judge a folder (default: of ``files``), ending with ``status``; gives stdout and stderr."""

    def run_command(
        target: Path, *options: object, source: Path = files / "videos", status: int = 0
    ) -> tuple[str, str]:
        return outputs_of(capsys, command(files, source, target, *options), status)

    return run_command


def command(files: Path, source: Path, target: Path, *options: object) -> list[str]:
    models = ["--checkpoint", files / "one.safetensors", "--device", "cpu"]
    return [str(x) for x in ("evaluate", source, "--output", target, *models, *options)]


def results(folder: Path) -> dict[str, object]:
    return json.loads((folder / "evaluation.json").read_text())


def contents(folder: Path) -> dict[str, object]:
    """All files by their names, hidden ones too, except the page and how long things took."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("evaluation.csv", "report.html"):
            content: object = path.read_bytes()
            if path.suffix == ".json":
                content = without_times(json.loads(path.read_bytes()))
            elif path.suffix == ".mp4":
                content = read_video(path)[0].shape  # x264 does not always write the same bytes
            found[path.relative_to(folder).as_posix()] = content
    return found


def without_times(value: object) -> object:
    if isinstance(value, dict):
        timed = ("encode_seconds", "decode_seconds", "encode_fps", "decode_fps")
        return {name: without_times(item) for name, item in value.items() if name not in timed}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_figures_are_those_of_the_model(tmp_path: Path, files: Path, evaluate: Run) -> None:
    out, err = evaluate(tmp_path / "out")
    assert err == ""
    assert out.startswith("one: PSNR (dB) ") and "4 clips -> " in out
    assert "cannot read: e.mp4" in out and "rFVD: left out" in out and "LPIPS: left out" in out
    found = results(tmp_path / "out")
    vae = WanVAE.from_pretrained(files / "one.safetensors")
    for record in found["records"]:
        video, _ = read_video(files / "videos" / record["name"])
        frames, height, width = video.shape[1:]
        assert (record["frames"], record["height"], record["width"]) == (frames, height, width)
        whole = torch.cat([video, video[:, -1:].expand(-1, -(frames - 1) % 4, -1, -1)], dim=1)
        posterior = vae.encode(pad_to_multiple(whole[None], 8))
        decoded = vae.decode(posterior.mode())[0, :, :frames, :height, :width]
        pairs = list(zip(decoded.split(1, 1), video.split(1, 1), strict=True))
        pairs = [tuple(x.transpose(0, 1) for x in pair) for pair in pairs]
        (row,) = record["models"]
        expected = [psnr(*pair) for pair in pairs]
        assert row["frame_psnr"] == pytest.approx(expected, abs=1e-3)
        assert row["psnr"] == pytest.approx(sum(expected) / frames, abs=1e-3)
        assert row["ssim"] == pytest.approx(sum(ssim(*pair) for pair in pairs) / frames, abs=1e-4)
        pixels = frames * height * width
        assert row["compression"] == pytest.approx(3 * pixels / posterior.mean.numel())
        assert row["bits"] == pytest.approx(16 * posterior.mean.numel() / pixels)
        nats = row["information"] * pixels * torch.tensor(2.0).log().item()
        assert nats == pytest.approx(posterior.kl().item(), rel=1e-4)
    (overall,) = found["overall"]
    rows = [record["models"][0]["psnr"] for record in found["records"]]
    assert overall["psnr"] == pytest.approx(sum(rows) / 4)
    assert overall["frames"] == 18 + 5 + 7 + 1


def test_rows_and_groups(tmp_path: Path, files: Path, evaluate: Run) -> None:
    models = ["--checkpoint", files / "one.safetensors", files / "two.safetensors", "--diffusers"]
    options = [*models, "--frames", 5, 1, "--resize", 16, "16x24", "--i3d", files / "i3d.pt"]
    out, _ = evaluate(tmp_path / "out", *options)
    found = results(tmp_path / "out")
    names = ["one", "one (diffusers)", "two", "two (diffusers)"]
    assert [row["model"] for row in found["overall"]] == names
    one, theirs, two, _ = (row["psnr"] for row in found["overall"])
    assert one == pytest.approx(theirs, abs=1e-3) and one != pytest.approx(two, abs=1e-3)
    assert len(found["records"]) == 3 * 4 + 2  # the image has one length
    groups = [
        [(row["group"], row["clips"]) for row in found[name][:: len(names)]]
        for name in ("by_size", "by_length")
    ]
    assert groups == [[("16x24", 7), ("16", 7)], [("1 frame", 8), ("5 frames", 6)]]
    with (tmp_path / "out" / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 * 4
    assert {row["name"] for row in rows} == {*LENGTHS, "d.png"}
    assert float(rows[0]["psnr"]) == found["records"][0]["models"][0]["psnr"]
    assert "left out: it needs 2 windows of 16 frames, not 0" in out
    assert "left out: d.png: too short for 5 frames: it has 1" in out


def test_models_of_rgba_are_judged_over_four_channels(
    tmp_path: Path, files: Path, evaluate: Run
) -> None:
    rgba, videos = tmp_path / "rgba.safetensors", tmp_path / "videos"
    tiny(in_channels=4, out_channels=4).float().save_pretrained(rgba)
    videos.mkdir()
    write_video(videos / "opaque.mp4", noise(5), Fraction(25))
    picture = torch.cat([noise(1), noise(1, seed=9)[:1]])
    write_video(videos / "transparent.png", picture, Fraction(1))
    out, _ = evaluate(tmp_path / "out", "--checkpoint", rgba, source=videos)
    assert "alpha (levels)" in out
    vae = WanVAE.from_pretrained(rgba)
    for record in results(tmp_path / "out")["records"]:
        video = read_video(videos / record["name"], alpha=True)[0]
        with torch.no_grad():
            decoded = vae.decode(vae.encode(pad_to_multiple(video[None], 8)).mode())
        decoded = decoded[0, :, :, : video.shape[2], : video.shape[3]]
        (row,) = record["models"]
        frames = decoded.movedim(1, 0), video.movedim(1, 0)
        expected = [psnr(x[None], y[None]) for x, y in zip(*frames, strict=True)]
        assert row["frame_psnr"] == pytest.approx(expected, abs=1e-2)
        error = 127.5 * (decoded - video)[3].abs().mean().item()
        assert row["alpha"] == pytest.approx(error, rel=1e-3)
        values = vae.encode(pad_to_multiple(video[None], 8)).mean.numel()
        assert row["compression"] == pytest.approx(video.numel() / values)
    shown = [path.name for path in (tmp_path / "out" / "trials").rglob("comparison.*")]
    assert {*shown} == {"comparison.mp4", "comparison.webp"}


def test_what_does_not_go_with_models_of_rgba_is_one_line(
    tmp_path: Path, files: Path, evaluate: Run
) -> None:
    rgba = tmp_path / "rgba.safetensors"
    tiny(in_channels=4, out_channels=4).float().save_pretrained(rgba)
    both = "--checkpoint", rgba, files / "one.safetensors"
    _, err = evaluate(tmp_path / "out", *both, status=1)
    assert "rgba encodes RGBA and one RGB, which have no common figures" in err
    _, err = evaluate(tmp_path / "out", "--checkpoint", rgba, "--background", "white", status=1)
    assert "this model encodes alpha, so there is no background" in err
    _, err = evaluate(tmp_path / "out", "--checkpoint", rgba, "--diffusers", status=1)
    assert "--diffusers compares RGB" in err
    assert not (tmp_path / "out").exists()


def test_options_come_from_a_file_too(tmp_path: Path, files: Path, evaluate: Run) -> None:
    config, checkpoint = tmp_path / "config.yaml", files / "one.safetensors"
    config.write_text(f"checkpoint: {checkpoint}\nframes: [5]\nresize: [16, 16x24]\nclips: 1\n")
    arguments = ["evaluate", files / "videos", "--output", tmp_path / "out", "--config", config]
    assert cli.main(list(map(str, arguments))) == 0
    found = results(tmp_path / "out")
    assert [record["size"] for record in found["records"]] == ["16", "16x24"]
    assert [model["name"] for model in found["settings"]["models"]] == ["one"]


def test_rfvd_is_over_windows_of_all_clips(tmp_path: Path, files: Path, evaluate: Run) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    for number, length in enumerate((18, 33, 16)):
        write_video(source / f"{number}.mp4", noise(length, 16, 16, seed=number), Fraction(25))
    out, _ = evaluate(tmp_path / "out", "--i3d", files / "i3d.pt", source=source)
    (row,) = results(tmp_path / "out")["overall"]
    assert row["windows"] == 4 and row["rfvd"] > 0
    assert "rFVD: a rough estimate: 4 windows of 16 frames are fewer than the 6 features" in out
    rows = {row["group"]: row for row in results(tmp_path / "out")["by_length"]}
    windows = {group: row["windows"] for group, row in rows.items()}
    assert windows == {"9 to 16 frames": 1, "17 to 32 frames": 1, "33 to 64 frames": 2}
    # One window has no covariance.
    assert rows["9 to 16 frames"]["rfvd"] is None and rows["17 to 32 frames"]["rfvd"] is None
    assert 0 < rows["33 to 64 frames"]["rfvd"] != row["rfvd"]


def test_a_second_run_does_what_is_missing(
    tmp_path: Path, files: Path, evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    evaluate(target)
    before = contents(target)
    judged = []
    original = run.run_trial
    monkeypatch.setattr(run, "run_trial", lambda *args: judged.append(1) or original(*args))
    evaluate(target)
    assert not judged and contents(target) == before
    # What a killed process leaves: a folder without a record, or half a record, and temporaries.
    folders = sorted(path for path in (target / "trials").iterdir())
    (folders[0] / "record.json").unlink()
    (folders[0] / ".comparison.123.partial.mp4").write_bytes(b"half")
    (folders[1] / "record.json").write_text('{"name": "half')
    (target / ".evaluation.0123abcd.json").write_text("half")
    evaluate(target)
    assert len(judged) == 2 and contents(target) == before


def test_a_killed_process_loses_nothing(tmp_path: Path, files: Path, evaluate: Run) -> None:
    source, target = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    for number in range(24):
        os.link(files / "videos" / "b" / "c.mkv", source / f"{number:02}.mkv")
    options = ["--media", 3]
    with subprocess.Popen(
        launched(*command(files, source, target, *options)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while len(list(target.glob("trials/*/record.json"))) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "run it again to go on from there" in err
    assert not (target / "report.html").exists()
    done = len(list(target.glob("trials/*/record.json")))
    assert 3 <= done < 24
    evaluate(target, *options, source=source)
    evaluate(tmp_path / "undisturbed", *options, source=source)
    assert contents(target) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_two_processes_find_the_same(tmp_path: Path, files: Path, evaluate: Run) -> None:
    arguments = command(files, files / "videos", tmp_path / "two", "--frames", 5, 7)
    done = subprocess.run(
        launched(*arguments), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1
    evaluate(tmp_path / "one", "--frames", 5, 7)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", 5], "frames is [], not [5]"),
        (["--dtype", "bfloat16"], "(wanvae, float32, float32,"),
        (["--media", 1], "media is 12, not 1"),
    ],
)
def test_other_settings_are_refused(
    tmp_path: Path, evaluate: Run, options: list[object], message: str
) -> None:
    evaluate(tmp_path / "out")
    before = contents(tmp_path / "out")
    _, err = evaluate(tmp_path / "out", *options, status=1)
    assert "was written with other settings: " in err and message in err and err.count("\n") == 1
    assert contents(tmp_path / "out") == before


def test_the_same_model_goes_on_and_an_edited_video_is_judged_again(
    tmp_path: Path, files: Path, evaluate: Run
) -> None:
    """The file of the model is another one; size and time of the video are the same."""
    source = tmp_path / "videos"
    source.mkdir()
    write_video(source / "a.bmp.png", noise(1), Fraction(1))
    path = source / "b.ppm"
    path.write_bytes(b"P6 40 24 255\n" + bytes(range(96)) * 30)
    (source / "c.txt").write_text("a caption")
    model = tmp_path / "one.safetensors"
    content = load_file(files / "one.safetensors")
    with safe_open(files / "one.safetensors", "pt") as file:
        metadata = file.metadata()
    for note in ("first", "second"):
        save_file(content, model, {**metadata, "note": note})
        out, _ = evaluate(tmp_path / "out", "--checkpoint", model, source=source)
    assert "ignored, no videos or images: 1 .txt" in out
    first = {record["name"]: record for record in results(tmp_path / "out")["records"]}
    time = path.stat().st_mtime_ns
    path.write_bytes(b"P6 40 24 255\n" + bytes(reversed(range(96))) * 30)
    os.utime(path, ns=(0, time))
    evaluate(tmp_path / "out", "--checkpoint", model, source=source)
    second = {record["name"]: record for record in results(tmp_path / "out")["records"]}
    assert first["a.bmp.png"] == second["a.bmp.png"]
    assert first["b.ppm"]["models"][0]["psnr"] != second["b.ppm"]["models"][0]["psnr"]


def test_an_evaluation_of_an_earlier_version_goes_on(tmp_path: Path, evaluate: Run) -> None:
    """It knows models by their files, and no heads of videos."""
    evaluate(tmp_path / "out")
    before = results(tmp_path / "out")["records"]
    path = tmp_path / "out" / "settings.json"
    settings = json.loads(path.read_text())
    assert settings["models"][0].pop("model")
    path.write_text(json.dumps(settings))
    for record in (tmp_path / "out" / "trials").glob("*/record.json"):
        values = json.loads(record.read_text())
        assert values.pop("head")
        record.write_text(json.dumps(values))
    evaluate(tmp_path / "out")
    without = [{**record, "head": ""} for record in before]
    assert [{**record, "head": ""} for record in results(tmp_path / "out")["records"]] == without


def test_numbers_that_a_model_cannot_hold_are_failures(
    tmp_path: Path, files: Path, evaluate: Run
) -> None:
    vae = tiny().float()
    with torch.no_grad():
        vae.conv1.bias[:1] = 1e5
    vae.save_pretrained(tmp_path / "large.safetensors")
    options = ["--checkpoint", tmp_path / "large.safetensors", "--encode-dtype", "float16"]
    _, err = evaluate(tmp_path / "out", *options, status=1)
    assert "not finite (NaN or infinite) in float16: encode in bfloat16" in err


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, files: Path, evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_text("no video")
    inside = files / "videos" / "out"
    cases = [
        (tmp_path / "full", [], files / "videos", "has other files in it; name a new folder"),
        (inside, [], files / "videos", "must not be in"),
        (tmp_path / "out", [], tmp_path / "missing", "is not a folder; check the path"),
        (tmp_path / "out", [], tmp_path / "empty", "nothing to judge in"),
        (tmp_path / "out", [], tmp_path / "broken", "1 files cannot be read"),
        (tmp_path / "a" / "b", [], files / "videos", "make the directory"),
        (tmp_path / "out", ["--frames", 99], files / "videos", "other --frames or --resize"),
        (tmp_path / "out", ["--i3d", tmp_path / "x.pt"], files / "videos", "is not a file"),
        (tmp_path / "memory", ["--max-memory", "2MB"], files / "videos", "is shared by 2 coders"),
        (tmp_path / "out", ["--lpips-weights", "x"], files / "videos", "torchvision is not"),
    ]
    monkeypatch.setattr("wanvae.metrics.lpips.find_spec", lambda name: None)
    for target, options, source, message in cases:
        out, err = evaluate(target, *options, source=source, status=1)
        assert out == "" and err.count("\n") == 1 and message in err, err
        assert not (target / "report.html").exists()
    assert not inside.exists() and not (tmp_path / "out").exists()


def test_a_video_that_ends_early_is_named_and_the_rest_goes_on(
    tmp_path: Path, files: Path, evaluate: Run
) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    whole = (files / "videos" / "a.mp4").read_bytes()
    write_video(source / "a.mkv", noise(40), Fraction(25))
    cut = (source / "a.mkv").read_bytes()
    (source / "a.mkv").write_bytes(cut[: len(cut) // 2])
    _, err = evaluate(tmp_path / "none", source=source, status=1)
    assert "not one of 1 clips could be read to its end (the first: a.mkv" in err
    (source / "b.mp4").write_bytes(whole)
    out, _ = evaluate(tmp_path / "out", source=source)
    assert "cannot read: a.mkv: " in out and "1 clips -> " in out
    found = results(tmp_path / "out")
    assert [failure["name"] for failure in found["failures"]] == ["a.mkv"]
    # No more is left of it than of what was never there.
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 1


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, evaluate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "run_trials", interrupted)
    _, err = evaluate(tmp_path / "out", status=130)
    kept = "clips that were judged are kept; run it again to go on from there"
    assert err == f"wanvae: interrupted; {kept}\n"


def test_two_jobs_do_not_write_one_evaluation(tmp_path: Path, evaluate: Run) -> None:
    with occupied(tmp_path / "out"):
        _, err = evaluate(tmp_path / "out", status=1)
    assert err.startswith(f"wanvae: another process works in {tmp_path / 'out'} (process 1 on ")
    assert not contents(tmp_path / "out").keys() - {".lock"}
