"""Files of tokens: the indices of one motion, and what it takes to make motion of them again.

An .npz or .safetensors file holds ``indices`` (T', Q) in the smallest integer type that fits all
codes, and two texts: ``format``, which is "wanvae-motion-tokens", and ``motion``, JSON of an
:class:`Origin`. Programs that make tokens of text give a bare .npy of indices.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from motion.checkpoints.formats import require_suffix
from motion.errors import ClipError
from motion.files.arrays import load_array, load_arrays
from motion.model import RVQVAE
from motion.skeleton.tree import Skeleton
from wanvae.engine.checkpoint import CheckpointError, read_tensors, write_tensors
from wanvae.engine.config import check, from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.errors import UserError

FORMAT = "wanvae-motion-tokens"
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, kw_only=True)
class Body:
    """Whose motion tokens are, for features of rotations.

    Attributes:
        skeleton: whose joints moved.
        start: (x, z) of the root in the first frame, metres.
        betas, gender: as a :class:`~motion.skeleton.clip.Clip` has them.
    """

    skeleton: Skeleton
    start: tuple[float, ...]
    betas: tuple[float, ...] = ()
    gender: str = "neutral"

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, self.start))
        check(finite and len(self.start) == 2, "start", self.start, "(x, z) in metres")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What tokens do not tell of the motion and the model they came from.

    Attributes:
        frames: of the motion.
        fps: frames per second, those of the model.
        codes: in each codebook.
        books: a digest of the codebooks, which tells models apart.
        body: whose motion it was; None of HumanML3D's and KIT's features.
    """

    frames: int
    fps: float
    codes: int
    books: str
    body: Body | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "codes"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(0 < self.fps < math.inf, "fps", self.fps, "above 0")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one motion.

    Attributes:
        indices: ``(T', Q)``, int64; -1 where there is none.
        origin: where they came from; None if that is not known.
    """

    indices: Tensor
    origin: Origin | None

    def __post_init__(self) -> None:
        indices, origin = self.indices, self.origin
        if indices.dim() != 2 or 0 in indices.shape:
            raise UserError(f"indices must be (T, Q), none of them 0, not {tuple(indices.shape)}")
        if indices.dtype not in INTEGERS:
            raise UserError(f"indices must be whole numbers, not {indices.dtype}")
        if indices.min() < -1 or (origin is not None and indices.max() >= origin.codes):
            most = "" if origin is None else f" to {origin.codes - 1}"
            raise UserError(
                f"indices must be from 0{most}, or -1 for none, not {indices.min()} to "
                f"{indices.max()}"
            )


def digest_of(model: RVQVAE) -> str:
    """A short text that differs between models of different codebooks."""
    codes = model.quantizer.books.codes.detach().cpu().float().contiguous()
    return hashlib.sha256(codes.numpy().tobytes()).hexdigest()[:16]


def write_tokens(path: str | os.PathLike[str], tokens: Tokens) -> None:
    """Write an .npz or .safetensors file, complete or not at all.

    Raises:
        CheckpointError: the suffix is another, or it cannot be written.
        ValueError: where the tokens came from is not known.
    """
    require_suffix(path, *WRITERS)
    if tokens.origin is None:
        raise UserError("tokens can be written only with where they came from")
    indices = tokens.indices.to(smallest_type(tokens.origin.codes))
    texts = {"format": FORMAT, "motion": json.dumps(to_json_dict(tokens.origin))}
    WRITERS[Path(path).suffix](path, indices, texts)


def smallest_type(codes: int) -> torch.dtype:
    """The smallest type that holds -1 and all indices of so many codes."""
    return next(dtype for dtype in INTEGERS if codes - 1 <= torch.iinfo(dtype).max)


def write_npz(path: str | os.PathLike[str], indices: Tensor, texts: Mapping[str, str]) -> None:
    arrays = {name: np.array(text) for name, text in texts.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, indices=indices.cpu().numpy(), **arrays)


def write_safetensors(
    path: str | os.PathLike[str], indices: Tensor, texts: Mapping[str, str]
) -> None:
    write_tensors(path, {"indices": indices}, texts)


WRITERS: dict[str, Callable[[str | os.PathLike[str], Tensor, Mapping[str, str]], None]] = {
    ".npz": write_npz,
    ".safetensors": write_safetensors,
}


def read_tokens(path: str | os.PathLike[str]) -> Tokens:
    """Read a file that ``write_tokens`` wrote, or a .npy of indices alone.

    Raises:
        ClipError: there is no such file, or it holds anything else.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ClipError(f"{path} must end in {' or '.join(READERS)}, to be read as tokens")
    try:
        return READERS[suffix](path)
    except (ClipError, CheckpointError) as error:
        raise ClipError(str(error)) from error
    except UserError as error:
        raise ClipError(f"{path} cannot be read as tokens: {error}") from error


def read_npz(path: Path) -> Tokens:
    arrays = load_arrays(path, {"indices", "format", "motion"})
    texts = {name: str(array) for name, array in arrays.items() if array.dtype.kind == "U"}
    if "indices" not in arrays:
        raise UserError(f"its keys are {', '.join(arrays) or 'none'}, and not indices")
    return make_tokens(as_tensor(arrays["indices"]), texts)


def read_safetensors(path: Path) -> Tokens:
    file = read_tensors(path)
    if "indices" not in file.tensors:
        raise UserError("it has no tensor indices")
    return make_tokens(file.tensors["indices"], file.metadata)


def read_npy(path: Path) -> Tokens:
    return Tokens(as_tensor(load_array(path)), None)


READERS: dict[str, Callable[[Path], Tokens]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".npy": read_npy,
}


def holds_tokens(path: Path) -> bool:
    """Whether a file seems to be one of tokens rather than of motion or of a model.

    Raises:
        ValueError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return "indices" in load_arrays(path, ())
    if suffix == ".npy":
        return load_array(path).dtype.kind in "iu"
    return suffix == ".safetensors" and read_tensors(path).metadata.get("format") == FORMAT


def as_tensor(array: np.ndarray) -> Tensor:
    """Whole numbers in int64; others, for the error, as they are."""
    if array.dtype.kind not in "iu":
        raise UserError(f"indices must be whole numbers, not {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def make_tokens(indices: Tensor, texts: Mapping[str, str]) -> Tokens:
    if texts.get("format") != FORMAT:
        raise UserError(f"its format is {texts.get('format', 'not said')}, not {FORMAT}")
    origin = from_json_dict(Origin, parse_json(texts.get("motion", "")))
    integral = indices.dtype in (*INTEGERS, torch.uint8)
    return Tokens(indices.long() if integral else indices, origin)


def check_tokens(tokens: Tokens, model: RVQVAE, source: str | os.PathLike[str]) -> None:
    """Raise ClipError if tokens of a file are none of ``model``; warn if its codes are others."""
    config, origin = model.config, tokens.origin
    length, layers = tokens.indices.shape
    codes = int(tokens.indices.max()) + 1 if origin is None else origin.codes
    most = config.quantizer
    if layers > most.layers or codes > most.codes or (origin and codes != most.codes):
        raise ClipError(
            f"{source} has tokens of {layers} layers of {'at least ' * (origin is None)}{codes} "
            f"codes, but the model has {most.layers} of {most.codes}; give the checkpoint that "
            "made them"
        )
    if origin is None:
        return
    if length != config.tokens_of(origin.frames):
        raise ClipError(
            f"{source} has {length} tokens for {origin.frames} frames, but the model makes "
            f"{config.tokens_of(origin.frames)}; give the checkpoint that made them"
        )
    if origin.books != digest_of(model):
        warnings.warn(
            f"{source} was made with other codebooks than the checkpoint has; give the one that "
            "made it",
            stacklevel=2,
        )
