"""The options of commands that run a model, and loading the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from jsonargparse import Namespace

from wanvae.checkpoints.source import Source
from wanvae.demo import demo_weights
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.options import add_device_option, add_progress_option
from wanvae.engine.devices import check_device, default_device, device_of, launched_processes
from wanvae.errors import UserError
from wanvae.model import AnyVAE, WanVAE
from wanvae.tiny import TinyVAE
from wanvae.tiny_config import LatentScale

if TYPE_CHECKING:
    from accelerate import PartialState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(arguments: Namespace, checkpoint: Source, default: str | None = None) -> AnyVAE:
    """Returns the model of a checkpoint, on the device of the options or on the default device.

    Raises:
        UserError: ``--tiny-latents`` is given, but this is no tiny autoencoder.
    """
    device = arguments.device or default or default_device()
    dtypes = [arguments.encode_dtype or arguments.dtype, arguments.decode_dtype or arguments.dtype]
    for dtype in dtypes:
        check_device(device, DTYPES[dtype])
    vae = WanVAE.from_pretrained(
        checkpoint,
        device=device,
        encode_dtype=DTYPES[dtypes[0]],
        decode_dtype=DTYPES[dtypes[1]],
    )
    if arguments.tiny_latents is not None:
        if not isinstance(vae, TinyVAE):
            raise UserError(f"{checkpoint} is no tiny autoencoder; leave out --tiny-latents")
        vae.set_network_latents(arguments.tiny_latents)
    if arguments.compile:
        vae.compile()
    return vae


@contextmanager
def model_to_share(arguments: Namespace) -> Iterator[tuple[AnyVAE, PartialState | None]]:
    """Gives the model and, with ``--shard``, the processes that share each video.

    Raises:
        UserError: there are several processes, but no ``--shard``.
    """
    if arguments.shard:
        with launched_processes(arguments.device) as processes:
            yield load_model(arguments, checkpoint_of(arguments), device_of(processes)), processes
        return
    # All launchers set this. Asking accelerate would make the processes wait for each other.
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UserError(f"{count} processes would all do the same; add --shard to share the work")
    yield load_model(arguments, checkpoint_of(arguments)), None


def checkpoint_of(arguments: Namespace) -> Source:
    """Returns the checkpoint of the options, or the small model of this package."""
    return source_of_options(arguments, arguments.checkpoint or demo_weights())


def source_of_options(arguments: Namespace, path: str | Path) -> Source:
    """Returns a checkpoint with what the options say about it."""
    return Source(path, arguments.key, arguments.latent_statistics, arguments.variant)


def add_source_options(parser: Parser) -> None:
    """Declares what says which model of a checkpoint is meant."""
    parser.add_argument(
        "--key",
        help="what is before the names of the tensors of the model, like vae., in a file that "
        "holds several models",
    )
    parser.add_argument(
        "--variant",
        help="variant of a diffusers folder, like fp16 (default: the plain files, or the only "
        "variant)",
    )
    parser.add_argument(
        "--latent-statistics",
        help="mean and standard deviation of the latents: none, wan2.1, wan2.2, or a JSON file "
        "with latents_mean and latents_std (default: of the file, or as its architecture tells)",
    )
    parser.reads("latent_statistics")


def add_model_options(parser: Parser, *, several: bool = False) -> None:
    """Declares the options of commands that run one model, or ``several``."""
    parser.add_argument(
        "--checkpoint",
        nargs="+" if several else None,
        help="native, official or diffusers checkpoint, or ORG/NAME on the Hugging Face Hub "
        "(default: the small model of this package)",
    )
    parser.reads("checkpoint")
    add_source_options(parser)
    parser.add_argument(
        "--tiny-latents",
        choices=list(get_args(LatentScale)),
        help="how a tiny autoencoder itself has latents (default: as its file tells, see `wanvae "
        "info`)",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="dtype to compute in"
    )
    for task in ("encode", "decode"):
        parser.add_argument(
            f"--{task}-dtype", choices=list(DTYPES), help=f"dtype to {task} in (default: --dtype)"
        )
    add_device_option(parser)
    parser.add_argument("--compile", action="store_true", help="compile the model; for GPUs")
    parser.add_argument(
        "--tile-size",
        type=int,
        help="work in tiles with at most this many pixels along each side; the result is the same",
    )
    add_memory_option(parser)
    add_progress_option(parser)


def add_shard_option(parser: Parser) -> None:
    """Declares ``--shard``."""
    parser.add_argument(
        "--shard",
        action="store_true",
        help="share each frame over all processes of accelerate launch; the result is the same",
    )


def add_memory_option(parser: Parser) -> None:
    """Declares ``--max-memory``."""
    parser.add_argument(
        "--max-memory",
        help="memory for the work, besides the model and the libraries, like 700MB or 4GB: steps "
        "and tiles are chosen to fit; the result is the same",
    )


def add_picture_options(parser: Parser) -> None:
    """Declares ``--deinterlace``, ``--background`` and ``--hwaccel``."""
    parser.add_argument(
        "--deinterlace", action="store_true", help="give interlaced frames all lines of one time"
    )
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="what transparent pictures are laid on, like white or #ff8000 (default: black); only "
        "for models that do not encode alpha",
    )
    parser.add_argument(
        "--hwaccel",
        metavar="DEVICE",
        help="decode on a device, if FFmpeg has it, like cuda, videotoolbox or "
        "vaapi:/dev/dri/renderD128 (default: on the CPU)",
    )
