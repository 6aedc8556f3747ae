"""Conversion keeps every bit of a checkpoint, and motion up to rounding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from motion import RVQVAE, cli
from motion.checkpoints import formats
from motion.checkpoints.architecture import Untold
from motion.checkpoints.formats import WITHOUT_NORMALIZER, Layout
from motion.commands.convert import convert_checkpoint, convert_motion, load_complete
from motion.errors import MotionError
from motion.features.statistics import FeatureStatistics
from motion.files import bvh
from motion.files.arrays import read_array
from motion.files.formats import read_motion, write_motion
from motion.skeleton.clip import MotionClip, resample
from motion.skeleton.packaged import HUMANML3D, PACKAGED_SKELETONS
from motion.skeleton.sample import walk
from motion.skeleton.tree import Skeleton
from tests.motion.helpers import largest_difference, random_clip, random_skeleton
from tests.motion.small_tokenizers import ROOTED, WALK, saved_tokenizer, tiny_tokenizer
from wanvae.engine.checkpoint import CheckpointError, write_tensors
from wanvae.errors import UserError

NETWORKS = ("encoder.", "decoder.", "quantizer.books.codes", "normalizer.")

# Published files do not hold the mean and standard deviation of features.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no mean and standard deviation")


def plain(path: Path, **resnet: object) -> Path:
    """A native checkpoint of a model without normalizer, as published ones are."""
    config = tiny_tokenizer(None, channels=263).config
    torch.manual_seed(0)
    model = RVQVAE(replace(config, resnet=replace(config.resnet, **resnet)))
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("suffix", [".tar", ".pth"])
def test_momask_and_back_is_bit_equal(tmp_path: Path, suffix: str) -> None:
    native, momask = plain(tmp_path / "a.safetensors"), tmp_path / f"b{suffix}"
    back, again = tmp_path / "c.safetensors", tmp_path / f"d{suffix}"
    report = convert_checkpoint(native, momask, Layout.MOMASK)
    assert (report.source, report.notes) == (
        Layout.NATIVE,
        (
            WITHOUT_NORMALIZER,
            "not kept in the momask layout: moving averages of the codes, for training",
        ),
    )
    report = convert_checkpoint(momask, back, Layout.NATIVE)
    assert report.source is Layout.MOMASK
    assert "activation: relu, as published models have it" in report.notes
    convert_checkpoint(back, again, Layout.MOMASK)
    expected = formats.load(native)
    assert report.tensors == len(expected.tensors)
    for path in (momask, back, again):
        tensors = formats.load(path).tensors
        for name, tensor in expected.tensors.items():
            if name.startswith(NETWORKS):
                assert torch.equal(tensors[name], tensor)
    first, second = (torch.load(path, weights_only=True)["vq_model"] for path in (momask, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_what_momask_does_not_say_is_said(tmp_path: Path) -> None:
    native = plain(
        tmp_path / "a.safetensors", activation="gelu", norm="GN", dilation_growth_rate=(2, 2)
    )
    report = convert_checkpoint(native, tmp_path / "b.pth", Layout.MOMASK)
    options = "give --activation gelu --norm GN --dilation-growth-rate 2 to read it"
    assert f"not kept in the momask layout: options, so {options}" in report.notes
    untold = Untold(activation="gelu", norm="GN", dilation_growth_rate=2)
    back = load_complete(tmp_path / "b.pth", untold)
    assert back.config.resnet == replace(formats.load(native).config.resnet, dropout=0.2)
    with pytest.raises(CheckpointError, match="norm='LN' or norm='GN'"):
        load_complete(tmp_path / "b.pth")


def test_features_that_a_number_of_channels_does_not_tell(tmp_path: Path) -> None:
    for features, count in ((ROOTED, 1), (replace(ROOTED, root=False), 0)):
        native = saved_tokenizer(tmp_path / "a.safetensors", features)
        report = convert_checkpoint(native, tmp_path / "b.pth", Layout.MOMASK)
        assert sum("what the features are" in note for note in report.notes) == count


def test_a_checkpoint_learns_to_keep_paths(tmp_path: Path) -> None:
    native = saved_tokenizer(tmp_path / "a.safetensors", ROOTED)
    command = ["convert", str(native), str(tmp_path / "b.safetensors"), "--to", "native"]
    assert cli.main([*command, "--path-rounds", "5"]) == 0
    assert RVQVAE.from_pretrained(tmp_path / "b.safetensors").config.path_rounds == 5
    kept = convert_checkpoint(tmp_path / "b.safetensors", tmp_path / "c.safetensors", Layout.NATIVE)
    assert kept.notes == ()
    assert formats.load(tmp_path / "c.safetensors").config.path_rounds == 5
    lost = convert_checkpoint(tmp_path / "b.safetensors", tmp_path / "b.pth", Layout.MOMASK)
    assert any("path_rounds" in note for note in lost.notes)
    rootless = saved_tokenizer(tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="path_rounds must be 0, unless the features have a root"):
        convert_checkpoint(rootless, tmp_path / "e.safetensors", Layout.NATIVE, path_rounds=5)
    assert not (tmp_path / "e.safetensors").exists()


def test_incomplete_checkpoints(tmp_path: Path) -> None:
    native = saved_tokenizer(tmp_path / "a.safetensors")
    checkpoint = formats.load(native)
    tensors = dict(checkpoint.tensors)
    del tensors["decoder.model.0.bias"]
    formats.save_native(tmp_path / "b.safetensors", checkpoint.config, tensors)
    with pytest.raises(CheckpointError, match=r"1 missing: decoder\.model\.0\.bias"):
        convert_checkpoint(tmp_path / "b.safetensors", tmp_path / "c.pth", Layout.MOMASK)
    write_tensors(tmp_path / "d.safetensors", {"conv1.weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="no layout of a motion tokenizer"):
        load_complete(tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match=r"c\.txt must end in \.tar or \.pth"):
        convert_checkpoint(native, tmp_path / "c.txt", Layout.MOMASK)
    assert not (tmp_path / "c.pth").exists()


def test_the_scale_of_features_goes_in_and_out(tmp_path: Path) -> None:
    native, momask = plain(tmp_path / "a.safetensors"), tmp_path / "b.tar"
    generator = torch.Generator().manual_seed(0)
    scale = FeatureStatistics(*(torch.rand(263, generator=generator) + 0.1 for _ in range(2)))
    convert_checkpoint(native, momask, Layout.MOMASK)
    convert_checkpoint(momask, tmp_path / "c.safetensors", Layout.NATIVE, statistics=scale)
    normalizer = RVQVAE.from_pretrained(tmp_path / "c.safetensors").normalizer
    assert torch.equal(normalizer.mean, scale.mean) and torch.equal(normalizer.std, scale.std)
    convert_checkpoint(tmp_path / "c.safetensors", tmp_path / "d.tar", Layout.MOMASK)
    for name, values in (("mean", scale.mean), ("std", scale.std)):
        assert torch.equal(read_array(tmp_path / f"d_{name}.npy", ndim=1), values)
    other = FeatureStatistics(torch.zeros(9), torch.ones(9))
    with pytest.raises(ValueError, match="of 9 channels, not of the 263"):
        convert_checkpoint(momask, tmp_path / "e.safetensors", Layout.NATIVE, statistics=other)


# Motion


@pytest.mark.parametrize("joints", [1, 2, 7, 22, 55])
@pytest.mark.parametrize("unit", [0.01, 1.0])
def test_there_and_back_through_features(tmp_path: Path, joints: int, unit: float) -> None:
    clip = random_clip(random_skeleton(joints, seed=joints, unit=unit), frames=40)
    write_motion(tmp_path / "a.bvh", clip)
    report = convert_motion(tmp_path / "a.bvh", tmp_path / "b.bvh", roundtrip=True)
    assert report.frames == 40
    assert report.largest_error < 1e-4 * max(report.size, 0.1)


@pytest.mark.parametrize("kind", [".bvh", ".npz"])
def test_a_walk_there_and_back(tmp_path: Path, kind: str) -> None:
    write_motion(tmp_path / f"a{kind}", WALK)
    report = convert_motion(tmp_path / f"a{kind}", tmp_path / f"b{kind}", roundtrip=True)
    assert report.largest_error < 1e-5 and report.size > 1
    other = ".npz" if kind == ".bvh" else ".bvh"
    with pytest.raises(MotionError, match="must end as"):
        convert_motion(tmp_path / f"a{kind}", tmp_path / f"b{other}", roundtrip=True)


def test_bvh_and_npz(tmp_path: Path) -> None:
    write_motion(tmp_path / "a.npz", WALK)
    for source, target in (("a.npz", "b.bvh"), ("b.bvh", "c.npz")):
        assert convert_motion(tmp_path / source, tmp_path / target).largest_error < 1e-5
    first, last = (read_motion(tmp_path / name) for name in ("a.npz", "c.npz"))
    assert first.skeleton == last.skeleton and first.fps == last.fps
    assert largest_difference(first.rotations, last.rotations) < 1e-6
    write_motion(tmp_path / "d.bvh", random_clip(random_skeleton(55)))
    with pytest.raises(MotionError, match=r"not the joints of SMPL-X; write a \.bvh"):
        convert_motion(tmp_path / "d.bvh", tmp_path / "d.npz")


@pytest.mark.parametrize("skeleton", PACKAGED_SKELETONS, ids=["smplx", "humanml3d", "kit"])
def test_packaged_skeletons_keep_their_order_in_bvh(tmp_path: Path, skeleton: Skeleton) -> None:
    clip = random_clip(replace(skeleton, unit=1.0))
    write_motion(tmp_path / "a.bvh", clip)
    read = read_motion(tmp_path / "a.bvh")
    assert read.skeleton.names == skeleton.names and read.skeleton.parents == skeleton.parents
    assert largest_difference(read.pose.positions, clip.pose.positions) < 1e-4
    ends = {(end.joint, end.offset) for end in skeleton.end_sites}
    found = {(e.joint, tuple(round(x, 6) for x in e.offset)) for e in read.skeleton.end_sites}
    assert ends == found


def test_joints_of_other_trees_stay_depth_first(tmp_path: Path) -> None:
    parents = (*HUMANML3D.parents[:-1], 0)
    clip = random_clip(replace(HUMANML3D, parents=parents))
    write_motion(tmp_path / "a.bvh", clip)
    read = read_motion(tmp_path / "a.bvh").skeleton
    # BVH files have joints depth first: the spine comes after both legs.
    assert read.names[:5] == ("pelvis", "left_hip", "left_knee", "left_ankle", "left_foot")
    assert read.names[-1] == "right_wrist" and read.parents[-1] == 0


def test_joints_in_another_order_are_where_they_were() -> None:
    skeleton = random_skeleton(6)
    names = tuple(sorted(skeleton.names, key=lambda name: len(ancestors(skeleton, name))))
    order = [skeleton.names.index(name) for name in names]
    arranged = skeleton.reorder(order)
    assert arranged.reorder([names.index(name) for name in skeleton.names]) == skeleton
    clip = random_clip(skeleton)
    moved = replace(clip, skeleton=arranged, rotations=clip.rotations[:, order])
    assert largest_difference(moved.pose.positions, clip.pose.positions[:, order]) < 1e-12


def ancestors(skeleton: Skeleton, name: str) -> list[int]:
    joint, found = skeleton.parents[skeleton.names.index(name)], []
    while joint >= 0:
        found.append(joint)
        joint = skeleton.parents[joint]
    return found


def in_file_of_amass(clip: MotionClip) -> MotionClip:
    """A clip as from a file of AMASS: z points up, but the rest pose stands along y."""
    return replace(clip, skeleton=replace(clip.skeleton, up="z"))


def test_amass_to_bvh_stands(tmp_path: Path) -> None:
    clip = in_file_of_amass(walk(30))
    write_motion(tmp_path / "amass.npz", clip)
    report = convert_motion(tmp_path / "amass.npz", tmp_path / "out.bvh")
    assert report.relative_error < 1e-6
    written = read_motion(tmp_path / "out.bvh")
    assert largest_difference(written.pose.positions, clip.pose.positions) < 1e-5
    hips, head = (written.skeleton.names.index(name) for name in ("pelvis", "head"))
    above = written.pose.positions[:, head] - written.pose.positions[:, hips]
    assert (above[:, 1] > 0.5).all()


def test_a_file_that_reads_otherwise_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the writer forgot to turn the world."""
    write_motion(tmp_path / "amass.npz", in_file_of_amass(walk(5)))
    monkeypatch.setattr(bvh, "stands_along_z", lambda extent: True)
    monkeypatch.setattr(bvh, "find_up", lambda *poses: "y")
    (tmp_path / "out.bvh").write_text("finished")
    with pytest.raises(MotionError, match=r"out.bvh is not written: a joint would be up to .* mm"):
        convert_motion(tmp_path / "amass.npz", tmp_path / "out.bvh")
    assert (tmp_path / "out.bvh").read_text() == "finished"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["amass.npz", "out.bvh"]


def test_expressions_are_kept_or_told(tmp_path: Path) -> None:
    clip = replace(walk(10), expressions=torch.ones(10, 100, dtype=torch.float64), betas=(1.0,))
    write_motion(tmp_path / "a.npz", clip)
    assert not convert_motion(tmp_path / "a.npz", tmp_path / "b.npz").notes
    assert torch.equal(read_motion(tmp_path / "b.npz").expressions, clip.expressions)
    assert convert_motion(tmp_path / "a.npz", tmp_path / "c.bvh").notes == (
        "not kept: facial expressions",
        "not kept: shape parameters (betas)",
    )


def test_expressions_follow_their_frames() -> None:
    clip = replace(walk(9), expressions=torch.arange(9.0).double()[:, None])
    assert clip[2:4].expressions.flatten().tolist() == [2, 3]
    assert resample(clip, 60.0).expressions.flatten().tolist() == [x / 2 for x in range(17)]
