"""Convert a Wan VAE checkpoint to another layout: native, wan (official) or diffusers."""

from __future__ import annotations

import argparse
import sys

import torch

from wanvae.convert import convert
from wanvae.engine.checkpoint import CheckpointError
from wanvae.formats import Layout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", help="checkpoint file or diffusers directory; layout is found out"
    )
    parser.add_argument("destination", help=".safetensors, .pth (wan) or a directory (diffusers)")
    layouts = [layout.value for layout in Layout]
    parser.add_argument("--to", choices=layouts, required=True, help="layout to write")
    parser.add_argument("--dtype", choices=DTYPES, help="of the tensors to write; default: as read")
    arguments = parser.parse_args()
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    try:
        report = convert(arguments.source, arguments.destination, Layout(arguments.to), dtype)
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    print(f"{report.source.value} to {report.target.value}: {report.tensors} tensors", end="")
    print(f", {report.renamed} renamed")
    for note in report.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
