"""Stick figures."""

import numpy as np
import pytest
import torch

from motion.render import (
    CELL,
    LEFT,
    MIDDLE,
    RIGHT,
    Camera,
    Figure,
    colour_of,
    draw_line,
    draw_panel,
    render_grid,
    render_video,
)
from motion.skeleton.packaged import HUMANML3D
from motion.skeleton.sample import walk
from wanvae.video import VideoError, read_video

WALK = Figure.of_clip(walk(12))


def test_figures_stay_in_view():
    drifting = Figure(
        points=WALK.points + np.array([0.5, 0.2, 0]), bones=WALK.bones, colours=WALK.colours
    )
    camera = Camera.fit([WALK, drifting], 30.0, 120, 160)
    for figure in (WALK, drifting):
        for frame in range(12):
            seen = camera.project(figure.points[frame], frame)
            assert (seen[:, :2] > 0).all()
            assert (seen[:, 0] < 120).all() and (seen[:, 1] < 160).all()


def test_higher_is_higher_and_the_left_hand_of_someone_who_faces_us_is_at_the_right():
    camera = Camera.fit([WALK], 30.0, 200, 200)
    target = camera.targets[0]
    up, left, nearer = (
        camera.project(target + np.eye(3)[[axis]] * 0.1, 0)[0] for axis in (1, 0, 2)
    )
    assert up[1] < 100 and up[0] == pytest.approx(100)
    assert left[0] > 100
    assert nearer[2] > 0


def test_a_line_covers_its_area_smoothly():
    image = np.zeros((40, 60, 3), np.float32)
    draw_line(image, np.array([10.0, 10.0]), np.array([40.0, 30.0]), 2.0, (1.0, 1.0, 1.0))
    area = 4 * np.hypot(30, 20) + np.pi * 4
    assert image[..., 0].sum() == pytest.approx(area, rel=0.02)
    assert image.max() == 1.0 and ((image > 0) & (image < 1)).any()
    assert image[0].max() == 0.0


@pytest.mark.parametrize("end", [(-30.0, 10.0), (200.0, 200.0), (5.0, 5.0)])
def test_lines_may_leave_the_picture(end):
    image = np.zeros((40, 60, 3), np.float32)
    draw_line(image, np.array([5.0, 5.0]), np.array(end), 2.0, (1.0, 0.5, 0.0))
    assert image[5, 5, 0] == 1.0
    outside = np.zeros((40, 60, 3), np.float32)
    draw_line(outside, np.array([-50.0, 5.0]), np.array([-40.0, 9.0]), 2.0, (1.0, 0.5, 0.0))
    assert not outside.any()


@pytest.mark.parametrize("frame", [0, 5, 11])
def test_the_lines_on_the_floor_lie_still(frame):
    camera = Camera.fit([WALK], 30.0, 240, 320)
    image = camera.draw_floor(frame)
    line = round(camera.targets[frame, 2] / CELL) * CELL  # one of those along x, near the figure
    for x in camera.targets[frame, 0] + np.array([-0.3, -0.12, 0.13]):
        on, off = (
            image[y, x][0]
            for x, y, _ in camera.project(
                np.array([[x, camera.floor, line], [x, camera.floor, line + CELL / 4]]), frame
            ).astype(int)
        )
        assert on < off - 0.03


def test_what_is_nearer_hides_what_is_behind():
    points = np.array([[[-0.5, 1, 0], [0.5, 1, 0], [0.03, 0.75, 0.85], [1.03, 1.75, 0.85]]])
    bones, colours = ((0, 1), (2, 3)), (LEFT, RIGHT)
    one = Figure(points=points, bones=bones, colours=colours)
    other = Figure(points=points, bones=bones[::-1], colours=colours[::-1])
    camera = Camera.fit([one], 30.0, 80, 80)
    assert np.array_equal(draw_panel(one, camera, 0), draw_panel(other, camera, 0))


def test_both_sides_are_drawn_in_their_colours():
    panel = draw_panel(WALK, Camera.fit([WALK], 30.0, 240, 240), 0)
    assert panel.shape == (240, 240, 3) and panel.min() >= 0 and panel.max() <= 1
    for colour in (LEFT, RIGHT, MIDDLE):
        assert (np.abs(panel - colour).max(axis=2) < 0.01).sum() > 20


@pytest.mark.parametrize(
    "name, colour",
    [
        ("LeftArm", LEFT),
        ("left_hip", LEFT),
        ("LHipJoint", LEFT),
        ("r_arm", RIGHT),
        ("RightUpLeg", RIGHT),
        ("LowerBack", MIDDLE),
        ("root", MIDDLE),
        ("", MIDDLE),
    ],
)
def test_sides_are_known_by_name(name, colour):
    assert colour_of(name) == colour


def test_videos_hold_figures_side_by_side(tmp_path):
    joints = torch.randn(12, 22, 3)
    figures = [WALK, Figure.of_joints(joints, HUMANML3D)]
    render_video(tmp_path / "a.mp4", figures, 30.0, width=64, height=96)
    video, info = read_video(tmp_path / "a.mp4")
    assert video.shape == (3, 12, 96, 128) and info.fps == 30


def test_grids_have_a_row_for_each_figure(tmp_path):
    render_grid(tmp_path / "a.png", [WALK, WALK], 30.0, columns=5, width=40, height=60)
    picture = read_video(tmp_path / "a.png")[0]
    assert picture.shape == (3, 1, 120, 200)
    assert torch.equal(picture[:, :, :60], picture[:, :, 60:])


def test_one_frame_and_one_point_are_enough(tmp_path):
    point = Figure(points=np.zeros((1, 1, 3)), bones=(), colours=())
    render_grid(tmp_path / "a.png", [point], 30.0, columns=1, width=40, height=40)
    picture = read_video(tmp_path / "a.png")[0]
    assert picture.shape == (3, 1, 40, 40) and picture.isfinite().all()


def test_what_cannot_be_rendered(tmp_path):
    with pytest.raises(ValueError, match=r"figures of \[12, 13\] frames"):
        render_video(tmp_path / "a.mp4", [WALK, Figure.of_clip(walk(13))], 30.0)
    with pytest.raises(ValueError, match=r"figures of \[\] frames"):
        render_grid(tmp_path / "a.png", [], 30.0)
    with pytest.raises(VideoError):
        render_video(tmp_path / "a.xyz", [WALK], 30.0)
