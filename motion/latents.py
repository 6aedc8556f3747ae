"""Files of continuous latents: what a VAE encodes one motion to, and how to turn it back.

A .safetensors file holds ``mean`` and ``logvar`` ``(n, C)``, float32, and texts: ``format``, which
is "wanvae-motion-latents", and ``motion``, the JSON of a :class:`LatentOrigin`. A model of latents
may write ``mean`` alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from motion.checkpoints.formats import require_suffix
from motion.errors import MotionError
from motion.files.reading import AsRead
from motion.tokens import Actor
from motion.vae import MotionVAE
from wanvae.engine.checkpoint import CheckpointError, read_tensors, write_tensors
from wanvae.engine.config import check, from_json_dict, parse_json, to_json_dict
from wanvae.engine.digest import Stamp
from wanvae.errors import UserError
from wanvae.posterior import Posterior

FORMAT = "wanvae-motion-latents"


@dataclass(frozen=True, kw_only=True)
class LatentOrigin:
    """What latents do not tell about their motion and their model.

    Attributes:
        frames: the number of frames of the motion.
        fps: frames per second of the model.
        model: a digest of all tensors and the config of the model.
        actor: who moved; None for features of HumanML3D and KIT.
        source: the state of the motion file when it was read; None if it is not known.
        read_as: as in an :class:`~motion.tokens.Origin`.
    """

    frames: int
    fps: float
    model: str
    actor: Actor | None = None
    source: Stamp | None = None
    read_as: AsRead | None = None

    def __post_init__(self) -> None:
        check(self.frames >= 1, "frames", self.frames, "at least 1")
        check(0 < self.fps < float("inf"), "fps", self.fps, "above 0")


@dataclass(frozen=True, eq=False)
class Latents:
    """The latents of one motion.

    Attributes:
        posterior: mean and log-variance, ``(n, C)``. A file with ``mean`` alone is certain of it:
            its log-variance is the smallest there is.
        origin: the motion and the model that they came from; None if they are not known.
    """

    posterior: Posterior
    origin: LatentOrigin | None


def write_latents(path: str | os.PathLike[str], latents: Latents) -> None:
    """Writes a .safetensors file. If writing fails, no incomplete file is left.

    Raises:
        FileError: the file has another suffix, or cannot be written.
        UserError: the origin of the latents is not known.
    """
    require_suffix(path, ".safetensors")
    if latents.origin is None:
        raise UserError("latents can be written only with their origin; encode the motion again")
    posterior = latents.posterior
    tensors = {"mean": posterior.mean, "logvar": posterior.logvar}
    tensors = {name: tensor.detach().cpu().float() for name, tensor in tensors.items()}
    texts = {"format": FORMAT, "motion": json.dumps(to_json_dict(latents.origin))}
    write_tensors(path, tensors, texts)


def read_latents(path: str | os.PathLike[str]) -> Latents:
    """Reads a file that ``write_latents`` wrote, or one with a tensor ``mean`` alone.

    Raises:
        MotionError: the file does not exist, or holds something else.
    """
    if Path(path).suffix.lower() != ".safetensors":
        raise MotionError(f"{path} must end in .safetensors, to be read as latents")
    try:
        file = read_tensors(path)
        if "mean" not in file.tensors:
            raise UserError("it has no tensor mean")
        mean = check_matrix("mean", file.tensors["mean"])
        logvar = file.tensors.get("logvar", torch.full_like(mean, -float("inf")))
        if logvar.shape != mean.shape:
            raise UserError(f"logvar is {tuple(logvar.shape)}, but mean is {tuple(mean.shape)}")
        text = file.metadata.get("motion")
        origin = None if text is None else from_json_dict(LatentOrigin, parse_json(text))
    except CheckpointError as error:
        raise MotionError(str(error)) from error
    except UserError as error:
        raise MotionError(f"{path} cannot be read as latents: {error}") from error
    return Latents(Posterior(mean, logvar.float()), origin)


def holds_latents(path: Path) -> bool:
    """Whether a file seems to hold latents, and not a model; UserError if it cannot be read."""
    if path.suffix.lower() != ".safetensors":
        return False
    return set(read_tensors(path).tensors) in ({"mean"}, {"mean", "logvar"})


def check_matrix(name: str, tensor: Tensor) -> Tensor:
    """Returns a tensor in float32; UserError if it is no finite ``(n, C)``."""
    if tensor.dim() != 2 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise UserError(f"{name} must be (n, C) in floating point, not {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise UserError(f"{name} is not finite")
    return tensor.float()


def check_latents(latents: Latents, model: MotionVAE, source: str | os.PathLike[str]) -> None:
    """Raises MotionError if the latents of a file do not fit ``model``."""
    length, channels = latents.posterior.mean.shape
    config, origin = model.config, latents.origin
    fits = origin is None or config.tokens_of(origin.frames) == length
    if channels != config.code_dim or not fits:
        frames = "" if origin is None else f" for {origin.frames} frames"
        raise MotionError(
            f"{source} has {length} latents of {channels} numbers{frames}, but the model has "
            f"latents of {config.code_dim} numbers for {config.factor} frames each; give the "
            "checkpoint that the latents are from"
        )
