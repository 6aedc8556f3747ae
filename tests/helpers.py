"""Small models, videos and files for tests."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
from torch import nn

from wanvae import TinyVAE, TinyVAEConfig, WanVAE, WanVAEConfig

# What makes a small model one of the kind of Wan2.2.
WAN22 = {"stage_shortcuts": True, "patch_size": 2, "decoder_dim": 6}
# What makes a small model one of the kind of Qwen-Image 2.1.
QWEN21 = {
    "stage_shortcuts": True,
    "ndim": 2,
    "in_channels": 4,
    "out_channels": 4,
    "decoder_dim": 6,
    "dim_mult": (1, 2, 2),
    "temporal_downsample": (False, True),
}
# What makes a small model a pair of Wan-Alpha.
WAN_ALPHA = {"alpha_decoder": True, "out_channels": 4}


def randomize(module: nn.Module) -> None:
    """Give every parameter a value that matters: fresh attention would add nothing."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.add_(0.1 * noise)


def tiny(**changes: object) -> WanVAE:
    vae = WanVAE(WanVAEConfig(**{"dim": 4, "z_dim": 2, "num_res_blocks": 1, **changes}))
    randomize(vae)
    return vae.double().eval()


def tiny_autoencoder(**changes: object) -> TinyVAE:
    """A TAEHV of few channels, whose videos have contrast and whose latents have statistics."""
    z_dim = changes.get("z_dim", 4)
    config = TinyVAEConfig(
        **{
            "z_dim": z_dim,
            "encoder_dim": 4,
            "decoder_dims": (6, 4, 4, 2),
            "blocks": 2,
            "latents_mean": tuple(0.5 - 0.25 * i for i in range(z_dim)),
            "latents_std": tuple(0.5 + 0.5 * i for i in range(z_dim)),
            **changes,
        }
    )
    vae = TinyVAE(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in vae.parameters():
        scale = 0.3 if parameter.dim() == 1 else 0.9 / parameter[0].numel() ** 0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    vae.decoder[-1].weight.data *= 10
    return vae.double().eval()


def random_video(
    frames: int, height: int = 16, width: int = 16, batch: int = 1, channels: int = 3
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, frames, height, width)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def run_steps(step, chunks):
    """Feed chunks one by one; returns the joined outputs."""
    state, outputs = None, []
    for chunk in chunks:
        output, state = step(chunk, state)
        outputs.append(output)
    return torch.cat(outputs, dim=2)


def tensors_in(state):
    """All tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from tensors_in(part)


def write_sound(path: Path) -> None:
    """Write a file that has sound but no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
# What starts two processes on a CPU.
LAUNCHER = [*LAUNCH, str(CONFIGS / "cpu.yaml")]
# The same with FSDP.
FSDP_LAUNCHER = [*LAUNCH, str(CONFIGS / "fsdp.yaml"), "--num_processes=2", "--mixed_precision=no"]
FSDP_LAUNCHER += ["--main_process_port=0"]


def launched(*arguments: object) -> list[str]:
    """The command that runs ``wanvae`` with these arguments in two processes."""
    return [*LAUNCHER, "-m", "wanvae", *map(str, arguments)]


@contextmanager
def occupied(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Locks a folder, or a share of it, as another process does that works in it."""
    program = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'a+') as file:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "    print('process 1 on there', file=file, flush=True)\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", program, str(folder / name)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        yield
        other.communicate()
