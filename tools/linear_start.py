"""Write weights that the training of a small video VAE can start from: a linear codec of videos.

The encoder keeps principal components, the decoder is solved by least squares, and both are trained
along the shortcuts of their blocks, which add nothing yet. All of it runs on the CPU.

    python tools/linear_start.py data start.safetensors --config configs/video/demo.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

# Python finds only the folder of a script, so the root is added.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.measuring import check_outputs
from wanvae.checkpoints.formats import require_suffix
from wanvae.config import check_length, check_size, encodes_alpha
from wanvae.engine.command_line.arguments import read_config
from wanvae.engine.command_line.outcome import exit_status
from wanvae.engine.config import check
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.training.loop import begin_to_load
from wanvae.model import WanVAE
from wanvae.nn import use_channels_last
from wanvae.train.crops import VideoCrops
from wanvae.train.linear_start import check_linear, start_linear
from wanvae.train.losses import peak_signal_to_noise
from wanvae.train.run import CONFIG_FOLDERS, TrainConfig
from wanvae.train.shortcuts import train_shortcuts


def run(options: argparse.Namespace) -> int:
    """Fits, trains and writes the model.

    Raises:
        UserError: an option or the config is impossible, the folder has no usable videos, or the
            training gives no numbers.
    """
    require_suffix(options.output, ".safetensors")
    for name, least in (("samples", 1), ("steps", 0), ("workers", 0), ("seed", 0)):
        value = getattr(options, name)
        check(value >= least, f"--{name}", value, f"at least {least}")
    check(0 < options.rate < float("inf"), "--rate", options.rate, "above 0")
    config = read_config(TrainConfig, options.config, CONFIG_FOLDERS)
    check_linear(config.model)
    for shape in config.data.shapes:
        check_size(config.model, shape.height, shape.width)
        check_length(config.model, shape.frames)
    batch_size = config.trainer.batch_size
    crops = VideoCrops(
        replace(config.data, folder=str(options.folder), folders=(), folder_weights=()),
        options.seed,
        samples_per_step=batch_size,
        alpha=encodes_alpha(config.model),
    )
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    vae = WanVAE(config.model)
    millions = sum(parameter.numel() for parameter in vae.parameters()) / 1e6
    print(f"{options.config}: a model of {millions:.1f} million parameters", flush=True)
    fitted = -(-options.samples // batch_size)
    loader = DataLoader(
        crops,
        batch_size=batch_size,
        sampler=range(batch_size * (fitted + options.steps)),
        num_workers=options.workers,
        worker_init_fn=begin_to_load,
    )
    # Processes that load data ignore signals and would never end if this were not closed.
    with closing(batch for batch in loader) as batches:
        clips = list(tqdm(islice(batches, fitted), "crops", fitted))
        start_linear(vae, clips, generator)
        solved = trained = judge(vae, clips)
        quality = f"{solved:.1f} dB as solved"
        if options.steps:
            use_channels_last(vae)
            train_shortcuts(vae, batches, options.steps, options.rate, generator)
            trained = judge(vae, clips)
            quality += f", {trained:.1f} dB after {options.steps} steps"
    if not isfinite(trained):
        raise NotFiniteError(
            f"the training of {options.steps} steps gave no numbers, so nothing was written: lower "
            f"--rate, which is {options.rate:g}"
        )
    vae.save_pretrained(options.output)
    print(f"{options.output}: on {len(clips) * batch_size} crops {quality}")
    if trained < solved:
        print(
            "note: these steps made it worse: give more --steps or a lower --rate; --steps 0 keeps "
            "what is solved"
        )
    return 0


@torch.no_grad()
def judge(vae: WanVAE, clips: Sequence[Tensor]) -> float:
    """Returns the mean PSNR in dB of reconstructions."""
    values = [peak_signal_to_noise(vae.eval()(clip).video, clip) for clip in clips]
    return float(torch.stack(values).mean())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    parser = argparse.ArgumentParser(
        prog="linear_start", description=str(__doc__).partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="videos and images, as for wanvae train")
    parser.add_argument("output", type=Path, help="file for the weights, .safetensors")
    parser.add_argument(
        "--config",
        required=True,
        help="config of wanvae train, a file or a name: model, crops (data) and batch_size count",
    )
    parser.add_argument(
        "--samples", type=int, default=200, help="crops to fit, in memory (default: 200)"
    )
    parser.add_argument(
        "--steps", type=int, default=2500, help="steps of training (default: 2500; 0 is none)"
    )
    parser.add_argument(
        "--rate", type=float, default=1e-3, help="highest learning rate (default: 1e-3)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that read (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    options = parser.parse_args(arguments)
    check_outputs(parser, [options.output], [options.folder])
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(partial(run, parse(arguments)), "linear_start", arguments)


if __name__ == "__main__":
    sys.exit(main())
