"""Files that are only written: glTF, CSV and positions of joints, read back by other code."""

import base64
import csv
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roma
import torch
from torch import Tensor

from motion.errors import MotionError
from motion.files.formats import FORMATS, READERS, WRITERS, find_suffix, read_motion, write_motion
from motion.files.joints import read_joints
from motion.skeleton.clip import MotionClip
from motion.skeleton.packaged import HUMANML3D, KIT
from motion.skeleton.sample import walk
from motion.skeleton.tree import end_positions
from tests.motion.helpers import largest_difference, random_clip, random_skeleton

TYPES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def read_glb(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON and the numbers of a .glb file; checks its chunks."""
    content = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    chunks, at = {}, 12
    while at < length:
        size, kind = struct.unpack("<I4s", content[at : at + 8])
        assert size % 4 == 0 and at % 4 == 0
        chunks[kind] = content[at + 8 : at + 8 + size]
        at += 8 + size
    assert list(chunks) == [b"JSON", b"BIN\0"]
    return json.loads(chunks[b"JSON"]), chunks[b"BIN\0"]


def read_gltf(path: Path) -> tuple[dict[str, Any], bytes]:
    scene = json.loads(path.read_text())
    kind, _, text = scene["buffers"][0]["uri"].partition(";base64,")
    assert kind == "data:application/octet-stream"
    return scene, base64.b64decode(text)


def numbers_of(scene: dict[str, Any], content: bytes, index: int) -> np.ndarray:
    accessor = scene["accessors"][index]
    view = scene["bufferViews"][accessor["bufferView"]]
    assert accessor["componentType"] == 5126 and view["byteOffset"] % 4 == 0
    part = content[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.frombuffer(part, "<f4").reshape(accessor["count"], TYPES[accessor["type"]])


def play(scene: dict[str, Any], content: bytes) -> tuple[np.ndarray, dict[str, Tensor]]:
    """The times, and the positions (T, 3) of all nodes by name, as players compute them."""
    assert scene["asset"]["version"] == "2.0" and scene["scenes"][scene["scene"]]["nodes"] == [0]
    assert sum(view["byteLength"] for view in scene["bufferViews"]) == len(content)
    assert scene["buffers"][0]["byteLength"] == len(content)
    (animation,) = scene["animations"]
    moves: dict[tuple[int, str], Tensor] = {}
    times = np.empty(0)
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        times = numbers_of(scene, content, sampler["input"])[:, 0]
        bounds = scene["accessors"][sampler["input"]]
        assert bounds["min"] == [times.min()] and bounds["max"] == [times.max()]
        values = numbers_of(scene, content, sampler["output"])
        assert len(values) == len(times) and sampler["interpolation"] == "LINEAR"
        target = channel["target"]["node"], channel["target"]["path"]
        assert target not in moves
        moves[target] = torch.from_numpy(values.copy()).double()
    found: dict[str, Tensor] = {}

    def visit(index: int, place: Tensor, turned: Tensor) -> None:
        node = scene["nodes"][index]
        offset = moves.get((index, "translation"), torch.tensor(node["translation"]).double())
        place = place + (turned @ offset.expand(len(times), 3)[..., None]).squeeze(-1)
        found[node["name"]] = place
        if (index, "rotation") in moves:
            turns = moves[index, "rotation"]
            assert largest_difference(turns.norm(dim=1), torch.ones(())) < 1e-6
            assert ((turns[1:] * turns[:-1]).sum(1) >= 0).all()
            turned = turned @ roma.unitquat_to_rotmat(turns)
        for child in node.get("children", []):
            visit(child, place, turned)

    visit(0, torch.zeros(len(times), 3).double(), torch.eye(3).double().expand(len(times), 3, 3))
    assert len(found) == len(scene["nodes"])
    return times, found


CLIPS = {
    "walk": walk(20),
    "one frame": walk(1),
    "random": random_clip(random_skeleton(7)),
    "one joint": random_clip(random_skeleton(1)),
}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_gltf_has_the_joints_of_the_clip(tmp_path: Path, name: str, suffix: str) -> None:
    clip = CLIPS[name]
    write_motion(tmp_path / f"a{suffix}", clip)
    scene, content = (read_glb if suffix == ".glb" else read_gltf)(tmp_path / f"a{suffix}")
    times, found = play(scene, content)
    assert np.allclose(times, np.arange(len(clip)) / clip.fps)
    pose = clip.pose
    for joint, joint_name in enumerate(clip.skeleton.names):
        assert largest_difference(found[joint_name], pose.positions[:, joint]) < 1e-5
    ends = end_positions(clip.skeleton, pose)
    for end, site in enumerate(clip.skeleton.end_sites):
        name = f"{clip.skeleton.names[site.joint]}_end"
        assert largest_difference(found[name], ends[:, end]) < 1e-5


def test_csv_has_positions_and_rotations(tmp_path: Path) -> None:
    clip = random_clip(random_skeleton(5), fps=25.0)
    write_motion(tmp_path / "a.csv", clip)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(clip) and rows[3]["frame"] == "3" and float(rows[3]["time"]) == 0.12
    for joint, name in enumerate(clip.skeleton.names):
        place = torch.tensor([float(rows[3][f"{name}.{axis}"]) for axis in "xyz"]).double()
        assert largest_difference(place, clip.pose.positions[3, joint]) < 1e-6
        quaternion = torch.tensor([float(rows[3][f"{name}.q{axis}"]) for axis in "xyzw"]).double()
        turned = roma.unitquat_to_rotmat(quaternion)
        assert largest_difference(turned, clip.rotations[3, joint]) < 1e-5
    assert list(rows[0])[:3] == ["frame", "time", "joint0.x"] and len(rows[0]) == 2 + 5 * 7


@pytest.mark.parametrize("skeleton", [HUMANML3D, KIT], ids=["humanml3d", "kit"])
def test_joints_are_in_the_unit_of_the_data_set(tmp_path: Path, skeleton) -> None:
    clip = random_clip(skeleton)
    write_motion(tmp_path / "a.joints.npy", clip)
    stored = np.load(tmp_path / "a.joints.npy")
    assert stored.dtype == np.float32 and stored.shape == (12, skeleton.joints, 3)
    assert np.allclose(stored * skeleton.unit, clip.pose.positions, atol=1e-5)
    positions, found = read_joints(tmp_path / "a.joints.npy")
    assert found is skeleton and largest_difference(positions, clip.pose.positions) < 1e-5


def test_an_smplx_body_has_the_joints_of_humanml3d(tmp_path: Path) -> None:
    clip = walk(5)
    write_motion(tmp_path / "a.joints.npy", clip)
    positions, _ = read_joints(tmp_path / "a.joints.npy")
    assert largest_difference(positions, clip.pose.positions[:, :22]) < 1e-6
    with pytest.raises(MotionError, match="no joints are known by their names as pelvis"):
        write_motion(tmp_path / "b.joints.npy", random_clip(random_skeleton(4)))
    assert not (tmp_path / "b.joints.npy").exists()


def test_joints_of_smpl_bodies_and_other_axes_are_read(tmp_path: Path) -> None:
    positions = walk(5).pose.positions
    np.save(tmp_path / "a.npy", positions)  # 55 joints
    assert largest_difference(read_joints(tmp_path / "a.npy")[0], positions[:, :22]) < 1e-6
    lying = positions[:, :, [0, 2, 1]] * torch.tensor([100.0, -100.0, 100.0])
    np.save(tmp_path / "b.npy", lying)
    found, _ = read_joints(tmp_path / "b.npy", unit=0.01, up="z")
    assert largest_difference(found, positions[:, :22]) < 1e-5
    np.save(tmp_path / "c.npy", np.zeros((4, 23, 3)))
    with pytest.raises(MotionError, match=r"c\.npy is \(4, 23, 3\); joints are \(T, 22, 3\)"):
        read_joints(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.zeros((0, 22, 3)))
    with pytest.raises(MotionError, match=r"d\.npy has no frames; get it again"):
        read_joints(tmp_path / "d.npy")


def test_a_body_of_22_joints_is_written_as_smplx(tmp_path: Path) -> None:
    clip = random_clip(HUMANML3D)
    write_motion(tmp_path / "a.npz", clip)
    read: MotionClip = read_motion(tmp_path / "a.npz")
    assert read.skeleton.joints == 55
    assert largest_difference(read.pose.positions[:, :22], clip.pose.positions) < 1e-9
    still = torch.eye(3).double()
    assert largest_difference(read.rotations[:, 22:], still) < 1e-12


def test_one_table_says_what_suffixes_give() -> None:
    assert set(FORMATS) == {*READERS, *WRITERS} and all(kind.holds for kind in FORMATS.values())
    assert set(WRITERS) == {".bvh", ".npz", ".glb", ".gltf", ".csv", ".joints.npy"}
    suffixes = [find_suffix(name) for name in ("A.BVH", "x.Joints.NPY", "y.npy", "joints.npy")]
    assert suffixes == [".bvh", ".joints.npy", ".npy", ".npy"]


@pytest.mark.parametrize("suffix", [".bvh", ".npz", ".glb", ".csv", ".joints.npy"])
def test_motion_that_is_not_finite_is_not_written(tmp_path: Path, suffix: str) -> None:
    clip, path = walk(5), tmp_path / f"a{suffix}"
    rotations, positions = clip.rotations.clone(), clip.root_positions.clone()
    rotations[2, 3, 0, 0], positions[1, 2] = float("nan"), float("inf")
    for broken, what in (
        (replace(clip, rotations=rotations), "rotations"),
        (replace(clip, root_positions=positions), "root_positions"),
    ):
        with pytest.raises(MotionError, match=f"is not written, because {what} are not all finite"):
            write_motion(path, broken)
        assert not path.exists()
