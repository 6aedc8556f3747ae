"""Training a video VAE whose parameters two processes on the CPU share out."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers import FSDP_LAUNCHER, LAUNCHER, tiny
from tests.train.test_train import GAN, lines_of, options
from wanvae.engine.checkpoint import read_tensors
from wanvae.nn import Residual
from wanvae.train.run import innermost_blocks, main

ROOT = Path(__file__).parents[2]
# Whose step is a multiple of the gradient, so that rounding stays as small as it is.
SMALL = ["--model.num_res_blocks=1", "--trainer.optimizer=sgd", "--trainer.checkpoint_every=2"]
SMALL += ["--trainer.learning_rate=0.01", "--trainer.gradient_clip=0.5"]
BUCKETS = "[{frames: 5, height: 16, width: 24}, {frames: 1, height: 16, width: 16}]"


def launch(launcher: list[str], folder: Path, run: Path, *changes: str) -> None:
    """Trains in two processes."""
    done = subprocess.run(
        [*launcher, "-m", "wanvae.train", *options(folder, run, 4), *SMALL, *changes],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def assert_close(one: Path, other: Path, name: str = "model") -> None:
    found, expected = (read_tensors(run / f"{name}.safetensors").tensors for run in (one, other))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_sharing_out_changes_nothing_of_a_training_against_a_discriminator(folder, tmp_path):
    """With gradients of single layers, second derivatives, several decodings and shapes."""
    changes = [*GAN, "--loss.gan.r1=1", "--loss.gan.lecam=0.01", "--loss.gan.start_step=1"]
    changes += ["--loss.equivariance.weight=1", "--loss.channel_dropout.weight=1"]
    changes += ["--gradient_checkpointing=true", "--trainer.ema_decay=0.9"]
    changes += [f"--data.buckets={BUCKETS}", f"--evaluation.folder={folder}"]
    changes += ["--evaluation.frames=5", "--evaluation.size=16", "--trainer.preview_every=2"]
    sharded, whole = tmp_path / "sharded", tmp_path / "whole"
    launch(FSDP_LAUNCHER, folder, sharded, *changes)
    launch(LAUNCHER, folder, whole, *changes)
    assert_close(sharded, whole)
    for name in ("model", "ema", "discriminator"):
        assert_close(newest(sharded), newest(whole), name)
    scores = [lines_of(run)[-1]["evaluation_psnr"] for run in (sharded, whole)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert (sharded / "previews" / "step-00000004.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("model", ["--freeze_encoder=true", "--trainer.mixed_precision=bf16"]),
        ("lora", ["--lora.rank=1", *GAN, "--loss.gan.adaptive=false"]),
    ],
)
def test_sharing_out_changes_nothing_of_a_training_of_a_part(folder, tmp_path, kind, changes):
    weights = tmp_path / "vae.safetensors"
    tiny(dim_mult=(1, 2), temporal_downsample=(True,)).float().save_pretrained(weights)
    for name, launcher in (("sharded", FSDP_LAUNCHER), ("whole", LAUNCHER)):
        launch(launcher, folder, tmp_path / name, f"--weights={weights}", *changes)
    assert_close(tmp_path / "sharded", tmp_path / "whole", kind)
    # One process goes on from the middle.
    one = tmp_path / "one"
    shutil.copytree(tmp_path / "sharded" / "checkpoints", one / "checkpoints")
    shutil.rmtree(newest(one))
    arguments = [*options(folder, one, 4), *SMALL, f"--weights={weights}", *changes]
    assert main([*arguments, "--trainer.accumulate=2"]) == 0
    assert_close(one, tmp_path / "whole", kind)
    if kind == "model":
        before = read_tensors(weights).tensors
        after = read_tensors(tmp_path / "sharded" / "model.safetensors").tensors
        for key in before:
            if key.startswith(("encoder.", "conv1.")):
                assert torch.equal(before[key], after[key]), key


@pytest.mark.parametrize("variant", [{}, {"stage_shortcuts": True, "patch_size": 2}])
def test_blocks_hold_most_parameters_and_are_not_nested(variant):
    vae = tiny(dim=8, num_res_blocks=2, **variant)
    blocks = innermost_blocks(vae)
    assert not any(isinstance(m, Residual) for b in blocks for m in list(b.modules())[1:])
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    assert inside > 0.6 * sum(p.numel() for p in vae.parameters())
    # Losses ask for the gradients of these.
    outside = {id(p) for p in vae.parameters()} - {id(p) for b in blocks for p in b.parameters()}
    assert {id(vae.conv1.weight), id(vae.decoder.head[-1].weight)} <= outside
