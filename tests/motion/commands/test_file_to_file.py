"""From file to file: tokens and back is reconstruction, whatever the kind of file."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from motion import RVQVAE
from motion.commands.detokenize import detokenize, detokenize_file
from motion.commands.reconstruct import reconstruct_file
from motion.commands.render import read_figure, render_file
from motion.commands.tokenize import tokenize_file
from motion.errors import MotionError
from motion.features.heading import find_headings, make_turns, turn_roots, wrap
from motion.features.humanml3d import read_features, rotation_channels, write_features
from motion.features.recording import read_recording
from motion.features.rotations import extract_features
from motion.files.formats import read_motion, write_motion
from motion.metrics import align_roots, joint_jerk, mpjpe, rotation_error
from motion.skeleton.clip import turn_world
from motion.skeleton.packaged import SMPLX
from motion.skeleton.sample import walk
from motion.tokens import Tokens, read_tokens
from tests.motion.helpers import largest_difference, random_clip, random_skeleton
from tests.motion.small_tokenizers import ROOTED, ROOTLESS, WALK, tiny_tokenizer
from wanvae.engine.files import FileError
from wanvae.video import VideoError, read_video

FORMATS = (".npz", ".safetensors")


@pytest.fixture(scope="module")
def model() -> RVQVAE:
    """One whose features tell where the root goes."""
    return tiny_tokenizer(ROOTED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk in two kinds of file, that begins elsewhere; random features of HumanML3D and KIT."""
    folder = tmp_path_factory.mktemp("motion")
    moved = replace(
        WALK,
        root_positions=WALK.root_positions + torch.tensor([1.0, 0.0, 2.0]),
        betas=(0.5, -1.0),
        gender="female",
    )
    for suffix in (".bvh", ".npz"):
        write_motion(folder / f"walk{suffix}", moved)
    for channels in (263, 251):
        generator = torch.Generator().manual_seed(channels)
        features = torch.randn(41, channels, generator=generator) * 0.1
        place = rotation_channels(channels)
        vectors = features[:, place].unflatten(1, (-1, 3))
        features[:, place] = (vectors / vectors.norm(dim=-1, keepdim=True)).flatten(1)
        write_features(folder / f"{channels}.npy", features)
    return folder


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", [".bvh", ".npz"])
@pytest.mark.parametrize("layers", [None, 1])
def test_tokens_and_back_is_reconstruction(
    tmp_path: Path, model: RVQVAE, folder: Path, kind: str, suffix: str, layers: int | None
) -> None:
    source = folder / f"walk{kind}"
    tokens, once, twice = (tmp_path / n for n in (f"t{suffix}", f"a{kind}", f"b{kind}"))
    tokenize_file(model, source, tokens)
    detokenize_file(model, tokens, once, layers=layers)
    reconstruct_file(model, source, twice, layers=layers)
    assert once.read_bytes() == twice.read_bytes()
    clip = read_motion(once)
    assert (len(clip), clip.fps, clip.skeleton.names) == (41, 30.0, SMPLX.names)
    if kind == ".npz":
        assert (clip.betas, clip.gender) == ((0.5, -1.0), "female")


def test_tokens_of_a_turned_person_differ_in_their_heading_alone(tmp_path: Path) -> None:
    """With features relative to the heading, from file to tokens to file."""
    model = tiny_tokenizer(replace(ROOTED, heading="relative"))
    turn = make_turns(torch.tensor(2.0, dtype=torch.float64))
    tokens, motions = [], []
    for name, clip in {"plain": WALK, "turned": turn_world(WALK, turn)}.items():
        source = tmp_path / f"{name}.npz"
        write_motion(source, clip)
        tokens.append(tokenize_file(model, source, tmp_path / f"{name}.tokens.npz"))
        detokenize_file(model, tmp_path / f"{name}.tokens.npz", tmp_path / "a.npz")
        reconstruct_file(model, source, tmp_path / "b.npz")
        pair = [read_motion(tmp_path / each) for each in ("a.npz", "b.npz")]
        assert mpjpe(*(each.pose.positions for each in pair)) < 0.01
        motions.append(pair[0])
    assert torch.equal(tokens[0].indices, tokens[1].indices)
    headings = [
        each.origin.actor.heading
        for each in map(read_tokens, sorted(tmp_path.glob("*.tokens.npz")))
    ]
    assert headings[1] - headings[0] == pytest.approx(2.0, abs=1e-4)
    expected = turn_world(motions[0], turn.to(motions[0].rotations))
    assert mpjpe(motions[1].pose.positions, expected.pose.positions) < 0.01


