"""BVH files."""

import dataclasses
import math
import re
import warnings
from pathlib import Path

import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motion.errors import MotionError
from motion.files.bvh import parse_frame_time, read_bvh, write_bvh
from motion.skeleton.tree import EULER_ORDERS, end_positions
from tests.motion.helpers import RECORDINGS, largest_difference, random_clip, random_skeleton

SMALL = """HIERARCHY
ROOT Hips
{
  OFFSET 1.0 2.0 3.0
  CHANNELS 6 Zrotation Xposition Yrotation Zposition Xrotation Yposition
  JOINT Left Leg
  {
    OFFSET 0.0 -100.0 0.0
    CHANNELS 3 Yrotation Zrotation Xrotation
    End Site
    {
      OFFSET 0.0 -50.0 0.0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.0333333
10 1 20 3 30 2 40 50 60
11 4 21 6 31 5 41 51 61
"""


def written_out(axis: str, degrees: float) -> torch.Tensor:
    """A rotation about an axis, as textbooks have it."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {
        "X": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "Y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "Z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return torch.tensor(rows[axis], dtype=torch.float64)


def turn(axis: str, degrees: float) -> torch.Tensor:
    angle = torch.tensor([degrees], dtype=torch.float64)
    return roma.euler_to_rotmat(axis, angle, degrees=True)


def write(path, text):
    path.write_text(text)
    return path


@given(joints=st.integers(1, 40), seed=st.integers(0, 5), unit=st.sampled_from([1.0, 0.01, 0.0254]))
@settings(max_examples=15)
def test_what_is_written_is_read(tmp_path_factory, joints, seed, unit):
    folder = tmp_path_factory.mktemp("bvh")
    clip = random_clip(random_skeleton(joints, seed=seed, unit=unit))
    write_bvh(folder / "a.bvh", clip)
    again = read_bvh(folder / "a.bvh", unit=unit, up="y")
    for name in ("names", "parents", "orders", "unit", "up"):
        assert getattr(again.skeleton, name) == getattr(clip.skeleton, name)
    for name in ("rotations", "root_positions"):
        assert largest_difference(getattr(again, name), getattr(clip, name)) < 2e-6
    assert largest_difference(again.pose.positions, clip.pose.positions) < 1e-5
    assert again.fps == clip.fps
    write_bvh(folder / "b.bvh", again)
    assert (folder / "a.bvh").read_bytes() == (folder / "b.bvh").read_bytes()


def test_channels_in_any_order(tmp_path):
    clip = read_bvh(write(tmp_path / "small.bvh", SMALL), unit=0.01)
    assert clip.skeleton.names == ("Hips", "Left Leg")
    assert clip.skeleton.orders == ("ZYX", "YZX")
    positions = torch.tensor([[0.01, 0.02, 0.03], [0.04, 0.05, 0.06]], dtype=torch.float64)
    torch.testing.assert_close(clip.root_positions, positions)
    expected = turn("Z", 11) @ turn("Y", 21) @ turn("X", 31)
    torch.testing.assert_close(clip.rotations[1, 0], expected)
    expected = turn("Y", 40) @ turn("Z", 50) @ turn("X", 60)
    torch.testing.assert_close(clip.rotations[0, 1], expected)
    assert clip.fps == 30.0
    assert clip.skeleton.end_sites[0].offset == (0.0, -0.5, 0.0)


@pytest.mark.parametrize("order", EULER_ORDERS)
def test_angles_are_of_axes_that_turn_with_the_joint(tmp_path, order):
    channels = " ".join(f"{axis}rotation" for axis in order)
    text = SMALL.replace("Yrotation Zrotation Xrotation", channels)
    clip = read_bvh(write(tmp_path / "a.bvh", text))
    first, second, third = map(written_out, order, (40, 50, 60))
    torch.testing.assert_close(clip.rotations[0, 1], first @ second @ third)


@pytest.mark.parametrize("angle", ["90", "-90"])
def test_gimbal_lock_keeps_the_rotation(tmp_path, angle):
    text = SMALL.replace("40 50 60", f"40 {angle} 60")
    clip = read_bvh(write(tmp_path / "a.bvh", text))
    write_bvh(tmp_path / "b.bvh", clip)
    again = read_bvh(tmp_path / "b.bvh")
    assert largest_difference(again.rotations, clip.rotations) < 1e-7


def test_a_root_without_positions_stays_at_its_offset(tmp_path):
    channels = "6 Zrotation Xposition Yrotation Zposition Xrotation Yposition"
    text = SMALL.replace(channels, "3 Zrotation Yrotation Xrotation")
    text = text.replace("10 1 20 3 30 2", "10 20 30").replace("11 4 21 6 31 5", "11 21 31")
    clip = read_bvh(write(tmp_path / "a.bvh", text), unit=1.0)
    assert clip.root_positions.tolist() == [[1.0, 2.0, 3.0]] * 2
    torch.testing.assert_close(clip.rotations[0, 0], turn("Z", 10) @ turn("Y", 20) @ turn("X", 30))


def with_positions_at_the_leg(first: str, second: str) -> str:
    text = SMALL.replace("3 Yrot", "6 Xposition Yposition Zposition Yrot")
    return text.replace("40 50 60", f"{first} 40 50 60").replace("41 51 61", f"{second} 41 51 61")


def test_positions_of_other_joints_replace_their_offsets(tmp_path):
    path = write(tmp_path / "a.bvh", with_positions_at_the_leg("0 -90 0", "0 -90 0"))
    assert read_bvh(path, unit=1.0).skeleton.offsets[1] == (0.0, -90.0, 0.0)
    path = write(tmp_path / "b.bvh", with_a_tail(with_positions_at_the_leg("0 -90 0", "0 -92 0")))
    with pytest.warns(UserWarning, match=r"Left Leg moves .* 1 units; its mean position is taken"):
        assert read_bvh(path, unit=1.0).skeleton.offsets[1] == (0.0, -91.0, 0.0)


def with_a_tail(text: str) -> str:
    """The same with another joint on the root, so that the leg does not carry the person."""
    tail = (
        "  JOINT Tail\n  {\n    OFFSET 0 0 -1\n    CHANNELS 3 Zrotation Xrotation Yrotation\n  }\n"
    )
    text = text.replace("}\nMOTION", tail + "}\nMOTION")
    return text.replace(" 60\n", " 60 0 0 0\n").replace(" 61\n", " 61 0 0 0\n")


# A person on a root that may not move, by its joints: name, parent, OFFSET, whether it has
# positions.
PERSON = (
    ("Reference", None, (0, 0, 0), True),
    ("Armature", "Reference", (0, 2, 0), False),
    ("Hips", "Armature", (0, 90, 0), True),
    ("Chest", "Hips", (0, 50, 0), False),
    ("Leg", "Hips", (0, -80, 0), False),
)


def write_person(
    path: Path,
    channels: dict[str, torch.Tensor],
    *,
    above: tuple[tuple[str, str | None, tuple[float, ...], bool], ...] = (),
    hips: tuple[float, ...] = (0, 90, 0),
) -> torch.Tensor:
    """Writes ``PERSON`` with joints of ``above`` added; returns its joints (T, J, 3) in the world.

    Args:
        channels: (T, 6) of each joint with positions, (T, 3) of the others: positions, then
            degrees about Z, X and Y. Joints without channels stand still.
        hips: the OFFSET of the hips, which their positions replace.
    """
    joints = [*PERSON, *above]
    frames = len(next(iter(channels.values())))

    def block(name: str) -> list[str]:
        _, parent, offset, positions = next(joint for joint in joints if joint[0] == name)
        order.append(name)
        offset = hips if name == "Hips" else offset
        kinds = "6 Xposition Yposition Zposition" if positions else "3"
        lines = [
            f"{'JOINT' if parent else 'ROOT'} {name}",
            "{",
            f"OFFSET {offset[0]} {offset[1]} {offset[2]}",
        ]
        lines.append(f"CHANNELS {kinds} Zrotation Xrotation Yrotation")
        inner = [joint[0] for joint in joints if joint[1] == name]
        for child in inner:
            lines += block(child)
        if not inner:
            lines += ["End Site", "{", "OFFSET 0 20 0", "}"]
        return [*lines, "}"]

    order: list[str] = []
    lines = block("Reference")
    values, world = [], {}
    for name in order:
        _, parent, offset, positions = next(joint for joint in joints if joint[0] == name)
        given = channels.get(name, torch.zeros(frames, 6 if positions else 3)).double()
        values.append(given)
        place = given[:, :3] if positions else torch.tensor(offset).double().expand(frames, 3)
        rotation = roma.euler_to_rotmat("ZXY", given[:, -3:], degrees=True)
        if parent:
            outer_place, outer_rotation = world[parent]
            place = outer_place + (outer_rotation @ place[:, :, None])[:, :, 0]
            rotation = outer_rotation @ rotation
        world[name] = place, rotation
    rows = torch.cat(values, dim=1).tolist()
    timing = ["MOTION", f"Frames: {frames}", "Frame Time: 0.04"]
    text = ["HIERARCHY", *lines, *timing, *(" ".join(map(repr, row)) for row in rows)]
    path.write_text("\n".join(text) + "\n")
    return torch.stack([world[name][0] for name in order], dim=1)


def random_channels(seed: int, count: int, scale: float = 30.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(7, count, generator=generator, dtype=torch.float64).mul(scale).round(decimals=3)
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), root=st.sampled_from(["still", "turned", "moves"]))
def test_hips_that_move_on_their_own_carry_the_person(tmp_path_factory, seed, root):
    """Every joint below the root is where the file has it, also after it is written again."""
    path = tmp_path_factory.mktemp("bvh") / "a.bvh"
    reference = random_channels(seed, 6)
    if root != "moves":
        reference = reference[:1].repeat(7, 1) * (root == "turned")
    channels = {
        "Reference": reference,
        "Armature": random_channels(seed + 1, 3),
        "Hips": random_channels(seed + 2, 6),
        "Leg": random_channels(seed + 3, 3),
    }
    expected = write_person(path, channels)
    with pytest.warns(UserWarning, match="Hips moves .*; the root Reference takes its path"):
        clip = read_bvh(path, unit=1.0, up="y")
    assert largest_difference(clip.pose.positions[:, 2:], expected[:, 2:]) < 1e-9
    assert clip.skeleton.offsets[2] == (0.0, 90.0, 0.0)
    write_bvh(path, clip)
    again = read_bvh(path, unit=1.0, up="y")
    assert largest_difference(again.pose.positions, clip.pose.positions) < 1e-4


def test_a_person_beside_things_that_stand_still(tmp_path):
    prop = (("Lamp", "Reference", (300, 0, 0), False),)
    hips = random_channels(0, 6)
    expected = write_person(tmp_path / "a.bvh", {"Hips": hips}, above=prop)
    with pytest.warns(UserWarning, match="Reference takes its path, and all joints move with"):
        clip = read_bvh(tmp_path / "a.bvh", unit=1.0, up="y")
    assert largest_difference(clip.pose.positions[:, 2:5], expected[:, 2:5]) < 1e-9


def test_an_offset_that_is_a_place_in_the_scene_does_not_enlarge_the_person(tmp_path):
    hips = random_channels(0, 6) + torch.tensor([500.0, 90, 0, 0, 0, 0])
    expected = write_person(tmp_path / "a.bvh", {"Hips": hips}, hips=(500, 90, 0))
    with pytest.warns(UserWarning, match="takes its path"):
        clip = read_bvh(tmp_path / "a.bvh", up="y")
    assert clip.skeleton.unit == 0.01 and clip.skeleton.offsets[2] == (0.0, 0.0, 0.0)
    assert largest_difference(clip.pose.positions[:, 2:], 0.01 * expected[:, 2:]) < 1e-9


def test_bones_that_stretch_do_not_move_the_person(tmp_path):
    """The root turns, and the hips are not its only child: the lamp stays on the root."""
    lamp = (("Lamp", "Reference", (300, 0, 0), False),)
    turning = random_channels(1, 6) * torch.tensor([0, 0, 0, 1, 1, 1])
    channels = {"Reference": turning, "Hips": random_channels(0, 6)}
    expected = write_person(tmp_path / "a.bvh", channels, above=lamp)
    with pytest.warns(UserWarning, match="its mean position is taken"):
        clip = read_bvh(tmp_path / "a.bvh", unit=1.0, up="y")
    assert largest_difference(clip.pose.positions[:, -1], expected[:, -1]) < 1e-9


def test_more_frames_than_the_header_says_are_read(tmp_path):
    with pytest.warns(UserWarning, match="has 4 frames, but its line Frames says 2; all are read"):
        clip = read_bvh(write(tmp_path / "a.bvh", SMALL + ROWS))
    assert len(clip) == 4
    expected = read_bvh(write(tmp_path / "b.bvh", (SMALL + ROWS).replace("s: 2", "s: 4")))
    assert largest_difference(clip.rotations, expected.rotations) == 0


@pytest.mark.parametrize(
    "per_metre, unit", [(1, 1.0), (100, 0.01), (1000, 0.001), (17.7, 0.056444)]
)
def test_units_are_guessed_from_the_size_of_a_person(tmp_path, per_metre, unit):
    text = SMALL.replace("-100.0", f"{-1.5 * per_metre}").replace("-50.0", f"{-0.8 * per_metre}")
    assert read_bvh(write(tmp_path / "a.bvh", text)).skeleton.unit == unit


def test_z_up_files_become_y_up_and_are_written_as_they_were(tmp_path):
    text = SMALL.replace("0.0 -100.0 0.0", "0.0 0.0 -100.0").replace("0.0 -50.0 0.0", "0.0 0.0 -50")
    text = text.replace("10 1 20 3 30 2 40 50 60", "1 1 2 3 3 2 4 5 6")
    clip = read_bvh(write(tmp_path / "a.bvh", text))
    assert clip.skeleton.up == "z"
    torch.testing.assert_close(
        clip.root_positions[0] / clip.skeleton.unit, torch.tensor([1.0, 3, -2], dtype=torch.float64)
    )
    pose = clip.pose
    assert pose.positions[0, 0, 1] > pose.positions[0, 1, 1]
    assert pose.positions[0, 1, 1] > end_positions(clip.skeleton, pose)[0, 0, 1]
    write_bvh(tmp_path / "b.bvh", clip)
    assert (
        "1.000000 2.000000 3.000000 1.000000 2.000000 3.000000" in (tmp_path / "b.bvh").read_text()
    )
    again = read_bvh(tmp_path / "b.bvh")
    assert largest_difference(again.pose.positions, pose.positions) < 1e-6
    level = read_bvh(tmp_path / "a.bvh", up="y")
    assert level.skeleton.up == "y" and level.root_positions[0, 1] == 2 * level.skeleton.unit


@pytest.mark.parametrize(
    "text, fps",
    [
        ("0.0333333", 30.0),
        (".03333", 30.0),
        ("0.033334", 30.0),
        ("0.01", 100.0),
        ("0.0166666", 60.0),
        ("0.0083333", 120.0),
        ("0.0333667", 1 / 0.0333667),  # 29.97
        ("2.5", 0.4),
        ("1e-2", 100.0),
    ],
)
def test_frame_times_are_those_of_whole_rates_where_they_can_be(text, fps):
    assert parse_frame_time(text) == fps


@pytest.mark.parametrize("fps", [12.5, 20.0, 29.97, 30.0, 59.94, 120.0, 1 / 3])
def test_any_frame_rate_survives(tmp_path, fps):
    write_bvh(tmp_path / "a.bvh", random_clip(random_skeleton(3), fps=fps))
    assert read_bvh(tmp_path / "a.bvh").fps == pytest.approx(fps, rel=1e-12)


@pytest.mark.parametrize("order", ["YXZ", "XZY"])
def test_angles_do_not_jump_by_whole_turns(tmp_path, order):
    skeleton = dataclasses.replace(random_skeleton(1), orders=(order,))
    angles = torch.linspace(0, 700, 100, dtype=torch.float64)
    rotations = roma.euler_to_rotmat("Y", angles[:, None], degrees=True)[:, None]
    clip = dataclasses.replace(random_clip(skeleton, frames=100), rotations=rotations)
    write_bvh(tmp_path / "a.bvh", clip)
    lines = (tmp_path / "a.bvh").read_text().splitlines()[-100:]
    written = torch.tensor([float(line.split()[3 + order.index("Y")]) for line in lines])
    torch.testing.assert_close(written, angles.float())


ROWS = "10 1 20 3 30 2 40 50 60\n11 4 21 6 31 5 41 51 61\n"
TREE = SMALL[SMALL.index("ROOT") : SMALL.index("MOTION")]
TWO_ROOTS = SMALL.replace("MOTION\n", TREE.replace("Hips", "Other") + "MOTION\n").replace(
    ROWS, "10 1 20 3 30 2 40 50 60 1 2 3 4 5 6 7 8 9\n11 4 21 6 31 5 41 51 61 2 4 6 8 1 3 5 7 9\n"
)
# Files that mean the same as SMALL.
SAME = {
    "wrapped rows": SMALL.replace("10 1 20 3 30 2", "10 1 20\n3 30 2\n"),
    "two frames in a line": SMALL.replace("60\n11", "60 11"),
    "comments": SMALL.replace("ROOT", "# by hand\nROOT").replace("40 50 60", "40 50 60 // end"),
    "UTF-16": SMALL.encode("utf-16"),
    "UTF-16 big-endian": b"\xfe\xff" + SMALL.encode("utf-16-be"),
    "one of two roots": TWO_ROOTS,
}


@pytest.mark.parametrize("case", SAME)
def test_files_that_programs_write_otherwise(tmp_path, case):
    path, content = tmp_path / "a.bvh", SAME[case]
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    clip = read_bvh(path, root="Hips" if "roots" in case else None)
    expected = read_bvh(write(tmp_path / "b.bvh", SMALL))
    assert clip.skeleton == expected.skeleton and clip.fps == expected.fps
    assert largest_difference(clip.rotations, expected.rotations) == 0
    assert largest_difference(clip.root_positions, expected.root_positions) == 0


def test_the_second_of_two_roots(tmp_path):
    path = write(tmp_path / "a.bvh", TWO_ROOTS)
    clip = read_bvh(path, root="Other")
    alone = SMALL.replace("Hips", "Other").replace(ROWS, "1 2 3 4 5 6 7 8 9\n2 4 6 8 1 3 5 7 9\n")
    expected = read_bvh(write(tmp_path / "b.bvh", alone))
    assert clip.skeleton == expected.skeleton
    assert largest_difference(clip.pose.positions, expected.pose.positions) == 0
    with pytest.raises(MotionError, match=r"no root 'Third'; its roots: Hips, Other"):
        read_bvh(path, root="Third")


LEG = "3 Yrotation Zrotation Xrotation"


@pytest.mark.parametrize("kept", ["", "Y", "Z", "ZY", "X"])
def test_a_rotation_without_a_channel_is_zero(tmp_path, kept):
    channels = f"{len(kept)} {' '.join(f'{axis}rotation' for axis in kept)}"
    angles = {"Y": 40.0, "Z": 50.0, "X": 60.0}
    given = SMALL.replace(LEG, channels)
    row = " ".join(f"{angles[axis]:g}" for axis in kept)
    given = given.replace("40 50 60", row).replace("41 51 61", row)
    order = kept + "".join(axis for axis in "YZX" if axis not in kept)
    whole = SMALL.replace(LEG, f"3 {' '.join(f'{axis}rotation' for axis in order)}")
    row = " ".join(f"{angles[axis] if axis in kept else 0:g}" for axis in order)
    whole = whole.replace("40 50 60", row).replace("41 51 61", row)
    clips = [
        read_bvh(write(tmp_path / f"{name}.bvh", text))
        for name, text in (("given", given), ("whole", whole))
    ]
    assert largest_difference(clips[0].rotations, clips[1].rotations) < 1e-15
    assert largest_difference(clips[0].pose.positions, clips[1].pose.positions) < 1e-12


def test_a_joint_without_channels_or_the_end_of_an_end_site(tmp_path):
    text = SMALL.replace(f"    CHANNELS {LEG}\n", "").replace("      OFFSET 0.0 -50.0 0.0\n", "")
    text = text.replace(" 40 50 60", "").replace(" 41 51 61", "")
    clip = read_bvh(write(tmp_path / "a.bvh", text))
    assert torch.equal(clip.rotations[:, 1], torch.eye(3).double().expand(2, 3, 3))
    assert not clip.skeleton.end_sites


def test_a_position_without_a_channel_is_the_offset(tmp_path):
    text = SMALL.replace(
        "6 Zrotation Xposition Yrotation Zposition Xrotation Yposition",
        "4 Zrotation Yrotation Xrotation Yposition",
    )
    text = text.replace("10 1 20 3 30 2", "10 20 30 2").replace("11 4 21 6 31 5", "11 21 31 5")
    clip = read_bvh(write(tmp_path / "a.bvh", text), unit=1.0)
    assert clip.root_positions.tolist() == [[1, 2, 3], [1, 5, 3]]


@pytest.mark.parametrize("rest", ["", "11 4 21 6"])
def test_fewer_frames_are_read_if_asked(tmp_path, rest):
    path = write(tmp_path / "a.bvh", SMALL[: SMALL.index("11 4")] + rest)
    with pytest.raises(MotionError, match=r"--frames-from-data|has 4 numbers"):
        read_bvh(path)
    with pytest.warns(UserWarning, match="has 1 frames, but its line Frames says 2; all are read"):
        clip = read_bvh(path, frames_from_data=True)
    assert len(clip) == 1
    none = write(tmp_path / "b.bvh", SMALL[: SMALL.index("10 1")])
    with pytest.raises(MotionError, match="the file has 0 of 2 frames"):
        read_bvh(none, frames_from_data=True)


@pytest.mark.parametrize("size, unit", [(1.42, 0.01), (0.9, 0.001), (1.3, 1.0)])
def test_children_and_upper_bodies_keep_their_size(tmp_path, size, unit):
    text = SMALL.replace("-100.0", f"{-0.6 * size / unit}")
    text = text.replace("-50.0", f"{-0.4 * size / unit}")
    skeleton = read_bvh(write(tmp_path / "a.bvh", text)).skeleton
    assert skeleton.unit == unit and skeleton.span == pytest.approx(size)


def with_joints(text: str, count: int) -> str:
    """A file with so many more joints near its root."""
    joint = "  JOINT More{}\n  {{\n    OFFSET 1.0 0.0 0.0\n    CHANNELS 3 Zrotation Xrotation "
    joint += "Yrotation\n    End Site\n    {{\n      OFFSET 1.0 0.0 0.0\n    }}\n  }}\n"
    hierarchy, motion = text.split("}\nMOTION\n")
    hierarchy += "".join(map(joint.format, range(count)))
    lines = [line + " 0 0 0" * count if line[0].isdigit() else line for line in motion.splitlines()]
    return hierarchy + "}\nMOTION\n" + "\n".join(lines) + "\n"


def test_a_toddler_who_may_be_an_adult_in_inches_is_told(tmp_path):
    person = with_joints(SMALL, 10)
    text = person.replace("-100.0", "-66.0").replace("-50.0", "-44.0")
    path = write(tmp_path / "a.bvh", text)
    with pytest.warns(
        UserWarning, match=r"guessed to be 0\.0254 m.* 2\.\d+ m.*0\.01 m .* 1\.1\d m"
    ):
        assert read_bvh(path).skeleton.unit == 0.0254
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_bvh(path, unit=0.01).skeleton.unit == 0.01
        # An adult of usual size in inches is no child.
        usual = person.replace("-100.0", "-55.0").replace("-50.0", "-38.0")
        assert read_bvh(write(tmp_path / "b.bvh", usual)).skeleton.unit == 0.0254
        # Something of few joints is no person.
        few = SMALL.replace("-100.0", "-66.0").replace("-50.0", "-44.0")
        assert read_bvh(write(tmp_path / "c.bvh", few)).skeleton.unit == 0.0254


BAD = {
    "empty": ("", "line 1: the file ends where HIERARCHY"),
    "no BVH": ("<html>\n", "line 1: it says '<html>' where HIERARCHY is expected"),
    "missing channel": (
        SMALL.replace("3 Yrotation Zrotation Xrotation", "3 Yrotation Zrotation"),
        "line 9: Left Leg has 3 channels but names Yrotation Zrotation",
    ),
    "unknown axis": (
        SMALL.replace("3 Yrotation Zrotation Xrotation", "3 Yrotation Wrotation Xrotation"),
        "line 9: Left Leg has the channels Wrotation; axes are X, Y and Z",
    ),
    "channel twice": (
        SMALL.replace("Yrotation Zrotation Xrotation", "Yrotation Yrotation Xrotation"),
        "line 9: Left Leg has 3 channels but names",
    ),
    "huge count": (SMALL.replace("CHANNELS 3", "CHANNELS " + "9" * 50), "line 9: Left Leg has 1e"),
    "too many numbers": (
        SMALL.replace("    CHANNELS 3 Yrotation Zrotation Xrotation\n", ""),
        "line 18: frame 0 has 9 numbers; the hierarchy has 6 channels",
    ),
    "no offset": (SMALL.replace("    OFFSET 0.0 -100.0 0.0\n", ""), "line 6: Left Leg has no OFF"),
    "offset": (SMALL.replace("-100.0", "-1OO.0"), "line 8: '-1OO.0' is no number"),
    "two roots": (
        TWO_ROOTS.replace("ROOT Other", "ROOT Third"),
        "has 2 skeletons, Hips, Third; choose one with --root",
    ),
    "out of place": (SMALL.replace("End Site", "Cube"), "line 10: 'CUBE' is out of place"),
    "cut in the tree": (SMALL[:150], "line 8: the file ends"),
    "cut before frames": (SMALL[: SMALL.index("Frames")], "line 17: 'frames:' is expected"),
    "cut in the frames": (
        SMALL[: SMALL.index("11 4")],
        "line 19: the file has 1 of 2 frames; get it again",
    ),
    "cut in a frame": (SMALL[: SMALL.index("51 61")], "line 20: frame 1 has 7 numbers"),
    "a part of one more frame": (SMALL + "1 2 3\n", "line 21: frame 2 has 3 numbers"),
    "NaN": (SMALL.replace("21 6 31", "21 nan 31"), "line 20: number 4 of frame 1 is 'nan'"),
    "infinity": (SMALL.replace("10 1 20", "10 -inf 20"), "line 19: number 2 of frame 0 is '-inf'"),
    "word": (SMALL.replace("40 50 60", "40 5O 60"), "line 19: number 8 of frame 0 is '5O'"),
    "joined": (SMALL.replace("40 50 60", "40 50-60 6"), "line 19: number 8 of frame 0 is '50-60'"),
    "no frames": (SMALL.replace("Frames: 2", "Frames: 0").replace(ROWS, ""), "line 17: '0' frames"),
    "frames": (SMALL.replace("Frames: 2", "Frames: two"), "line 17: 'two' frames"),
    "zero time": (SMALL.replace("0.0333333", "0"), "line 18: the frame time is '0'"),
    "negative time": (SMALL.replace("0.0333333", "-0.01"), "line 18: the frame time is '-0.01'"),
    "tiny time": (
        SMALL.replace("0.0333333", "1e-320"),
        "'1e-320'; it must be positive seconds, from 1e-06",
    ),
    "NaN time": (SMALL.replace("0.0333333", "nan"), "line 18: the frame time is 'nan'"),
    "no time": (SMALL.replace("Frame Time: 0.0333333\n", ""), "line 18: 'frame time:' is expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_say_where(tmp_path, case):
    text, message = BAD[case]
    path = write(tmp_path / "bad.bvh", text)
    with pytest.raises(MotionError, match=re.escape(str(path)) + f".*{message}") as caught:
        read_bvh(path)
    assert "\n" not in str(caught.value)


@given(
    st.integers(0, len(SMALL) - 30),
    st.integers(0, len(SMALL)),
    st.sampled_from(["", "{", "}", "7"]),
)
@settings(max_examples=150)
def test_damaged_text_is_read_or_refused(tmp_path_factory, start, length, replacement):
    path = tmp_path_factory.getbasetemp() / "damaged.bvh"
    path.write_text(SMALL[:start] + replacement + SMALL[start + length % 30 :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            clip = read_bvh(path)
        except MotionError as error:
            assert "damaged.bvh" in str(error)
        else:
            assert clip.rotations.isfinite().all()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(MotionError, match="cannot be read"):
        read_bvh(tmp_path / "none.bvh")
    with pytest.raises(MotionError, match="cannot be read"):
        read_bvh(tmp_path)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no shared recordings here")
@pytest.mark.parametrize(
    "name, joints, frames, fps, up",
    [
        ("dab", 27, 339, 30.0, "z"),
        ("jesse_dance", 60, 1007, 100.0, "y"),
        ("jumping_jacks", 31, 125, 30.0, "y"),
        ("wave_hello", 27, 839, 1 / 0.008342, "z"),
    ],
)
def test_recordings(tmp_path, name, joints, frames, fps, up):
    clip = read_bvh(RECORDINGS / f"{name}.bvh")
    skeleton = clip.skeleton
    assert (skeleton.joints, len(clip), clip.fps, skeleton.up) == (joints, frames, fps, up)
    positions = clip.pose.positions
    assert 1.2 < (positions.amax(dim=1) - positions.amin(dim=1))[:, 1].median() < 2.0
    write_bvh(tmp_path / "again.bvh", clip)
    again = read_bvh(tmp_path / "again.bvh")
    assert again.skeleton == skeleton
    assert largest_difference(again.pose.positions, positions) < 1e-6
