"""Draw clips and stills in all colours: shapes and words that move over moving backgrounds.

Backgrounds are flat colours, gradients, checkerboards, stripes, colour bars, noise and, if a folder
of them is given, photographs. The same seed draws the same frames. This needs Pillow.

    python tools/synthetic_clips.py synthetic --clips 200 --stills 200 --photographs photographs
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wanvae.video import write_video

Colour = tuple[int, int, int]
Background = Callable[[Generator, int], Image.Image]
Value = TypeVar("Value")

# Frames are drawn larger by the first factor, and backgrounds by both, so that the camera can move.
OVERSAMPLING, MARGIN = 2, 2
# An odd side, so that H.264 keeps colours at full resolution.
SIDE, FRAMES, FPS = 257, 33, Fraction(25)
CRF = 6
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789?!&%"
# How likely a scene stands still, and how likely it has a photograph behind it if there are any.
STILL, PHOTOGRAPH = 0.2, 0.6


@dataclass(frozen=True)
class Motion:
    """A path of an image: where its centre is, how large it is and how it is turned.

    Attributes:
        place: of the centre in the first frame, along x and y, in sides of the frame.
        velocity: what is added to ``place`` in each frame.
        scale, growth: the size in the first frame, and the factor from one frame to the next.
        angle, turn: in radians, in the first frame and from one frame to the next.
    """

    place: np.ndarray
    velocity: np.ndarray
    scale: float
    growth: float
    angle: float
    turn: float

    def show(self, image: Image.Image, frame: int, side: int) -> Image.Image:
        """Returns the square of ``side`` pixels that shows the image in a frame."""
        scale = self.scale * self.growth**frame
        angle = self.angle + self.turn * frame
        along, across = math.cos(angle) / scale, math.sin(angle) / scale
        x, y = (self.place + self.velocity * frame) * side
        # Where pixels of the frame come from: an affine map, from the centre to the centre.
        left = image.width / 2 - along * x - across * y
        top = image.height / 2 + across * x - along * y
        return image.transform(
            (side, side),
            Image.Transform.AFFINE,
            (along, across, left, -across, along, top),
            Image.Resampling.BILINEAR,
        )


def draw_one(random: Generator, values: Sequence[Value]) -> Value:
    return values[int(random.integers(len(values)))]


def draw_colour(random: Generator) -> Colour:
    """Draws a corner of the colour cube, any colour or a gray."""
    kind = random.random()
    if kind < 0.4:
        values = 255 * random.integers(0, 2, 3)
    elif kind < 0.9:
        values = random.integers(0, 256, 3)
    else:
        values = np.full(3, random.integers(0, 256))
    red, green, blue = values.tolist()
    return red, green, blue


def flat(random: Generator, side: int) -> Image.Image:
    """One colour."""
    return Image.new("RGB", (side, side), draw_colour(random))


def gradient(random: Generator, side: int) -> Image.Image:
    """From one colour to another, along a line or from the middle outwards."""
    x, y = np.meshgrid(*2 * (np.linspace(-1, 1, side),))
    angle = random.uniform(0, 2 * math.pi)
    line = (x * math.cos(angle) + y * math.sin(angle)) / 2 + 0.5
    share = line if random.random() < 0.7 else np.hypot(x, y)
    return blend(random, np.clip(share, 0, 1))


def checkerboard(random: Generator, side: int) -> Image.Image:
    """Squares of two colours."""
    square = max(1, int(random.integers(side // 40, side // 5)))
    x, y = np.meshgrid(*2 * (np.arange(side) // square,))
    return blend(random, (x + y) % 2)


def stripes(random: Generator, side: int) -> Image.Image:
    """Hard or soft stripes of two colours."""
    angle, period = random.uniform(0, math.pi), random.uniform(side / 60, side / 4)
    x, y = np.meshgrid(*2 * (np.arange(side),))
    wave = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period)
    return blend(random, wave > 0 if random.random() < 0.5 else wave / 2 + 0.5)


def bars(random: Generator, side: int) -> Image.Image:
    """Rows of colour bars, each with other colours and widths."""
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    rows = np.sort(random.integers(0, side, random.integers(0, 4))).tolist()
    for top, bottom in zip([0, *rows], [*rows, side], strict=True):
        width = side / int(random.integers(4, 24))
        for left in np.arange(0, side, width):
            draw.rectangle((left, top, left + width, bottom), draw_colour(random))
    return image


def noise(random: Generator, side: int) -> Image.Image:
    """Noise of several sizes, between two colours or in each channel alone."""
    channels = 1 if random.random() < 0.7 else 3
    total = np.zeros((side, side, channels))
    roughness = random.uniform(0.3, 0.9)
    for octave in range(int(random.integers(2, 8))):
        cells = random.random((2 ** (octave + 1), 2 ** (octave + 1), channels))
        for channel in range(channels):
            layer = Image.fromarray(cells[..., channel].astype(np.float32))
            enlarged = layer.resize((side, side), Image.Resampling.BICUBIC)
            total[..., channel] += roughness**octave * np.asarray(enlarged)
    low, high = total.min(), total.max()
    total = (total - low) / (high - low)
    if channels == 1:
        return blend(random, total[..., 0])
    return Image.fromarray(np.rint(255 * total).astype(np.uint8))


BACKGROUNDS: Sequence[Background] = (flat, gradient, checkerboard, stripes, bars, noise)


def blend(random: Generator, share: np.ndarray) -> Image.Image:
    """Two colours, the second one by its share ``(H, W)`` from 0 to 1."""
    first, second = (np.array(draw_colour(random)) for _ in range(2))
    mixed = first + (second - first) * share[..., None]
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def open_photograph(path: Path, side: int) -> Image.Image:
    """A photograph whose shorter side is ``side``."""
    with Image.open(path) as image:
        factor = side / min(image.size)
        size = [max(side, round(length * factor)) for length in image.size]
        return image.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)


def draw_sprite(random: Generator, side: int) -> Image.Image:
    """An ellipse, a rectangle, a polygon, a ring or a word in a square, transparent around it."""
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    middle, width, height = side / 2, *(random.uniform(0.2, 0.5, 2) * side)
    box = middle - width, middle - height, middle + width, middle + height
    kind = random.integers(5)
    if kind == 0:
        draw.ellipse(box, 255)
    elif kind == 1:
        draw.rectangle(box, 255)
    elif kind == 2:
        angles = np.sort(random.uniform(0, 2 * math.pi, random.integers(3, 9)))
        corners = middle + 0.48 * side * np.stack([np.cos(angles), np.sin(angles)], 1)
        draw.polygon([(x, y) for x, y in corners.tolist()], 255)
    elif kind == 3:
        draw.ellipse(box, outline=255, width=max(1, int(random.uniform(0.02, 0.15) * side)))
    else:
        word = "".join(random.choice([*LETTERS], random.integers(1, 9)))
        font = ImageFont.load_default(1.4 * side / (len(word) + 1))
        draw.text((middle, middle), word, 255, font, "mm")
    filled = BACKGROUNDS[random.choice([0, 0, 0, 1, 2, 3, 5])](random, side)
    filled.putalpha(mask)
    return filled


def draw_motion(random: Generator, *, background: bool) -> Motion:
    """Draws how a background or a sprite moves. A background always fills the frame."""
    moves = random.random() >= STILL
    speed, turn = (0.008, 0.008) if background else (0.03, 0.06)
    return Motion(
        place=np.full(2, 0.5) if background else random.random(2),
        velocity=moves * random.normal(0, speed / 2, 2),
        scale=random.uniform(0.9, 1.2) if background else random.uniform(0.2, 1.0),
        growth=math.exp(moves * random.normal(0, 0.004)),
        angle=random.normal(0, 0.1) if background else random.uniform(0, 2 * math.pi),
        turn=moves * float(random.choice([0.0, random.normal(0, turn)])),
    )


def draw_scene(
    random: Generator, *, frames: int, side: int, photographs: Sequence[Path] = ()
) -> Iterator[np.ndarray]:
    """Draws the frames of a scene, ``(side, side, 3)`` in uint8."""
    large = OVERSAMPLING * side
    if photographs and random.random() < PHOTOGRAPH:
        behind = open_photograph(draw_one(random, photographs), MARGIN * large)
        sprites = random.integers(0, 3)
    else:
        behind = draw_one(random, BACKGROUNDS)(random, MARGIN * large)
        sprites = random.integers(0, 9)
    camera = draw_motion(random, background=True)
    images = [draw_sprite(random, large // 2) for _ in range(sprites)]
    motions = [draw_motion(random, background=False) for _ in images]
    for frame in range(frames):
        shown = camera.show(behind, frame, large)
        for image, motion in zip(images, motions, strict=True):
            sprite = motion.show(image, frame, large)
            shown.paste(sprite, (0, 0), sprite)
        yield np.asarray(shown.reduce(OVERSAMPLING))


def write_scene(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Writes frames as a video or, if there is one, as an image."""
    video = torch.from_numpy(np.stack([*frames])).permute(3, 0, 1, 2).float() / 127.5 - 1
    write_video(path, video, FPS, crf=CRF)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="for the files")
    parser.add_argument("--clips", type=int, default=100, help="how many videos (default: 100)")
    parser.add_argument("--stills", type=int, default=100, help="how many images (default: 100)")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"per video (default: {FRAMES})")
    parser.add_argument(
        "--side", type=int, default=SIDE, help=f"height and width in pixels (default: {SIDE})"
    )
    parser.add_argument("--photographs", type=Path, help="a folder of images to move over")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    photographs = []
    if options.photographs is not None:
        photographs = sorted(path for path in options.photographs.iterdir() if path.is_file())
    options.folder.mkdir(parents=True, exist_ok=True)
    for kind, suffix, count, frames in (
        ("clip", "mp4", options.clips, options.frames),
        ("still", "png", options.stills, 1),
    ):
        # A camera over a photograph that stands still shows nothing that the file does not.
        behind = photographs if frames > 1 else ()
        for number in range(count):
            random = np.random.default_rng([options.seed, len(kind), number])
            scene = draw_scene(random, frames=frames, side=options.side, photographs=behind)
            write_scene(options.folder / f"{kind}-{number:05}.{suffix}", scene)


if __name__ == "__main__":
    main()