def test_without_a_root_the_heading_is_the_one_of_the_file(tmp_path: Path) -> None:
    """In reconstructions; tokens alone keep the heading of the first frame."""
    model = tiny_tokenizer(replace(ROOTLESS, heading="relative"))
    angles = torch.linspace(1.0, 3.0, len(WALK), dtype=torch.float64)
    clip = replace(WALK, rotations=turn_roots(WALK.rotations, angles))
    write_motion(tmp_path / "walk.npz", clip)
    found = find_headings(clip.rotations[:, 0])
    tokenize_file(model, tmp_path / "walk.npz", tmp_path / "t.npz")
    detokenize_file(model, tmp_path / "t.npz", tmp_path / "a.npz")
    reconstruct_file(model, tmp_path / "walk.npz", tmp_path / "b.npz")
    still, turning = (
        find_headings(read_motion(tmp_path / name).rotations[:, 0]) for name in ("a.npz", "b.npz")
    )
    assert wrap(still - found[0]).abs().max() < 1e-4
    assert wrap(turning - found).abs().max() < 1e-4


def test_tokens_without_a_heading_are_read_by_earlier_versions(tmp_path: Path) -> None:
    write_motion(tmp_path / "walk.npz", WALK)
    tokenize_file(tiny_tokenizer(), tmp_path / "walk.npz", tmp_path / "t.npz")
    assert "heading" not in str(np.load(tmp_path / "t.npz")["motion"])
    assert read_tokens(tmp_path / "t.npz").origin.actor.heading == 0.0


def test_without_a_root_the_rotations_are_the_same(tmp_path: Path, folder: Path) -> None:
    model, source = tiny_tokenizer(), folder / "walk.npz"
    tokenize_file(model, source, tmp_path / "t.npz")
    detokenize_file(model, tmp_path / "t.npz", tmp_path / "a.npz")
    reconstruct_file(model, source, tmp_path / "b.npz")
    standing, walking = read_motion(tmp_path / "a.npz"), read_motion(tmp_path / "b.npz")
    assert largest_difference(standing.rotations, walking.rotations) < 1e-12
    path = read_motion(source).root_positions
    assert largest_difference(walking.root_positions, path) < 1e-12
    ground = standing.root_positions[:, [0, 2]]
    assert largest_difference(ground, path[:1, [0, 2]].expand_as(ground)) < 1e-12


@pytest.mark.parametrize("channels", [263, 251])
def test_features_of_other_programs(tmp_path: Path, folder: Path, channels: int) -> None:
    model, source = tiny_tokenizer(None, channels=channels), folder / f"{channels}.npy"
    tokenize_file(model, source, tmp_path / "t.npz")
    assert read_tokens(tmp_path / "t.npz").origin.actor is None
    detokenize_file(model, tmp_path / "t.npz", tmp_path / "a.npy")
    report = reconstruct_file(model, source, tmp_path / "b.npy")
    decoded = read_features(tmp_path / "a.npy")
    assert torch.equal(decoded, read_features(tmp_path / "b.npy"))
    assert decoded.shape == (41, channels) and report.file_fps is None
    with pytest.raises(FileError, match=r"a\.bvh must end in \.npy or \.mp4"):
        detokenize_file(model, tmp_path / "t.npz", tmp_path / "a.bvh")


