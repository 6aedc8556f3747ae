"""What is found out about a model, against direct computation."""

import pytest
import torch

from motion import RVQVAE, FeatureSpec, RVQVAEConfig
from motion.clips import write_clip
from motion.config import QuantizerConfig, ResnetConfig
from motion.evaluation import Evaluation, evaluate
from motion.metrics import joint_errors, mpjpe, rotation_error
from motion.recording import read_recording
from tests.motion.helpers import random_clip, random_skeleton

JOINTS = 4
LENGTHS = (23, 9, 16)
LAYERS, CODES = 3, 7
SPEC = FeatureSpec(rot6d="rows")


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = RVQVAEConfig(
        channels=SPEC.channels(JOINTS),
        code_dim=5,
        resnet=ResnetConfig(width=8, depth=1),
        quantizer=QuantizerConfig(layers=LAYERS, codes=CODES),
        features=SPEC,
        fps=30.0,
    )
    return RVQVAE(config)


@pytest.fixture
def recordings(tmp_path, model):
    made = []
    for number, length in enumerate(LENGTHS):
        path = tmp_path / f"{number}.bvh"
        write_clip(path, random_clip(random_skeleton(JOINTS), length))
        made.append(read_recording(path, model.config))
    return made


@torch.no_grad()
def reconstructed(model, recording, layers=None):
    indices = model.encode(recording.features[None])
    return recording.joints_of(model.decode(indices, len(recording), layers=layers)[0])


def test_errors_are_means_over_all_frames(model, recordings):
    found = evaluate(model, recordings)
    model.eval()
    assert found.joint_names == recordings[0].skeleton.names
    assert found.frames == sum(LENGTHS)
    assert len(found.mpjpe) == len(found.rotation_errors) == LAYERS
    for row, layers in enumerate((1, 2, None)):
        made = [reconstructed(model, recording, layers) for recording in recordings]
        places = torch.cat([joints.positions for joints in made])
        turns = torch.cat([joints.rotations for joints in made])
        originals = torch.cat([recording.joints.positions for recording in recordings])
        turned = torch.cat([recording.joints.rotations for recording in recordings])
        assert found.mpjpe[row] == pytest.approx(mpjpe(places, originals))
        assert found.rotation_errors[row] == pytest.approx(rotation_error(turns, turned))
    torch.testing.assert_close(found.joint_errors, joint_errors(places, originals))
    assert found.joint_errors.mean().item() == pytest.approx(found.mpjpe[-1])


def test_only_the_numbers_of_layers_asked_for(model, recordings):
    every, some = evaluate(model, recordings), evaluate(model, recordings, numbers_of_layers=[1, 3])
    assert some.mpjpe == (every.mpjpe[0], every.mpjpe[2])
    assert some.rotation_errors == (every.rotation_errors[0], every.rotation_errors[2])
    assert torch.equal(some.joint_errors, every.joint_errors)


def counted(windows, model):
    counts = torch.zeros(LAYERS, CODES, dtype=torch.long)
    for window in windows:
        for token in model.encode(window[None])[0]:
            counts[torch.arange(LAYERS), token] += 1
    return counts


def test_codes_are_counted_over_whole_recordings(model, recordings):
    found = evaluate(model, recordings)
    model.eval()
    assert torch.equal(found.counts, counted([r.features for r in recordings], model))
    assert found.counts.sum(1).tolist() == [6 + 3 + 4] * LAYERS


def test_codes_are_counted_over_windows_at_all_offsets(model, recordings):
    found = evaluate(model, recordings, window=16)
    model.eval()
    # The second recording is shorter than a window, and the third one as long.
    windows = [recordings[0].features[start : start + 16] for start in range(8)]
    whole = [recordings[1].features, recordings[2].features]
    assert torch.equal(found.counts, counted([*windows, *whole], model))


def test_use_and_perplexity_by_hand():
    counts = torch.tensor([[8, 0, 0, 0], [5, 5, 5, 5], [2, 2, 0, 0]])
    found = Evaluation(
        joint_names=(),
        joint_errors=torch.zeros(0),
        mpjpe=(),
        rotation_errors=(),
        counts=counts,
        frames=1,
    )
    assert found.code_use.tolist() == [0.25, 1.0, 0.5]
    torch.testing.assert_close(found.perplexity, torch.tensor([1.0, 4.0, 2.0]).double())


def test_processes_share_the_recordings(model, recordings, monkeypatch):
    """More of them than recordings, too."""
    whole = evaluate(model, recordings)
    for ranks in (2, 5):
        given = []

        def note(x, given=given):
            given.append(x.clone())
            return x

        with monkeypatch.context() as patch:
            patch.setattr("motion.evaluation.sum_over_processes", note)
            for rank in range(ranks):
                evaluate(model, recordings, rank=rank, ranks=ranks)
        errors, angles, counts, frames = (sum(given[part::4]) for part in range(4))
        torch.testing.assert_close(errors[-1] / frames, whole.joint_errors)
        assert (angles / frames).tolist() == pytest.approx(whole.rotation_errors)
        assert torch.equal(counts.long(), whole.counts)
        assert frames == whole.frames


def test_the_model_is_left_as_it_was(model, recordings):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, recordings)
    assert model.training
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
