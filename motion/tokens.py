"""Files of tokens: the indices of one motion, and what is needed to turn them into motion again.

An .npz or .safetensors file holds ``indices`` (T', Q) in the smallest integer type that fits all
codes, and texts: ``format``, which is "wanvae-motion-tokens", ``motion``, the JSON of an
:class:`Origin`, and ``state``, which model and which state of the motion file they come from.
Programs that generate tokens from text write a .npy file with indices alone, of the shape (T', Q),
(1, T', Q), (1, T') or (T',).
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
from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.files.arrays import load_array, load_arrays
from motion.files.reading import AsRead
from motion.model import RVQVAE
from motion.models import MotionModel
from motion.skeleton.packaged import PACKAGED_SKELETONS
from motion.skeleton.tree import Skeleton
from wanvae.engine.checkpoint import (
    CheckpointError,
    digest_of_tensors,
    read_tensors,
    write_tensors,
)
from wanvae.engine.config import (
    changed_fields,
    check,
    from_json_dict,
    parse_json,
    to_json_dict,
)
from wanvae.engine.digest import Stamp
from wanvae.engine.files import atomic_path
from wanvae.errors import UserError

FORMAT = "wanvae-motion-tokens"
# The key of ``Origin.actor`` in files. Programs that read files of tokens know it by this name.
ACTOR_KEY = "body"
# The fields of an origin that tell its state, in a text of their own.
STATE_KEYS = ("model", "source", "read_as")
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who moved, for features with rotations.

    Attributes:
        skeleton: the skeleton that moved.
        start: (x, z) of the root in the first frame, metres.
        betas, gender: as in a :class:`~motion.skeleton.clip.MotionClip`.
        heading: in the first frame, radians, for features relative to the heading; else 0.
    """

    skeleton: Skeleton
    start: tuple[float, ...]
    betas: tuple[float, ...] = ()
    gender: str = "neutral"
    heading: float = 0.0

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, self.start))
        check(finite and len(self.start) == 2, "start", self.start, "(x, z) in metres")
        check(math.isfinite(self.heading), "heading", self.heading, "finite")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What indices do not tell about their motion and their model.

    The names of the fields are keys in files, except ``actor``, whose key is "body".

    Attributes:
        frames: the number of frames of the motion.
        fps: frames per second of the model.
        codes: the number of codes in each codebook.
        books: a digest of the codebooks, by which tokens fit a model.
        actor: who moved; None for features of HumanML3D and KIT.
        model: a digest of all tensors and the config of the model; empty in files of earlier
            versions.
        source: the state of the motion file when it was read; None in files of earlier versions.
        read_as: what the skeleton of the motion file was read as; None in files of earlier
            versions, and for features of .npy files.
    """

    frames: int
    fps: float
    codes: int
    books: str
    actor: Actor | None = None
    model: str = ""
    source: Stamp | None = None
    read_as: AsRead | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "codes"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(0 < self.fps < math.inf, "fps", self.fps, "above 0")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one motion.

    Attributes:
        indices: ``(T', Q)``, int64; -1 stands for no code.
        origin: the motion and the model that they came from; None if they are not known.

    Raises:
        UserError: the indices have another shape or dtype, or are out of range.
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


def describe_token_rate(config: RVQVAEConfig) -> str:
    """Returns the rate and size of the tokens, or of the latents, of a model, for people."""
    rate = f"{config.fps / config.factor:g} per second"
    if config.bottleneck == "gaussian":
        return f"{rate}, each of {config.code_dim} numbers"
    layers, codes = config.quantizer.num_quantizers, config.quantizer.codebook_size
    return f"{rate}, each of {layers} codes, of {codes}"


def name_codes(config: RVQVAEConfig) -> str:
    """Returns what a model encodes to, for people: tokens or latents."""
    return "tokens" if config.bottleneck == "quantizer" else "latents"


def digest_of(model: RVQVAE) -> str:
    """Returns a short text that differs between models with different codebooks."""
    digest = hashlib.sha256()
    for table in model.quantizer.tables():
        digest.update(table.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def identify(model: MotionModel) -> str:
    """Returns a SHA-256, in hexadecimal, of all tensors, the config and the skeleton of a model.

    A packaged skeleton is left out, because models had one before they could tell it.
    """
    config = changed_fields(model.config)
    if model.skeleton not in (None, *PACKAGED_SKELETONS):
        config["skeleton"] = to_json_dict(model.skeleton)
    return digest_of_tensors(model.state_dict(), config)


def write_tokens(path: str | os.PathLike[str], tokens: Tokens) -> None:
    """Writes an .npz or .safetensors file. If writing fails, no incomplete file is left.

    Raises:
        FileError: the file has another suffix, or cannot be written.
        UserError: the origin of the tokens is not known.
    """
    require_suffix(path, *WRITERS)
    if tokens.origin is None:
        raise UserError(
            "tokens can be written only with their origin; tokenize the motion file again"
        )
    indices = tokens.indices.to(find_smallest_type(tokens.origin.codes))
    texts = {"format": FORMAT, "motion": write_origin(tokens.origin)}
    texts |= {"state": write_state(tokens.origin)}
    WRITERS[Path(path).suffix](path, indices, texts)


def write_origin(origin: Origin) -> str:
    """Returns the JSON of an origin, without its state, which earlier versions do not read."""
    fields = {key: x for key, x in to_json_dict(origin).items() if key not in STATE_KEYS}
    if origin.actor is not None and not origin.actor.heading:
        del fields["actor"]["heading"]  # earlier versions do not read it either
    return json.dumps({ACTOR_KEY if key == "actor" else key: x for key, x in fields.items()})


def write_state(origin: Origin) -> str:
    """Returns the JSON of the state of the model and of the motion file."""
    fields = to_json_dict(origin)
    return json.dumps({key: fields[key] for key in STATE_KEYS})


def parse_origin(text: str, state: str = "{}") -> Origin:
    """Returns the origin of a JSON and of its state; UserError if they are not valid."""
    fields = parse_json(text)
    if isinstance(fields, dict) and isinstance(known := parse_json(state), dict):
        fields |= {key: known[key] for key in STATE_KEYS if key in known}
    if isinstance(fields, dict) and ACTOR_KEY in fields:
        fields = {"actor" if key == ACTOR_KEY else key: x for key, x in fields.items()}
    return from_json_dict(Origin, fields)


def find_smallest_type(codes: int) -> torch.dtype:
    """Returns the smallest integer type that holds -1 and all indices of so many codes."""
    return next(dtype for dtype in INTEGERS if codes - 1 <= torch.iinfo(dtype).max)


def write_npz(path: str | os.PathLike[str], indices: Tensor, texts: Mapping[str, str]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            indices=indices.cpu().numpy(),
            format=np.array(texts["format"]),
            motion=np.array(texts["motion"]),
            state=np.array(texts["state"]),
        )


def write_safetensors(
    path: str | os.PathLike[str], indices: Tensor, texts: Mapping[str, str]
) -> None:
    write_tensors(path, {"indices": indices}, texts)


WRITERS: dict[str, Callable[[str | os.PathLike[str], Tensor, Mapping[str, str]], None]] = {
    ".npz": write_npz,
    ".safetensors": write_safetensors,
}


def read_tokens(path: str | os.PathLike[str]) -> Tokens:
    """Reads a file that ``write_tokens`` wrote, or a .npy file with indices alone.

    Raises:
        MotionError: the file does not exist, or holds something else or several motions.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise MotionError(f"{path} must end in {' or '.join(READERS)}, to be read as tokens")
    try:
        return READERS[suffix](path)
    except (MotionError, CheckpointError) as error:
        raise MotionError(str(error)) from error
    except UserError as error:
        raise MotionError(f"{path} cannot be read as tokens: {error}") from error


