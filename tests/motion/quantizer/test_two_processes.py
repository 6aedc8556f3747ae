"""Two processes learn the codebooks of one, and never differ."""

import gc
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from motion import RVQVAE, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig

STEPS, LIVELY_STEPS = 50, 15
CLIPS, FRAMES, CHANNELS = 8, 16, 4


def train(*, lively: bool, part: slice) -> dict[str, Tensor]:
    """Plain gradient descent on a part of each batch; returns the state.

    Args:
        lively: with revival, dropout of layers, sampling, and clips of several lengths.
    """
    torch.manual_seed(0)
    quantizer = QuantizerConfig(
        num_quantizers=2,
        codebook_size=12,
        decay=0.9,
        revive_below=0.5 if lively else 0.0,
        dropout=0.5 if lively else 0.0,
        temperature=0.1 if lively else 0.0,
    )
    resnet = ResnetConfig(width=6, depth=1, dilation_growth_rate=(3,), dropout=0.0)
    config = RVQVAEConfig(channels=CHANNELS, code_dim=5, resnet=resnet, quantizer=quantizer)
    model = RVQVAE(config)
    wrapped = model
    if dist.is_initialized():
        # Without copying the codebooks of one process to the other.
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(LIVELY_STEPS if lively else STEPS):
        torch.manual_seed(100 + step)
        motion = torch.randn(CLIPS, FRAMES, CHANNELS)[part]
        if lively:
            torch.manual_seed(1000 * step + part.start)
        lengths = torch.randint(1, FRAMES + 1, (len(motion),)) if lively else None
        output = wrapped(motion, lengths)
        loss = (output.output - output.target).square().mean() + output.quantized.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def train_a_half(rank: int, folder: Path) -> None:
    """What process ``rank`` of 2 comes to, plain and lively, in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    part = slice(rank * CLIPS // 2, (rank + 1) * CLIPS // 2)
    for lively in (False, True):
        torch.save(train(lively=lively, part=part), folder / f"{rank} {lively}.pt")
    # What is left of wrapped models holds threads of the group, which must not outlive it.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_hold_the_codebooks_of_one_with_twice_the_batch(tmp_path):
    torch.multiprocessing.spawn(train_a_half, (tmp_path,), nprocs=2)

    def result_of(rank: int, lively: bool) -> dict[str, Tensor]:
        return torch.load(tmp_path / f"{rank} {lively}.pt", weights_only=True)

    for lively in (False, True):
        first, second = result_of(0, lively), result_of(1, lively)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    one, two = train(lively=False, part=slice(0, CLIPS)), result_of(0, False)
    assert one["quantizer.books.initialized"]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
