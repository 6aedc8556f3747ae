"""What is found out about a model, against direct computation."""

from dataclasses import replace

import pytest
import torch

from motion import RVQVAE, FeatureSpec, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig
from motion.evaluate.evaluation import evaluate, measure
from motion.evaluate.movement import speeds_on_ground
from motion.features.recording import read_recording
from motion.files.formats import write_motion
from motion.metrics import ground_speed, joint_errors, joint_jerk, mpjpe, rotation_error
from motion.skeleton.clip import MotionClip
from tests.motion.evaluate.evaluations import evaluation, movement
from tests.motion.helpers import in_processes, random_clip, random_skeleton

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
        quantizer=QuantizerConfig(num_quantizers=LAYERS, codebook_size=CODES),
        features=SPEC,
        fps=30.0,
    )
    return RVQVAE(config)


@pytest.fixture
def recordings(tmp_path, model):
    found = []
    for number, length in enumerate(LENGTHS):
        path = tmp_path / f"{number}.bvh"
        write_motion(path, random_clip(random_skeleton(JOINTS), length))
        found.append(read_recording(path, model.config))
    return found


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
        decoded = [reconstructed(model, recording, layers) for recording in recordings]
        places = torch.cat([joints.positions for joints in decoded])
        turns = torch.cat([joints.rotations for joints in decoded])
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
    found = [measure(model, recording, window=16).counts for recording in recordings]
    model.eval()
    # The second recording is shorter than a window, and the third one as long.
    windows = [recordings[0].features[start : start + 16] for start in range(8)]
    expected = [windows, [recordings[1].features], [recordings[2].features]]
    assert all(map(torch.equal, found, (counted(part, model) for part in expected)))


def test_use_and_perplexity_by_hand():
    found = evaluation()
    assert found.code_use.tolist() == [0.25, 1.0]
    torch.testing.assert_close(found.perplexity, torch.tensor([1.0, 4.0]).double())


def test_a_summary_by_hand():
    found = evaluation().summary
    assert (found.frames, found.foot_contacts) == (10, 4)
    assert found.mpjpe_mm == (6.0, 2.0) and found.rotation_error_degrees == (2.0, 1.0)
    assert (found.root_aligned_mpjpe_mm, found.procrustes_aligned_mpjpe_mm) == (15.0, 5.0)
    assert found.acceleration_error_m_s2 == 3.0
    assert (found.jerk_m_s3, found.original_jerk_m_s3, found.jerk_ratio) == (4.0, 2.0, 2.0)
    assert (found.sliding, found.original_sliding) == (0.25, 0.0)
    assert found.foot_speed_m_s == 0.5
    assert found.original_foot_speed_m_s == pytest.approx(0.1)
    assert found.codes_used == (1, 4)


def test_means_over_recordings_are_weighted_by_frames():
    longer = evaluation(
        frames=30,
        errors=torch.zeros(2, 3),
        movement=movement(
            frames=30,
            aligned=torch.tensor([50.0, 350.0]),
            jerk_frames=21,
            jerks=torch.zeros(2),
            contacts=12,
            slides=torch.tensor([0.0, 11.0]),
        ),
    )
    found = (evaluation() + longer).summary
    assert found.mpjpe_mm == (1.5, 0.5)
    assert (found.root_aligned_mpjpe_mm, found.procrustes_aligned_mpjpe_mm) == (5.0, 10.0)
    assert found.jerk_m_s3 == 1.0
    assert found.sliding == 0.75


def test_what_there_is_nothing_to_find_from_is_not_known():
    nothing = evaluation(movement=movement(acceleration_frames=0, jerk_frames=0, contacts=0))
    found = nothing.summary
    assert (found.jerk_m_s3, found.original_jerk_m_s3, found.sliding) == (None,) * 3
    assert (found.acceleration_error_m_s2, found.jerk_ratio) == (None, None)
    assert evaluation(movement=movement(jerks=torch.zeros(2))).summary.jerk_ratio is None
    assert (nothing + evaluation()).summary.foot_contacts == 4


def test_how_joints_and_feet_move(model, tmp_path):
    """Of a person that only slides, for the network knows no better than a still one."""
    names = ("Hips", "LeftFoot", "RightFoot", "Head")
    skeleton = replace(
        random_skeleton(JOINTS), names=names, parents=(-1, 0, 0, 0), end_sites=(),
        offsets=((0.0, 0.9, 0.0), (0.1, -0.9, 0.0), (-0.1, -0.9, 0.0), (0.0, 0.6, 0.0)),
    )  # fmt: skip
    time = torch.arange(20, dtype=torch.float64) / 30
    path = torch.stack([0.8 * time, torch.full((20,), 0.9).double(), time**3], dim=1)
    still = torch.eye(3, dtype=torch.float64).expand(20, JOINTS, 3, 3)
    clip = MotionClip(skeleton=skeleton, rotations=still, root_positions=path, fps=30.0)
    write_motion(tmp_path / "slide.bvh", clip)
    recording = read_recording(tmp_path / "slide.bvh", model.config)
    model.eval()
    found = measure(model, recording).summary
    assert found.original_jerk_m_s3 == pytest.approx(6.0, rel=0.05)
    assert found.foot_contacts == 2 * 19
    assert found.original_sliding == 1.0
    assert found.original_foot_speed_m_s > 0.8
    pair = torch.stack([recording.joints.positions, reconstructed(model, recording).positions])
    assert found.jerk_m_s3 == pytest.approx(joint_jerk(pair[1], 30.0).mean().item(), rel=1e-4)
    speeds = ground_speed(pair[1, :, 1:3], 30.0)
    assert found.foot_speed_m_s == pytest.approx(speeds.mean().item(), rel=1e-4)
    assert found.sliding == pytest.approx((speeds > 0.5).double().mean().item())


def test_speeds_have_gaps_where_feet_are_off_the_ground():
    pair = torch.zeros(2, 5, 2, 3)
    pair[0, 3:, 1, 1] = 1.0  # the right foot of the original
    pair[1, :, :, 0] = torch.arange(5)[:, None]
    speeds = speeds_on_ground(pair, [0, 1], 10.0)
    assert speeds[1, :, 0].tolist() == [10.0] * 4 and not speeds[0, :, 0].any()
    assert speeds[:, :2, 1].tolist() == [[0.0] * 2, [10.0] * 2] and speeds[:, 2:, 1].isnan().all()
    assert speeds_on_ground(pair, [], 10.0).shape == (2, 4, 0)


@pytest.mark.parametrize("ranks", [2, 5])
def test_processes_share_the_recordings(model, recordings, monkeypatch, ranks):
    """More of them than recordings, too."""
    whole = evaluate(model, recordings)
    model.eval()

    def shared(rank):
        return evaluate(model, recordings, rank=rank, ranks=ranks)

    for found in in_processes(monkeypatch, ranks, shared, "motion.evaluate.evaluation"):
        torch.testing.assert_close(found.joint_errors, whole.joint_errors)
        assert found.rotation_errors == pytest.approx(whole.rotation_errors)
        assert found.summary.jerk_m_s3 == pytest.approx(whole.summary.jerk_m_s3)
        assert torch.equal(found.counts, whole.counts)
        assert found.frames == whole.frames


def test_the_model_is_left_as_it_was(model, recordings):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, recordings)
    assert model.training
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
