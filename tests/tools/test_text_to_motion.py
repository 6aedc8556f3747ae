"""The example learns which motion belongs to which caption, and goes on after an interruption."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

import motion.cli
import motion.train.run
from motion import TokenDataset
from motion.files.formats import read_motion, write_motion
from motion.skeleton.clip import MotionClip
from motion.skeleton.sample import walk
from tests.motion.small_tokenizers import saved_tokenizer
from tools.examples import text_to_motion

CAPTIONS = {"forward": "a person walks forward", "backward": "a person walks backward"}


@pytest.fixture(autouse=True)
def new_processes() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def write_clips(folder: Path, frames: int) -> None:
    """Writes a walk, and a shorter one backwards in time, each with its caption."""
    folder.mkdir()
    clip = walk(frames)
    count = 2 * frames // 3
    reversed_clip: MotionClip = replace(
        clip[:count],
        rotations=clip.rotations[:count].flip(0),
        root_positions=clip.root_positions[:count].flip(0),
    )
    for name, written in (("forward", clip), ("backward", reversed_clip)):
        write_motion(folder / f"{name}.bvh", written)
        (folder / f"{name}.txt").write_text(CAPTIONS[name])


def tokenize(folder: Path, tokens: Path, checkpoint: Path) -> None:
    command = ["tokenize", folder, tokens, "--checkpoint", checkpoint]
    assert motion.cli.main([*map(str, command)]) == 0


def train(tokens: Path, run: Path, steps: int) -> text_to_motion.TextToMotion:
    return text_to_motion.train(tokens, run, steps, 16, 1e-3)


@pytest.mark.slow
def test_what_cannot_work_is_said_before_training(tmp_path: Path) -> None:
    """Without a stack of calls. Neither the tokens nor the folder of the run are touched."""
    checkpoint = saved_tokenizer(tmp_path / "model.safetensors")
    script = [sys.executable, text_to_motion.__file__, "--caption", "a", "--run", tmp_path / "run"]
    for output, model, message in (
        ("out.txt", checkpoint, "out.txt must end in .bvh"),
        ("out.bvh", tmp_path / "none", "none"),
        ("out.bvh", checkpoint, "tokens is no complete data set of tokens"),
    ):
        words = [*script, tmp_path / "tokens", tmp_path / output, "--checkpoint", model]
        found = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
        assert found.returncode == 1 and message in found.stderr
        assert found.stderr.splitlines()[-1].startswith("text_to_motion: ")
        assert "Traceback" not in found.stderr and not (tmp_path / "run").exists()


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    checkpoint = saved_tokenizer(tmp_path / "model.safetensors")
    write_clips(tmp_path / "in", 24)
    tokenize(tmp_path / "in", tmp_path / "tokens", checkpoint)
    once = train(tmp_path / "tokens", tmp_path / "once", 6)
    train(tmp_path / "tokens", tmp_path / "twice", 4)
    twice = train(tmp_path / "tokens", tmp_path / "twice", 6)
    for one, two in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(one, two)
    # A step depends on the caption and on the steps before, and on nothing after.
    text = text_to_motion.read_bytes(["ab", "a"], torch.device("cpu"))
    ids = torch.randint(4, 30, (2, 7, 2), generator=torch.Generator().manual_seed(0))
    scores = once(text, ids)
    later = once(text, torch.cat([ids[:, :5], ids[:, 5:].flip(1)], dim=1))
    assert torch.allclose(scores[:, :5], later[:, :5], atol=1e-5)
    assert not torch.allclose(scores[:, 5:], later[:, 5:], atol=1e-3)
    alone = once(text_to_motion.read_bytes(["a"], torch.device("cpu")), ids[1:])
    assert torch.allclose(scores[1:], alone, atol=1e-4)
    # Whatever it has learned, samples are tokens of the vocabulary.
    torch.manual_seed(0)
    for temperature in (0.0, 1.0, 3.0):
        indices = once.sample("anything", 9, temperature)
        assert indices.shape[1] == 2 and len(indices) <= 9 and (indices < 16).all()


@pytest.mark.slow
def test_it_learns_two_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a tokenizer of the same clips; at least 95% of the codes are the codes of the clip."""
    write_clips(tmp_path / "in", 120)
    options = {"data.folder": tmp_path / "in", "trainer.run": tmp_path / "run"}
    options |= {"trainer.steps": 60, "trainer.workers": 0, "trainer.warmup_steps": 10}
    command = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert motion.train.run.main(["--config", "tiny", *command]) == 0
    checkpoint = tmp_path / "run" / "model.safetensors"
    tokenize(tmp_path / "in", tmp_path / "tokens", checkpoint)
    AcceleratorState._reset_state(True)
    for name, caption in CAPTIONS.items():
        out = tmp_path / f"{name}.bvh"
        command = [tmp_path / "tokens", out, "--caption", caption, "--checkpoint", checkpoint]
        command += ["--run", tmp_path / "t2m", "--steps", 150]
        text_to_motion.main([*map(str, command)])
        assert len(read_motion(out)) == {"forward": 120, "backward": 80}[name]
    model = train(tmp_path / "tokens", tmp_path / "t2m", 150)
    for clip in TokenDataset(tmp_path / "tokens"):
        assert clip.indices.unique(dim=0).shape[0] > 8
        found = model.sample(clip.caption, 200, 0.0)
        assert found.shape == clip.indices.shape
        same = (found == clip.indices).float().mean().item()
        with capsys.disabled():
            print(f"\n{clip.caption}: {100 * same:.1f}% of {found.numel()} codes")
        assert same > 0.95
