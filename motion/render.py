"""Stick figures: motions side by side, as a video or as a picture of some frames."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from motion.skeleton.clip import MotionClip
from motion.skeleton.joint_names import side_of
from motion.skeleton.tree import Skeleton, end_positions
from wanvae.errors import UserError
from wanvae.video import VideoWriter, write_video

BACKGROUND = (0.97, 0.97, 0.96)
GRID = (0.74, 0.76, 0.79)
SHADOW = (0.80, 0.81, 0.83)
LEFT, MIDDLE, RIGHT = (0.13, 0.44, 0.71), (0.25, 0.26, 0.30), (0.88, 0.42, 0.18)
YAW, PITCH = math.radians(32), math.radians(14)  # of the camera; without them it looks along -z
CELL = 0.5  # metres between the lines on the floor
REACH = 2.0  # metres over which the lines fade
MARGIN = 0.07  # around the figure, as a share of the panel
# Suffixes of files that stick figures are written to.
FIGURE_SUFFIXES = (".mp4", ".mov", ".mkv", ".png", ".jpg", ".webp")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # rather than videos
THIN_BONE = 0.06  # metres; shorter bones, as in fingers, are drawn thin


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """Moving points that are joined by lines.

    Attributes:
        points: (T, P, 3) in float64, metres, y up.
        bones: (from, to) indices of points.
        colours: RGB in [0, 1] of each bone.
    """

    points: np.ndarray
    bones: tuple[tuple[int, int], ...]
    colours: tuple[tuple[float, ...], ...]

    @classmethod
    def of_joints(cls, positions: Tensor, skeleton: Skeleton) -> Figure:
        """Returns the figure of joints (T, J, 3) in metres, or with E end sites (T, J + E, 3)."""
        bones = [(parent, joint) for joint, parent in enumerate(skeleton.parents) if parent >= 0]
        names = [skeleton.names[joint] for _, joint in bones]
        if positions.shape[1] > skeleton.joints:
            for index, site in enumerate(skeleton.end_sites):
                bones.append((site.joint, skeleton.joints + index))
                names.append(skeleton.names[site.joint])
        return cls(
            points=positions.detach().cpu().double().numpy(),
            bones=tuple(bones),
            colours=tuple(map(colour_of, names)),
        )

    @classmethod
    def of_clip(cls, clip: MotionClip) -> Figure:
        """Returns the figure of a clip, with its end sites."""
        pose = clip.pose
        ends = end_positions(clip.skeleton, pose)
        return cls.of_joints(torch.cat([pose.positions, ends], dim=1), clip.skeleton)


def colour_of(name: str) -> tuple[float, ...]:
    """Returns the colour of the bone that ends at the joint ``name``."""
    return {"left": LEFT, "right": RIGHT, None: MIDDLE}[side_of(name)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A parallel projection that follows a path.

    Attributes:
        targets: (T, 3), the point in the middle of the panel in each frame.
        scale: pixels per metre.
        floor: height of the ground, metres.
        width: width of a panel in pixels.
        height: height of a panel in pixels.
    """

    targets: np.ndarray
    scale: float
    floor: float
    width: int
    height: int

    @classmethod
    def fit(cls, figures: Sequence[Figure], fps: float, width: int, height: int) -> Camera:
        """Returns a camera that follows the first figure and always shows all figures."""
        points = figures[0].points
        targets = smooth(points.mean(axis=1), round(fps))
        low, high = points[..., 1].min(), points[..., 1].max()
        targets[:, 1] = (low + high) / 2
        reach = np.zeros(2)
        for figure in figures:
            offsets = (figure.points - targets[:, None]) @ VIEW.T
            reach = np.maximum(reach, np.abs(offsets[..., :2]).max(axis=(0, 1)))
        room = (0.5 - MARGIN) * np.array([width, height])
        scale = float((room / np.maximum(reach, 1e-6)).min())
        return cls(targets=targets, scale=scale, floor=low, width=width, height=height)

    def project(self, points: np.ndarray, frame: int) -> np.ndarray:
        """Returns x and y in pixels and depth in metres (larger is nearer) of points: (P, 3)."""
        seen = (points - self.targets[frame]) @ VIEW.T
        x = self.width / 2 + self.scale * seen[:, 0]
        y = self.height / 2 - self.scale * seen[:, 1]
        return np.stack([x, y, seen[:, 2]], axis=1)

    def draw_floor(self, frame: int) -> np.ndarray:
        """Returns a picture (H, W, 3) of the ground with its lines."""
        target = self.targets[frame]
        right = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.scale
        up = (self.height / 2 - np.arange(self.height, dtype=np.float32) - 0.5) / self.scale
        # Metres along the ground, away from the camera, where each row meets the ground.
        away = ((target[1] - self.floor) * math.cos(PITCH) + up) / math.sin(PITCH)
        lines = np.zeros((self.height, self.width), np.float32)
        for start, x_share, z_share in (
            (target[0], math.cos(YAW), -math.sin(YAW)),
            (target[2], -math.sin(YAW), -math.cos(YAW)),
        ):
            cells = (start + x_share * right + z_share * away[:, None]) / CELL
            slope = math.hypot(x_share, z_share / math.sin(PITCH)) / (CELL * self.scale)
            lines = np.maximum(lines, 1 - np.abs(cells - np.round(cells)) / np.float32(slope))
        lines *= np.exp(-(right**2 + away[:, None] ** 2) / np.float32(REACH**2))
        background, grid = np.array(BACKGROUND, np.float32), np.array(GRID, np.float32)
        return background + lines[..., None] * (grid - background)


