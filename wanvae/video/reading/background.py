"""What is behind transparent pictures."""

from __future__ import annotations

import re
from typing import TypeAlias

from torch import Tensor

from wanvae.video.common import VideoError

# Red, green and blue, 0 to 255.
Colour: TypeAlias = tuple[int, int, int]

BLACK: Colour = (0, 0, 0)
_NAMES: dict[str, Colour] = {"black": BLACK, "gray": (128, 128, 128), "white": (255, 255, 255)}


def parse_colour(text: str) -> Colour:
    """Returns the colour of a name or of a text like "#ff8000".

    Raises:
        VideoError: the text is not such a colour.
    """
    if (named := _NAMES.get(text.lower())) is not None:
        return named
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text) is None:
        raise VideoError(
            f"the background must be a colour like #ff8000, or one of {' '.join(_NAMES)}, not "
            f"{text!r}"
        )
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def name_of(colour: Colour) -> str:
    """Returns a colour as people name it."""
    names = {named: name for name, named in _NAMES.items()}
    return names.get(colour, "#" + bytes(colour).hex())


def lay_on(image: Tensor, alpha: Tensor, colour: Colour) -> Tensor:
    """Returns a picture as it looks over a colour.

    Levels are mixed as they are stored, as players and browsers do it.

    Args:
        image: ``(3, H, W)``, RGB in [-1, 1], not multiplied with alpha.
        alpha: ``(1, H, W)``, from -1, transparent, to 1, opaque.
    """
    behind = image.new_tensor(colour).view(3, 1, 1) / 127.5 - 1
    return behind + (image - behind) * ((alpha + 1) / 2)
