"""What each process of two does with an example about several devices."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from tests.readme import EXAMPLES
from wanvae import WanVAE

DEVICES = 2


def run_example(rank: int, example: str, folder: Path) -> None:
    """Process ``rank`` runs an example on ``inputs.pt``, and writes its results to ``folder``."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{DEVICES}"}
    # An Accelerator joins the processes that are there, but asks for an address all the same.
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=DEVICES)
    names = torch.load(folder / "inputs.pt")
    names["vae"] = WanVAE.from_pretrained(folder / "Wan2.1_VAE.pth")
    exec(EXAMPLES[example].text, names)
    results = {name: names[name] for name in ("video", "frames")}
    results["mean"] = names["posterior"].mean
    results["processes"] = names["accelerator"].num_processes
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()
