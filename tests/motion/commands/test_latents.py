"""The command line with a VAE: latents instead of tokens."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from motion import MotionVAE, cli
from motion.commands.encode import LatentReport, encode_folder
from motion.features.recording import read_recording
from motion.files.formats import read_motion, write_motion
from motion.latents import read_latents
from motion.skeleton.retarget import retarget
from tests.commands import outputs_of
from tests.motion.helpers import in_processes
from tests.motion.skeleton.test_matching import MIXAMO
from tests.motion.small_tokenizers import (
    ROOTED,
    WALK,
    saved_tokenizer,
    tiny_vae,
    write_walks,
)

pytestmark = pytest.mark.usefixtures("new_processes")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VAE, a tokenizer, a walk and its latents."""
    folder = tmp_path_factory.mktemp("latents")
    tiny_vae(ROOTED).save_pretrained(folder / "vae.safetensors")
    saved_tokenizer(folder / "tokenizer.safetensors")
    write_motion(folder / "walk.bvh", WALK)
    paths = folder / "walk.bvh", folder / "latents.safetensors"
    assert cli.main(["encode", *map(str, paths), *model(folder)]) == 0
    return folder


def model(files: Path, name: str = "vae") -> list[str]:
    return ["--checkpoint", str(files / f"{name}.safetensors")]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run_command(*arguments: object, status: int = 0) -> tuple[str, str]:
        return outputs_of(capsys, list(map(str, arguments)), status, cli.main)

    return run_command


def test_latents_and_back(tmp_path, files, run):
    walk, latents = files / "walk.bvh", files / "latents.safetensors"
    out, _ = run("decode", latents, tmp_path / "a.bvh", *model(files))
    assert out == f"{latents} -> {tmp_path / 'a.bvh'}: 41 frames at 30 per second\n"
    out, _ = run("reconstruct", walk, tmp_path / "b.bvh", *model(files))
    assert (tmp_path / "a.bvh").read_bytes() == (tmp_path / "b.bvh").read_bytes()
    assert "MPJPE " in out and out.endswith("11 latents of 4 numbers\n")
    vae = MotionVAE.from_pretrained(files / "vae.safetensors")
    features = read_recording(walk, vae.config).features
    posterior = vae.encode(features[None])
    found = read_latents(latents)
    torch.testing.assert_close(found.posterior.mean, posterior.mean[0])
    torch.testing.assert_close(found.posterior.logvar, posterior.logvar[0])
    assert found.origin.frames == 41 and found.origin.actor.skeleton.joints == 55
    run("decode", latents, tmp_path / "a.png", *model(files))
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_joints_have_no_frame_rate(tmp_path, files, run):
    """Which decode and reconstruct say; the joints are the joints of the motion."""
    joints = tmp_path / "a.joints.npy"
    out, _ = run("decode", files / "latents.safetensors", joints, *model(files))
    lost = "note: the file does not tell its 30 frames per second\n"
    assert out.endswith(f"41 frames at 30 per second\n{lost}")
    run("decode", files / "latents.safetensors", tmp_path / "a.bvh", *model(files))
    expected = read_motion(tmp_path / "a.bvh").pose.positions[:, :22]
    found = torch.from_numpy(np.load(joints)).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    out, _ = run("reconstruct", files / "walk.bvh", joints, *model(files))
    assert lost not in out  # a VAE ends with its latents
    out, _ = run("reconstruct", files / "walk.bvh", joints, *model(files, "tokenizer"))
    assert out.endswith(lost)


def test_latents_of_another_program(tmp_path, files, run):
    save_file({"mean": torch.zeros(5, 4)}, tmp_path / "z.safetensors")
    out, _ = run("decode", tmp_path / "z.safetensors", tmp_path / "a.npz", *model(files))
    assert out.endswith("20 frames at 30 per second\n")
    assert len(read_motion(tmp_path / "a.npz")) == 20
    for tensors, message in (
        ({"mean": torch.zeros(5, 3)}, "5 latents of 3 numbers, but the model has latents of 4"),
        ({"mean": torch.zeros(5)}, "mean must be (n, C)"),
        ({"indices": torch.zeros(5, 4)}, "it has no tensor mean"),
    ):
        save_file(tensors, tmp_path / "z.safetensors")
        paths = tmp_path / "z.safetensors", tmp_path / "b.npz"
        _, err = run("decode", *paths, *model(files), status=1)
        assert message in err
        assert not (tmp_path / "b.npz").exists()


def test_a_file_of_latents_is_described(tmp_path, files, run):
    out, _ = run("info", files / "latents.safetensors")
    assert "latents.safetensors: 11 continuous latents of 4 numbers\nmodel: digest " in out
    assert "frames: 41 at 30 per second" in out and "joints: 55" in out
    save_file({"mean": torch.zeros(5, 4)}, tmp_path / "z.safetensors")
    out, _ = run("info", tmp_path / "z.safetensors")
    assert out.endswith("5 continuous latents of 4 numbers\norigin: not known\n")


