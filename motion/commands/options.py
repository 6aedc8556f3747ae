"""Options that several commands have, and the model that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from jsonargparse import Namespace

from motion.checkpoints.architecture import Untold
from motion.config import MotionNorm
from motion.files.formats import WRITERS
from motion.files.reading import Axis, Reading
from motion.model import RVQVAE
from motion.models import MotionModel, packaged_weights
from motion.models import load_model as load_checkpoint
from motion.vae import MotionVAE
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.options import add_device_option, add_progress_option
from wanvae.engine.devices import check_device, default_device
from wanvae.errors import UserError
from wanvae.nn.residual import ActivationKind

MOTION_HELP = (
    ".bvh, .npz of SMPL-X, SMPL+H or SMPL, .pkl of AIST++; or .npy of features (T, D), as of "
    "HumanML3D, KIT or MotionStreamer, for a model of such features"
)
WRITTEN_HELP = f"{', '.join(WRITERS)}; or .npy of features for a model of such features"

PACKAGED = "the tokenizer of the package, of a body of 22 joints"


def add_untold_options(parser: Parser) -> None:
    """Declares the options for what a published checkpoint does not tell."""
    group = parser.add_argument_group(
        "what a published checkpoint does not tell", "a native checkpoint tells it"
    )
    group.add_argument(
        "--activation",
        choices=list(get_args(ActivationKind)),
        help="activation of the residual blocks (default: relu)",
    )
    group.add_argument(
        "--norm",
        choices=list(get_args(MotionNorm)),
        help="norm of the residual blocks, if they have one (default: BN if it has statistics)",
    )
    group.add_argument(
        "--dilation-growth-rate",
        type=int,
        nargs="+",
        help="growth of the dilations: one number, or one for each encoder stage (default: 3)",
    )
    group.add_argument(
        "--reverse-dilation",
        type=bool,
        help="whether the largest dilation comes first (default: true)",
    )


def read_untold(arguments: Namespace) -> Untold:
    """Returns what the options say about a published checkpoint."""
    growth = arguments.dilation_growth_rate
    return Untold(
        activation=arguments.activation,
        norm=arguments.norm,
        # One number is for all stages.
        dilation_growth_rate=growth[0] if growth and len(growth) == 1 else growth,
        reverse_dilation=arguments.reverse_dilation,
    )


def add_model_options(parser: Parser, *, required: bool = True, packaged: bool = False) -> None:
    """Declares the checkpoint, the device, the progress bar, and what the checkpoint may not tell.

    Args:
        required: whether the command needs a checkpoint.
        packaged: whether the tokenizer of the package stands in for a checkpoint.
    """
    default = f" (default: {PACKAGED})"
    parser.add_argument(
        "--checkpoint",
        required=required and not packaged,
        help="native, or of MoMask, T2M-GPT, MotionGPT or GestureLSM; the layout is detected"
        + default * packaged,
    )
    parser.reads("checkpoint")
    add_device_option(parser)
    add_progress_option(parser)
    add_untold_options(parser)


def add_reading_options(parser: Parser) -> None:
    """Declares the options for what motion files do not tell."""
    group = parser.add_argument_group("what a motion file does not tell")
    group.add_argument(
        "--unit",
        type=float,
        help="metres per unit of length of BVH files, like 0.01 (default: guessed from the size of "
        "a person)",
    )
    group.add_argument(
        "--up",
        choices=list(get_args(Axis)),
        help="the axis that points up in the file (default: guessed from the pose)",
    )
    group.add_argument("--root", help="the skeleton to read, where a BVH file has several roots")
    group.add_argument(
        "--frames-from-data",
        action="store_true",
        help="read a BVH file with fewer frames than its line Frames says",
    )


def read_reading(arguments: Namespace) -> Reading:
    """Returns how the options say that motion files are read."""
    return Reading(
        unit=arguments.unit,
        up=arguments.up,
        root=arguments.root,
        frames_from_data=arguments.frames_from_data,
    )


def add_retarget_option(parser: Parser) -> None:
    """Declares ``--retarget``."""
    parser.add_argument(
        "--retarget",
        action="store_true",
        help="where the skeleton of a file is not the skeleton of the model, move the skeleton of "
        "the model as the file moves, with joints matched by their names (always so without "
        "--checkpoint)",
    )


def read_model_reading(arguments: Namespace) -> Reading:
    """Returns how the options say that motion files are read for a model."""
    retarget = arguments.retarget or arguments.checkpoint is None
    return replace(read_reading(arguments), retarget=retarget)


def add_layers_option(parser: Parser) -> None:
    """Declares ``--layers``."""
    parser.add_argument(
        "--layers", type=int, help="decode from the first N layers of the quantizer (default: all)"
    )


def load_model(arguments: Namespace, default: str | None = None) -> MotionModel:
    """Loads the model of ``--checkpoint``, a tokenizer or a VAE; or the tokenizer of the package.

    Args:
        default: the device to use if ``--device`` is not given; None is the GPU if there is one.
    """
    device = arguments.device or default or default_device()
    check_device(device)
    if arguments.checkpoint is None:
        return load_checkpoint(packaged_weights(), device=device, dtype=torch.float32)
    return load_checkpoint(arguments.checkpoint, read_untold(arguments), device)


def load_vae(arguments: Namespace, default: str | None = None) -> MotionVAE:
    """Loads the VAE of ``--checkpoint``; ``default`` is as in ``load_model``.

    Raises:
        UserError: it is a tokenizer.
    """
    model = load_model(arguments, default)
    if not isinstance(model, MotionVAE):
        raise UserError(
            f"{arguments.checkpoint} is a tokenizer, without continuous latents. Use tokenize, "
            "which writes its tokens, and detokenize"
        )
    return model


def load_tokenizer(arguments: Namespace, default: str | None = None) -> RVQVAE:
    """Loads the tokenizer of ``--checkpoint``; ``default`` is as in ``load_model``.

    Raises:
        UserError: it is a VAE.
    """
    model = load_model(arguments, default)
    if not isinstance(model, RVQVAE):
        raise UserError(
            f"{arguments.checkpoint} is a VAE, whose latents are continuous: it has no tokens. Use "
            "encode, which writes its latents to .safetensors, and decode"
        )
    return model


def print_loss(sentence: str) -> None:
    """Prints what a motion file does not hold of the features, if it loses something."""
    if sentence:
        print(f"note: {sentence}")


def print_ignored(ignored: str) -> None:
    """Prints how many files of a folder were passed over, if any were."""
    if ignored:
        print(f"ignored, no motion files: {ignored}")


def report_failures(failures: Sequence[str], others: int) -> None:
    """Prints which files were left out.

    Args:
        failures: a line for each file that cannot be read.
        others: the number of files that can be read.

    Raises:
        UserError: there are failures.
    """
    for line in failures:
        print(f"left out: {line}")
    if failures:
        count = len(failures)
        raise UserError(f"{count} of {count + others} files cannot be read")