def find_view_axes() -> np.ndarray:
    """Returns the axes of the view as rows: right, up, and towards the camera."""
    right = [math.cos(YAW), 0, -math.sin(YAW)]
    near = [math.sin(YAW) * math.cos(PITCH), math.sin(PITCH), math.cos(YAW) * math.cos(PITCH)]
    return np.array([right, np.cross(near, right), near])


VIEW = find_view_axes()


def smooth(path: np.ndarray, frames: int) -> np.ndarray:
    """Returns the running mean over ``frames`` rows of (T, 3); the ends are repeated."""
    kernel = np.ones(min(2 * (frames // 2) + 1, 2 * len(path) - 1))
    half = len(kernel) // 2
    padded = np.pad(path, ((half, half), (0, 0)), mode="edge")
    columns = [np.convolve(padded[:, axis], kernel / len(kernel), "valid") for axis in range(3)]
    return np.stack(columns, axis=1)


def blend(image: np.ndarray, cover: np.ndarray, colour: tuple[float, ...]) -> None:
    """Paints a colour over an image (H, W, 3) in place, as far as it covers each pixel."""
    image += cover[..., None] * (np.array(colour, image.dtype) - image)


def draw_line(
    image: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    radius: float,
    colour: tuple[float, ...],
) -> None:
    """Paints a line with round ends over an image (H, W, 3) in place; lengths are in pixels."""
    reach = radius + 1
    low = np.floor(np.minimum(start, end) - reach).astype(int).clip(0)
    high = np.ceil(np.maximum(start, end) + reach).astype(int).clip(0, image.shape[1::-1])
    if (low >= high).any():
        return
    x = (np.arange(low[0], high[0]) + 0.5 - start[0]).astype(image.dtype)
    y = (np.arange(low[1], high[1]) + 0.5 - start[1]).astype(image.dtype)[:, None]
    along = end - start
    share = np.clip((x * along[0] + y * along[1]) / max(along @ along, 1e-12), 0, 1)
    distance = np.hypot(x - share * along[0], y - share * along[1])
    part = image[low[1] : high[1], low[0] : high[0]]
    blend(part, np.clip(radius + 0.5 - distance, 0, 1), colour)


def draw_panel(figure: Figure, camera: Camera, frame: int) -> np.ndarray:
    """Returns a picture (H, W, 3) in [0, 1] of one frame of one figure."""
    image = camera.draw_floor(frame)
    points = figure.points[frame]
    on_floor = points * [1, 0, 1] + [0, camera.floor, 0]
    seen, shadow = camera.project(points, frame), camera.project(on_floor, frame)
    thickness = 0.02 * camera.scale
    lengths = [np.linalg.norm(points[a] - points[b]) for a, b in figure.bones]
    radii = [thickness if length > THIN_BONE else thickness / 2 for length in lengths]
    for (a, b), radius in zip(figure.bones, radii, strict=True):
        draw_line(image, shadow[a, :2], shadow[b, :2], radius, SHADOW)
    depths = [seen[a, 2] + seen[b, 2] for a, b in figure.bones]
    for bone in np.argsort(depths):
        a, b = figure.bones[bone]
        draw_line(image, seen[a, :2], seen[b, :2], radii[bone], figure.colours[bone])
    return image


def as_video(images: Sequence[np.ndarray]) -> Tensor:
    """Returns a video (3, T, H, W) in [-1, 1] of images (H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).float().permute(3, 0, 1, 2) * 2 - 1


def check_figures(figures: Sequence[Figure]) -> int:
    """Returns the number of frames of the figures; UserError if they differ or are empty."""
    lengths = {len(figure.points) for figure in figures}
    if len(lengths) != 1 or not min(lengths):
        raise UserError(f"figures of {sorted(lengths)} frames; give figures of one length")
    return lengths.pop()


def render_video(
    path: str | os.PathLike[str],
    figures: Sequence[Figure],
    fps: float,
    *,
    width: int = 480,
    height: int = 480,
    progress: bool = False,
) -> None:
    """Writes a video of figures side by side, frame by frame in constant memory.

    Args:
        path: ends in .mp4, .mov or .mkv.
        width: width of each panel in pixels.
        height: height of each panel in pixels.
        progress: show a progress bar.

    Raises:
        VideoError: the file cannot be written.
        UserError: the figures differ in length.
    """
    frames = check_figures(figures)
    camera = Camera.fit(figures, fps, width, height)
    rate = Fraction(fps).limit_denominator(1001)
    with (
        tqdm(range(frames), unit="frame", disable=not progress) as bar,
        VideoWriter(path, width=width * len(figures), height=height, fps=rate) as writer,
    ):
        for frame in bar:
            panels = [draw_panel(figure, camera, frame) for figure in figures]
            writer.write(as_video([np.concatenate(panels, axis=1)]))


def render_grid(
    path: str | os.PathLike[str],
    figures: Sequence[Figure],
    fps: float,
    *,
    columns: int = 8,
    width: int = 240,
    height: int = 320,
) -> None:
    """Writes a picture with a row of frames for each figure, from the first frame to the last.

    Args:
        path: ends in .png, .jpg or .webp.
        columns: the number of frames.
        width: width of each panel in pixels.
        height: height of each panel in pixels.

    Raises:
        VideoError: the file cannot be written.
        UserError: the figures differ in length.
    """
    frames = check_figures(figures)
    camera = Camera.fit(figures, fps, width, height)
    chosen = np.linspace(0, frames - 1, columns).round().astype(int)
    rows = [
        np.concatenate([draw_panel(figure, camera, frame) for frame in chosen], axis=1)
        for figure in figures
    ]
    write_video(path, as_video([np.concatenate(rows, axis=0)]), Fraction(1))


def render(
    path: str | os.PathLike[str], figures: Sequence[Figure], fps: float, *, progress: bool
) -> None:
    """Writes figures as a video, or as a picture of some frames. The suffix of ``path`` decides.

    Args:
        progress: show a progress bar.

    Raises:
        VideoError: the file cannot be written.
        UserError: the figures differ in length.
    """
    if Path(path).suffix.lower() in PICTURES:
        render_grid(path, figures, fps)
    else:
        render_video(path, figures, fps, progress=progress)
