"""The arguments of the commands."""

from __future__ import annotations

from typing import get_args

from jsonargparse import Namespace

from motion.checkpoints.architecture import Untold
from motion.commands.convert import WRITERS
from motion.config import MotionNorm
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.options import add_device_option, add_progress_option
from wanvae.nn.residual import ActivationKind

MOTION_HELP = ".bvh or SMPL-X .npz; .npy of HumanML3D or KIT for models of those"
TOKEN_FORMATS = ("npz", "safetensors")


def untold(arguments: Namespace) -> Untold:
    """What the options say of a published checkpoint."""
    growth = arguments.dilation_growth_rate
    return Untold(
        activation=arguments.activation,
        norm=arguments.norm,
        # One number is for all stages.
        dilation_growth_rate=growth[0] if growth and len(growth) == 1 else growth,
        reverse_dilation=arguments.reverse_dilation,
    )


def add_untold_options(parser: Parser) -> None:
    """Declare what published checkpoints do not tell."""
    group = parser.add_argument_group(
        "what a published checkpoint does not tell", "native ones say it themselves"
    )
    group.add_argument(
        "--activation",
        choices=list(get_args(ActivationKind)),
        help="of its residual blocks (default: relu)",
    )
    group.add_argument(
        "--norm",
        choices=list(get_args(MotionNorm)),
        help="of its residual blocks, if they have one (default: BN if it has statistics)",
    )
    group.add_argument(
        "--dilation-growth-rate",
        type=int,
        nargs="+",
        help="of its dilations: one number, or one for each stage of the encoder (default: 3)",
    )
    group.add_argument(
        "--reverse-dilation",
        type=bool,
        help="whether the largest dilation comes first (default: true)",
    )


def add_model_options(parser: Parser, *, required: bool = True) -> None:
    parser.add_argument(
        "--checkpoint",
        required=required,
        help="native, or of MoMask, T2M-GPT, MotionGPT or GestureLSM; which one is found out",
    )
    add_device_option(parser)
    add_progress_option(parser)
    add_untold_options(parser)


def add_layers_option(parser: Parser) -> None:
    parser.add_argument(
        "--layers", type=int, help="decode from the first so many layers (default: all)"
    )


def add_sample_options(parser: Parser) -> None:
    parser.add_argument("output", help="file to write: .bvh or .npz")
    parser.add_argument("--frames", type=int, default=240, help="how many")
    parser.add_argument("--fps", type=float, default=30.0, help="frames per second")


def add_info_options(parser: Parser) -> None:
    parser.add_argument("file", help="a checkpoint, motion, features or tokens")
    add_untold_options(parser)


def add_tokenize_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of them")
    parser.add_argument("output", help="file to write, .npz or .safetensors; or a folder")
    parser.add_argument(
        "--format", choices=list(TOKEN_FORMATS), default="npz", help="of the files of a folder"
    )
    add_model_options(parser)


def add_detokenize_options(parser: Parser) -> None:
    parser.add_argument("input", help="tokens: .npz, .safetensors, or .npy of indices (T, Q)")
    parser.add_argument("output", help=f"file to write: {MOTION_HELP}; .mp4 or .png to look at")
    add_layers_option(parser)
    parser.add_argument(
        "--skeleton",
        help="motion file whose skeleton is to move (default: that of the tokens, else a packaged "
        "one of as many joints)",
    )
    add_model_options(parser)


def add_reconstruct_options(parser: Parser) -> None:
    parser.add_argument("input", help=MOTION_HELP)
    parser.add_argument("output", help="file to write, of the same kind")
    add_layers_option(parser)
    add_model_options(parser)


def add_evaluate_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of them")
    parser.add_argument("--output", help="folder to write report.html, evaluation.json and .csv to")
    parser.add_argument(
        "--figures",
        type=int,
        default=20,
        help="files to show in the report, from that of the largest error to that of the smallest",
    )
    parser.add_argument(
        "--figure-frames",
        type=int,
        default=600,
        help="frames of each to show, where its error is the largest",
    )
    parser.add_argument(
        "--window",
        type=int,
        help="count the codes of all windows of so many frames (default: of whole files)",
    )
    add_model_options(parser)


def add_render_options(parser: Parser) -> None:
    parser.add_argument("input", help=".bvh, SMPL-X .npz, or .npy of HumanML3D or KIT")
    parser.add_argument("output", help="file to write: .mp4, .mov, .mkv; .png, .jpg, .webp")
    add_model_options(parser, required=False)


def add_convert_options(parser: Parser) -> None:
    parser.add_argument("input", help="checkpoint of any layout; .bvh or SMPL-X .npz")
    parser.add_argument(
        "output", help="file to write: .safetensors (native), .tar or .pth (momask); .bvh or .npz"
    )
    layouts = [layout.value for layout in WRITERS]
    parser.add_argument("--to", choices=layouts, help="layout of the checkpoint to write")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            help=".npy by which a published checkpoint has its features normalized, like Mean.npy "
            "and Std.npy of HumanML3D",
        )
    parser.add_argument(
        "--roundtrip",
        action="store_true",
        help="make features of a motion and motion of these, and say how far that is off",
    )
    add_untold_options(parser)