def test_kinds_of_tokens_are_the_same(tmp_path: Path, model: RVQVAE, folder: Path) -> None:
    for suffix in FORMATS:
        tokenize_file(model, folder / "walk.bvh", tmp_path / f"t{suffix}")
    first, second = (read_tokens(tmp_path / f"t{suffix}") for suffix in FORMATS)
    assert torch.equal(first.indices, second.indices) and first.origin == second.origin


def test_kinds_of_motion_are_the_same(model: RVQVAE, folder: Path) -> None:
    bvh, npz = (read_recording(folder / f"walk{kind}", model.config) for kind in (".bvh", ".npz"))
    assert largest_difference(bvh.features, npz.features) < 1e-4
    assert bvh.skeleton.names == npz.skeleton.names == SMPLX.names


@pytest.mark.parametrize("layers", [None, 1])
def test_errors_are_those_of_the_files(
    tmp_path: Path, model: RVQVAE, folder: Path, layers: int | None
) -> None:
    source = folder / "walk.bvh"
    report = reconstruct_file(model, source, tmp_path / "b.bvh", layers=layers)
    original, written = read_motion(source), read_motion(tmp_path / "b.bvh")
    expected = mpjpe(written.pose.positions, original.pose.positions)
    assert report.mpjpe == pytest.approx(expected, abs=1e-2) and expected > 1
    angle = rotation_error(written.rotations, original.rotations)
    assert report.rotation_error == pytest.approx(angle, abs=1e-2) and angle > 0.1
    assert (report.frames, report.tokens, report.fps, report.file_fps) == (41, 11, 30.0, 30.0)
    indices = tokenize_file(model, source, tmp_path / "t.npz").indices
    places = original.pose.positions, written.pose.positions
    aligned = mpjpe(*map(align_roots, places))
    movement = report.movement
    assert movement.root_aligned_mpjpe_mm == pytest.approx(aligned, abs=1e-2)
    assert movement.procrustes_aligned_mpjpe_mm < aligned
    assert movement.jerk_ratio == pytest.approx(
        (joint_jerk(places[1], 30.0).mean() / joint_jerk(places[0], 30.0).mean()).item(), rel=0.05
    )
    assert report.used == tuple(len(layer.unique()) for layer in indices.unbind(1))


def test_frame_rates_are_converted(tmp_path: Path, model: RVQVAE) -> None:
    write_motion(tmp_path / "a.bvh", walk(101, 60.0))
    report = reconstruct_file(model, tmp_path / "a.bvh", tmp_path / "b.bvh")
    assert (report.frames, report.file_fps, report.fps) == (51, 60.0, 30.0)
    assert read_motion(tmp_path / "b.bvh").fps == 30.0


# Skeletons


def indices(model: RVQVAE, path: Path) -> Path:
    """Tokens of the walk as another program gives them."""
    features = extract_features(WALK, model.config.features).float()
    np.save(path, model.encode(features[None])[0].numpy())
    return path


def test_indices_alone_move_a_packaged_skeleton(tmp_path: Path, model: RVQVAE) -> None:
    source = indices(model, tmp_path / "t.npy")
    detokenize_file(model, source, tmp_path / "a.npz")
    clip = read_motion(tmp_path / "a.npz")
    assert (len(clip), clip.fps, clip.skeleton) == (44, 30.0, SMPLX)


def test_a_skeleton_that_is_asked_for(tmp_path: Path, model: RVQVAE) -> None:
    source = indices(model, tmp_path / "t.npy")
    taller = replace(SMPLX, offsets=tuple((x, 1.1 * y, z) for x, y, z in SMPLX.offsets))
    write_motion(tmp_path / "taller.bvh", random_clip(taller))
    detokenize_file(model, source, tmp_path / "a.npz", skeleton=tmp_path / "taller.bvh")
    detokenize_file(model, source, tmp_path / "a.bvh", skeleton=tmp_path / "taller.bvh")
    assert read_motion(tmp_path / "a.bvh").skeleton.offsets[1] == pytest.approx(taller.offsets[1])
    write_motion(tmp_path / "small.bvh", random_clip(random_skeleton(7)))
    with pytest.raises(MotionError, match=r"small\.bvh has 45 channels of 7 joints, but the model"):
        detokenize_file(model, source, tmp_path / "b.bvh", skeleton=tmp_path / "small.bvh")


