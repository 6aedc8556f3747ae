"""The commands ``wanvae info`` and ``wanvae convert``, for checkpoints."""

from __future__ import annotations

from typing import get_args

from jsonargparse import Namespace

from wanvae.checkpoints.formats import Layout, files_in_diffusers_directory, require_suffix
from wanvae.commands.convert import convert, load_complete
from wanvae.commands.options import DTYPES, add_source_options, checkpoint_of, source_of_options
from wanvae.config import Half, WanVAEConfig
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.config import to_json_dict
from wanvae.nn.kernels.precision import emulated_among
from wanvae.tiny_config import TinyVAEConfig


def info(arguments: Namespace) -> None:
    """Prints what a checkpoint is."""
    path = checkpoint_of(arguments)
    checkpoint = load_complete(path)
    outline = checkpoint.tensors.outline.values()
    count = sum(tensor.numel() for tensor in outline)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in outline})
    config = checkpoint.config
    print(f"{path}: {checkpoint.layout.value} layout")
    print(f"parameters: {count:,} in {len(checkpoint.tensors)} tensors, {', '.join(dtypes)}")
    print(
        f"compression: {config.temporal_factor}x{config.spatial_factor}x{config.spatial_factor}, "
        f"{config.z_dim} channels{kind_of(config)}"
    )
    for name, value in to_json_dict(config).items():
        print(f"{name}: {value}")
    print(f"stored: {checkpoint.storage}")
    for note in checkpoint.notes:
        print(f"note: {note}")
    for dtype in emulated_among(tensor.dtype for tensor in outline):
        print(
            f"note: this CPU only emulates {dtype}: on it float32 is computed, unless a dtype is "
            "asked for"
        )


def kind_of(config: WanVAEConfig | TinyVAEConfig) -> str:
    """Returns the kind of a model that is no video model of full size, after a comma; else ""."""
    if isinstance(config, TinyVAEConfig):
        return ", a tiny autoencoder for previews" + (
            ", without encoder" if config.encoder_dim is None else ""
        )
    return ", an image model" if config.ndim == 2 else ""


# What people call the wan layout in a .safetensors file.
COMFYUI = "comfyui"


def convert_checkpoint(arguments: Namespace) -> None:
    """Writes a checkpoint in another layout."""
    dtype = None if arguments.dtype is None else DTYPES[arguments.dtype]
    source = source_of_options(arguments, arguments.source)
    if arguments.to == COMFYUI:
        require_suffix(arguments.destination, ".safetensors")
    report = convert(
        source,
        arguments.destination,
        Layout.WAN if arguments.to == COMFYUI else Layout(arguments.to),
        dtype,
        only=arguments.only,
        alpha=arguments.alpha,
        lora=arguments.lora,
    )
    print(
        f"{report.source.value} to {report.target.value}: {report.tensors} tensors, "
        f"{report.renamed} renamed"
    )
    for note in report.notes:
        print(f"note: {note}")


def add_info_options(parser: Parser) -> None:
    """Declares the options of ``wanvae info``."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="checkpoint of any layout (default: the small model of this package)",
    )
    parser.reads("checkpoint")
    add_source_options(parser)


def add_convert_options(parser: Parser) -> None:
    """Declares the options of ``wanvae convert``."""
    parser.add_argument("source", help="checkpoint of any layout, which is detected")
    parser.add_argument(
        "destination",
        help=".safetensors (native, comfyui), .pth or .safetensors (wan), directory (diffusers)",
    )
    parser.reads("source")
    parser.writes("destination", files_in_diffusers_directory)
    add_source_options(parser)
    layouts = [*(layout.value for layout in Layout), COMFYUI]
    parser.add_argument(
        "--to", choices=layouts, default=Layout.NATIVE.value, help="layout to write"
    )
    parser.add_argument(
        "--alpha",
        help="checkpoint whose decoder decodes alpha from the same latents (Wan-Alpha); the "
        "result decodes RGBA",
    )
    parser.add_argument(
        "--lora",
        help="LoRA to merge into the model, like Wan-Alpha-VAE.bin; its base is the source",
    )
    parser.reads("alpha", "lora")
    parser.add_argument("--only", choices=get_args(Half), help="write this half of the model alone")
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        help="dtype of the tensors (default: unchanged, but bfloat16 for float8 and quantized)",
    )


INFO = Command(
    info,
    add_info_options,
    "Print what a checkpoint is, and what had to be assumed.",
)

CONVERT = Command(
    convert_checkpoint,
    add_convert_options,
    "Write a checkpoint in another layout.",
)