def test_other_files_are_no_latents(tmp_path, files, run):
    for wrong in (files / "walk.bvh", files):
        _, err = run("decode", wrong, tmp_path / "a.bvh", *model(files), status=1)
        assert f"{wrong} must end in .safetensors, to be read as latents" in err


def test_a_folder_is_encoded_once(tmp_path, files, run):
    source, target = tmp_path / "in", tmp_path / "out"
    write_walks(source)
    out, _ = run("encode", source, target, *model(files))
    assert "4 files of latents written, 0 were there" in out
    assert (target / "deep" / "er" / "d.safetensors").exists()
    assert (
        "0 files of latents written, 4 were there"
        in run("encode", source, target, *model(files))[0]
    )
    write_motion(source / "a.bvh", WALK[:9])
    (source / "b.npz").write_bytes(b"broken")
    out, err = run("encode", source, target, *model(files), status=1)
    assert "1 files of latents written, 2 were there" in out and "left out:" in out
    assert "1 of 4 files cannot be read" in err
    assert not (target / "b.safetensors").exists()
    assert read_latents(target / "a.safetensors").origin.frames == 9


@pytest.mark.parametrize("progress", [False, True])
def test_a_folder_shows_a_progress_bar_if_asked_for(
    tmp_path: Path, files: Path, progress: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_walks(tmp_path / "in")
    option = "--progress" if progress else "--no-progress"
    paths = str(tmp_path / "in"), str(tmp_path / "out")
    assert cli.main(["encode", *paths, *model(files), option]) == 0
    assert ("4/4" in capsys.readouterr().err) == progress


def test_processes_share_a_folder(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes its files, and all know what happened to every file."""
    write_walks(tmp_path / "in")
    (tmp_path / "in" / "b.npz").write_bytes(b"broken")
    vae = MotionVAE.from_pretrained(files / "vae.safetensors")
    lock = contextlib.nullcontext()
    monkeypatch.setattr("motion.commands.encode.locked_by_run", lambda folder: lock)

    def encode(index: int) -> LatentReport:
        share = SimpleNamespace(process_index=index, num_processes=2, is_main_process=index == 0)
        return encode_folder(vae, tmp_path / "in", tmp_path / "out", share)

    reports = in_processes(monkeypatch, 2, encode, "motion.commands.encode")
    assert reports[0] == reports[1]
    assert (reports[0].written, reports[0].kept, len(reports[0].failures)) == (3, 0, 1)
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 3


@pytest.mark.filterwarnings("ignore:the skeleton of the motion is another")
def test_another_skeleton_is_moved_if_asked_for(tmp_path, files, run):
    """The body of the model moves; the latents know it, and how the file was read."""
    mixamo = tmp_path / "in" / "mixamo.bvh"
    mixamo.parent.mkdir()
    write_motion(mixamo, retarget(WALK, replace(MIXAMO, unit=0.01)))
    paths = mixamo.parent, tmp_path / "out"
    out, err = run("encode", *paths, *model(files), status=1)
    assert "it has no jaw" in out and "--retarget" in out
    for written in (1, 0):
        out, _ = run("encode", *paths, *model(files), "--retarget", "--unit", 0.01)
        assert f"{written} files of latents written, {1 - written} were there" in out
    found = read_latents(tmp_path / "out" / "mixamo.safetensors")
    assert found.origin.actor.skeleton.joints == 55 and found.origin.read_as.unit == 0.01
    picture = tmp_path / "a.png"
    _, err = run("render", mixamo, picture, *model(files), status=1)
    assert "--retarget" in err
    run("render", mixamo, picture, *model(files), "--retarget")
    assert picture.stat().st_size > 1000


def test_a_vae_has_no_tokens_and_a_tokenizer_no_latents(tmp_path, files, run):
    walk = files / "walk.bvh"
    _, err = run("tokenize", walk, tmp_path / "t.npz", *model(files), status=1)
    assert "vae.safetensors is a VAE, whose latents are continuous: it has no tokens" in err
    assert "Use encode" in err
    _, err = run("encode", walk, tmp_path / "t.safetensors", *model(files, "tokenizer"), status=1)
    assert "is a tokenizer, without continuous latents. Use tokenize" in err
    _, err = run("reconstruct", walk, tmp_path / "b.bvh", *model(files), "--layers", 1, status=1)
    assert "layers is 1, but a VAE has continuous latents" in err
    assert not any(tmp_path.iterdir())


def test_a_vae_is_judged_and_described(tmp_path, files, run):
    out, _ = run("evaluate", files / "walk.bvh", "--output", tmp_path / "out", *model(files))
    assert out.startswith("41 frames\nMPJPE ") and "jerk: " in out and "layers" not in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Layers and codes" not in page and "7.5 per second, each of 4 numbers" in page
    out, _ = run("info", files / "vae.safetensors")
    assert "latents: 7.5 per second, each of 4 numbers" in out
    assert "bottleneck: gaussian" in out and "codebook" not in out
    _, err = run("convert", files / "vae.safetensors", tmp_path / "a.tar", "--to=momask", status=1)
    assert "no continuous latents" in err
