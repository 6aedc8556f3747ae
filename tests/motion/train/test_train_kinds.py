"""Training of a VAE, and of tokenizers with each kind of quantizer."""

from pathlib import Path

import pytest
import torch

from motion import RVQVAE, MotionVAE
from motion.files.formats import write_motion
from motion.skeleton.sample import walk
from motion.train.run import main
from tests.motion.train.motion_runs import lines_of, options, quick
from wanvae.engine.checkpoint import read_tensors

__all__ = ["quick"]

RATE = "--trainer.learning_rate=0.01"
KINDS = {
    "learned": ["--model.quantizer.orthogonality=0.1"],
    "simvq": ["--model.quantizer.estimator=rotation"],
    "implicit": ["--model.quantizer.codebook_dim=4"],
    "fsq": ["--model.quantizer.fsq.levels=[4,4]"],
    "lfq": ["--model.quantizer.groups=2"],
}
VAE = ["--model.bottleneck=gaussian", "--model.resnet.causal=true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("motion")
    write_motion(folder / "walk.npz", walk(90))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_and_goes_on(folder, tmp_path, kind):
    changes = [RATE, f"--model.quantizer.kind={kind}", *KINDS[kind], "--trainer.checkpoint_every=2"]
    assert main(options(folder, tmp_path, 2, *changes)) == 0
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    assert ("codebook" in lines[0]) == (kind in ("learned", "simvq", "implicit"))
    assert ("regularization" in lines[0]) == (kind in ("learned", "lfq"))
    assert main(options(folder, tmp_path, 4, *changes)) == 0
    assert len([line for line in lines_of(tmp_path) if "loss" in line]) == 4
    model = RVQVAE.from_pretrained(tmp_path / "model.safetensors")
    motion = torch.randn(1, 16, 333)
    indices = model.encode(motion)
    assert indices.shape == (1, 4, 2) and model.decode(indices).isfinite().all()


def test_accumulated_batches_of_learned_codes_are_one_step(folder, tmp_path):
    changes = [RATE, "--model.quantizer.kind=learned", "--trainer.accumulate=2"]
    assert main(options(folder, tmp_path, 2, *changes)) == 0
    tensors = read_tensors(tmp_path / "model.safetensors").tensors
    assert tensors["quantizer.books.initialized"] and tensors["quantizer.books.offsets"].any()


def test_a_vae_learns_the_walk_and_goes_on(folder, tmp_path):
    changes = [RATE, *VAE, "--loss.kl=0.001", "--trainer.checkpoint_every=30"]
    assert main(options(folder, tmp_path, 30, *changes)) == 0
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    terms = {"features", "position", "kl"}
    assert all(
        line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-3) for line in lines
    )
    losses = [line["features"] for line in lines]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert lines[-1]["kl_nats"] > 0
    judged = [line for line in lines_of(tmp_path) if "evaluation_mpjpe" in line]
    assert judged and "evaluation_code_use" not in judged[-1]
    model = MotionVAE.from_pretrained(tmp_path / "model.safetensors")
    assert model.config.resnet.causal and model.normalizer.is_set
    # It goes on from its weights, and takes an average of them, which a tokenizer cannot.
    weights = f"--weights={tmp_path / 'model.safetensors'}"
    more = options(folder, tmp_path / "more", 2, RATE, *VAE, weights, "--trainer.ema_decay=0.9")
    assert main(more) == 0
    # Without the options of its architecture too.
    more = options(folder, tmp_path / "other", 2, RATE, weights, "--trainer.ema_decay=0.9")
    assert main(more) == 0


def test_the_weights_say_whether_an_average_of_them_is_taken(folder, tmp_path, capsys):
    assert main(options(folder, tmp_path / "run", 1, RATE)) == 0
    weights = f"--weights={tmp_path / 'run' / 'model.safetensors'}"
    more = [*VAE, weights, "--trainer.ema_decay=0.9"]
    assert main(options(folder, tmp_path / "more", 1, *more)) == 1
    assert "ema_decay is 0.9, but the codes follow" in capsys.readouterr().err


def test_a_vae_has_no_figures_of_codes_to_choose_the_best_by(folder, tmp_path, capsys):
    assert main(options(folder, tmp_path, 1, *VAE, "--trainer.best=code_use")) == 1
    expected = "best must be one of mpjpe, rotation_error, not 'code_use'"
    assert expected in capsys.readouterr().err
