"""Two processes learn the codebooks of one, and never differ."""

import gc
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from motion import RVQVAE, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig
from motion.quantizer_config import TABLES, FSQConfig, QuantizerKind
from motion.train.losses import measure_latents

# Each kind, and the size of its codebooks.
KINDS: dict[QuantizerKind, int] = {
    "ema": 12,
    "learned": 12,
    "simvq": 12,
    "implicit": 12,
    "fsq": 12,
    "lfq": 8,
}
STEPS, LIVELY_STEPS = 50, 15
CLIPS, FRAMES, CHANNELS = 8, 16, 4


def train(kind: QuantizerKind, *, lively: bool, part: slice) -> dict[str, Tensor]:
    """Plain gradient descent on a part of each batch; returns the state.

    Args:
        lively: with revival, dropout of layers, sampling, and clips of several lengths.
    """
    torch.manual_seed(0)
    quantizer = QuantizerConfig(
        kind=kind,
        num_quantizers=2,
        codebook_size=KINDS[kind],
        fsq=FSQConfig(levels=(4, 3)),
        decay=0.9,
        revive_below=0.5 if lively else 0.0,
        dropout=0.5 if lively else 0.0,
        temperature=0.1 if lively and kind in TABLES else 0.0,
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
        loss = (output.output - output.target).square().mean()
        loss = loss + sum(term() for term in measure_latents(output).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def train_a_half(rank: int, folder: Path, kinds: tuple[QuantizerKind, ...]) -> None:
    """What process ``rank`` of 2 comes to with each kind, plain and lively, in files."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    part = slice(rank * CLIPS // 2, (rank + 1) * CLIPS // 2)
    for kind, lively in product(kinds, (False, True)):
        torch.save(train(kind, lively=lively, part=part), folder / f"{rank} {kind} {lively}.pt")
    # What is left of wrapped models holds threads of the group, which must not outlive it.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "kinds", [("ema",), pytest.param(tuple(KINDS)[1:], marks=pytest.mark.slow)]
)
def test_two_processes_hold_the_codebooks_of_one_with_twice_the_batch(tmp_path, kinds):
    torch.multiprocessing.spawn(train_a_half, (tmp_path, kinds), nprocs=2)

    def result_of(rank: int, kind: str, lively: bool) -> dict[str, Tensor]:
        return torch.load(tmp_path / f"{rank} {kind} {lively}.pt", weights_only=True)

    for kind, lively in product(kinds, (False, True)):
        first, second = (result_of(rank, kind, lively) for rank in (0, 1))
        assert all(torch.equal(value, second[name]) for name, value in first.items()), kind
    for kind in kinds:
        one = train(kind, lively=False, part=slice(0, CLIPS))
        two = result_of(0, kind, False)
        assert one.get("quantizer.books.initialized", True)
        for name, value in one.items():
            message = f"{kind} {name}"
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=message)