def read_npz(path: Path) -> Tokens:
    arrays = load_arrays(path, {"indices", "format", "motion", "state"})
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
    return Tokens(remove_batch_axis(as_tensor(load_array(path))), None)


def remove_batch_axis(indices: Tensor) -> Tensor:
    """Returns the indices (T', Q) of one motion in any shape that other programs write.

    T2M-GPT and MotionGPT write (1, T') or (T',), MoMask (1, T', Q). An array (1, N) is N tokens of
    the first layer, because a motion has more than one token.

    Raises:
        UserError: the indices have another shape, or are of several motions.
    """
    shape = tuple(indices.shape)
    if len(shape) == 3 and shape[0] == 1:
        return indices[0]
    if len(shape) == 3:
        raise UserError(f"indices {shape} are of {shape[0]} motions; write one file for each")
    if len(shape) == 1 or (len(shape) == 2 and shape[0] == 1):
        return indices.reshape(-1, 1)
    return indices


READERS: dict[str, Callable[[Path], Tokens]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".npy": read_npy,
}


def holds_tokens(path: Path) -> bool:
    """Whether a file seems to hold tokens, and not motion or a model.

    Raises:
        UserError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return "indices" in load_arrays(path, ())
    if suffix == ".npy":
        return load_array(path).dtype.kind in "iu"
    return suffix == ".safetensors" and read_tensors(path).metadata.get("format") == FORMAT


def as_tensor(array: np.ndarray) -> Tensor:
    """Returns whole numbers as int64; UserError if the numbers are not whole."""
    if array.dtype.kind not in "iu":
        raise UserError(f"indices must be whole numbers, not {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def make_tokens(indices: Tensor, texts: Mapping[str, str]) -> Tokens:
    """Returns the tokens of the content of a file; UserError if it is not valid."""
    if texts.get("format") != FORMAT:
        raise UserError(f"its format is {texts.get('format', 'not said')}, not {FORMAT}")
    origin = parse_origin(texts.get("motion", ""), texts.get("state", "{}"))
    integral = indices.dtype in (*INTEGERS, torch.uint8)
    return Tokens(indices.long() if integral else indices, origin)


def check_tokens(tokens: Tokens, model: RVQVAE, source: str | os.PathLike[str]) -> None:
    """Raises MotionError if the tokens of a file do not fit ``model``.

    Warns if the codebooks of ``model`` are other codebooks, and if indices alone may also be one
    token of all layers.
    """
    config, origin = model.config, tokens.origin
    length, layers = tokens.indices.shape
    codes = int(tokens.indices.max()) + 1 if origin is None else origin.codes
    num_quantizers, size = config.quantizer.num_quantizers, config.quantizer.codebook_size
    if layers > num_quantizers or codes > size or (origin and codes != size):
        at_least, advice = ("", "") if origin else ("at least ", ", or write indices as (T, Q)")
        raise MotionError(
            f"{source} has tokens of {layers} layers of {at_least}{codes} codes, but the model has "
            f"{num_quantizers} of {size}; give the checkpoint that the tokens are from{advice}"
        )
    if origin is None:
        if layers == 1 and length == num_quantizers > 1:
            warnings.warn(
                f"{source} is read as {length} tokens of the first layer; if it is one token of "
                f"{length} layers, write the indices as (1, 1, {length})",
                stacklevel=2,
            )
        return
    if length != config.tokens_of(origin.frames):
        raise MotionError(
            f"{source} has {length} tokens for {origin.frames} frames, but the model writes "
            f"{config.tokens_of(origin.frames)}; give the checkpoint that the tokens are from"
        )
    if origin.books != digest_of(model):
        warnings.warn(
            f"{source} was written with other codebooks than the checkpoint has; give the "
            "checkpoint that the tokens are from",
            stacklevel=2,
        )