def test_any_skeleton_for_a_model_that_does_not_know_its_own(tmp_path: Path) -> None:
    model = tiny_tokenizer(ROOTED)
    model.skeleton = None
    source = indices(model, tmp_path / "t.npy")
    other = random_skeleton(55, unit=1.0)
    write_motion(tmp_path / "other.bvh", random_clip(other))
    detokenize_file(model, source, tmp_path / "a.bvh", skeleton=tmp_path / "other.bvh")
    assert read_motion(tmp_path / "a.bvh").skeleton.names == other.names
    with pytest.raises(MotionError, match="55 joints, not the joints of SMPL-X"):
        detokenize_file(model, source, tmp_path / "a.npz", skeleton=tmp_path / "other.bvh")


def test_without_a_skeleton_there_is_an_error(model: RVQVAE) -> None:
    config = replace(model.config, features=replace(ROOTED, positions=True))
    unknown = RVQVAE(replace(config, channels=config.features.channels(7)))
    with pytest.raises(
        MotionError, match=r"do not say their skeleton.*give .*--skeleton FILE\.bvh"
    ):
        detokenize(unknown, Tokens(torch.zeros(3, 2, dtype=torch.long), None))


# Pictures


@pytest.mark.parametrize("name", ["walk.bvh", "walk.npz", "263.npy", "251.npy"])
def test_motion_is_drawn(tmp_path: Path, folder: Path, name: str) -> None:
    render_file(folder / name, tmp_path / "a.png")
    assert read_video(tmp_path / "a.png")[0].shape == (3, 1, 320, 8 * 240)


def test_rates_of_figures(folder: Path) -> None:
    rates = [read_figure(folder / name)[1] for name in ("walk.bvh", "263.npy", "251.npy")]
    assert rates == [30.0, 20.0, 12.5]


def test_the_original_is_beside_the_reconstruction(tmp_path: Path, model: RVQVAE) -> None:
    write_motion(tmp_path / "a.bvh", WALK[:3])
    render_file(tmp_path / "a.bvh", tmp_path / "a.mp4", model)
    video, info = read_video(tmp_path / "a.mp4")
    assert video.shape == (3, 3, 480, 960) and info.fps == 30
    left, right = video[..., :480], video[..., 480:]
    assert (left - right).abs().max() > 0.5


def test_tokens_are_drawn(tmp_path: Path, model: RVQVAE, folder: Path) -> None:
    write_motion(tmp_path / "a.bvh", WALK[:3])
    tokenize_file(model, tmp_path / "a.bvh", tmp_path / "t.npz")
    detokenize_file(model, tmp_path / "t.npz", tmp_path / "b.mp4")
    assert read_video(tmp_path / "b.mp4")[0].shape == (3, 3, 480, 480)


# What cannot be written


@pytest.mark.parametrize(
    ("name", "error"),
    [("b.txt", FileError), ("missing/b.bvh", FileError), ("b.npy", FileError)],
)
def test_outputs_that_do_not_fit(
    tmp_path: Path, model: RVQVAE, folder: Path, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        reconstruct_file(model, folder / "walk.bvh", tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_pictures_that_cannot_be_written(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(VideoError, match="missing"):
        render_file(folder / "walk.bvh", tmp_path / "missing" / "a.mp4")
    with pytest.raises(FileError, match=r"a\.gif must end in \.mp4"):
        render_file(folder / "walk.bvh", tmp_path / "a.gif")
