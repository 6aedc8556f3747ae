"""Compare motion tokenizers in plain PyTorch, with vector-quantize-pytorch's quantizer, to ours.

Both sides have the same random weights and codebooks and get the same input, on the CPU. Times
alternate between the two in one process.

    python tools/benchmark.py motion                           # all jobs at full size
    python tools/benchmark.py motion --jobs encode-clip --repeats 20 --json motion.json
"""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor, nn

from motion import RVQVAE, ResidualVQ, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig
from motion.features.normalizer import Normalizer
from tools.measuring import (
    add_options,
    check_options,
    describe,
    exit_status,
    format_table,
    measure_all,
    require,
    time_call,
    write_json,
)

PEER = "vector-quantize-pytorch"
# Both sides do the same: nothing is random, and no code is replaced.
QUANTIZER = QuantizerConfig(dropout=0.0, revive_below=0.0, initialization="samples")
MODELS = {
    "full": RVQVAEConfig(quantizer=QUANTIZER),
    "tiny": RVQVAEConfig(
        channels=5,
        code_dim=8,
        resnet=ResnetConfig(width=16, depth=2),
        quantizer=replace(QUANTIZER, num_quantizers=3, codebook_size=16),
    ),
}


@dataclass(frozen=True)
class MotionWorkload:
    """A job to measure.

    Attributes:
        name: the name on the command line and in the report.
        task: "quantize" latents to indices; "learn" does this in training mode and updates the
            codebooks; "backpropagate" also computes gradients of latents and commitment loss;
            "encode" turns motion into indices.
        batch, length: number of clips, and of their latents or frames.
        target: how many times as fast as the peer ours should be; None is no target.
    """

    name: str
    task: Literal["quantize", "learn", "backpropagate", "encode"]
    batch: int
    length: int
    target: float | None

    def scaled(self, scale: float) -> MotionWorkload:
        """Returns the same job on shorter or longer clips."""
        return replace(self, length=max(4, round(self.length * scale / 4) * 4))


JOBS = (
    MotionWorkload("quantize", "quantize", 8, 600, 1.6),
    MotionWorkload("learn", "learn", 8, 600, 1.5),
    MotionWorkload("backpropagate", "backpropagate", 8, 600, None),
    MotionWorkload("encode-clip", "encode", 1, 196, 1.1),
    MotionWorkload("encode-long", "encode", 1, 2000, 1.1),
    MotionWorkload("encode-batch", "encode", 32, 196, 1.1),
)


@dataclass(frozen=True)
class Result:
    """The measurements of a job.

    Attributes:
        seconds: seconds of "ours" and "peer" in each round.
        agreement: the fraction of the indices that are the same.
    """

    job: MotionWorkload
    seconds: Mapping[str, Sequence[float]]
    agreement: float

    def summary(self) -> dict[str, float | None]:
        """Returns the numbers of the report, by their headings."""
        ours, peer = (1000 * median(self.seconds[side]) for side in ("ours", "peer"))
        return {
            "ours ms": ours,
            "peer ms": peer,
            "times as fast": peer / ours,
            "target": self.job.target,
            "same indices": self.agreement,
        }


class Block(nn.Module):
    """A residual block of the published models; in evaluation their dropout does nothing."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, 1, dilation, dilation)
        self.conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(torch.relu(x))))


def make_peer_encoder(config: RVQVAEConfig) -> nn.Module:
    """Returns the published encoder, ``(B, D, T)`` to latents, with our parameter names."""
    resnet = config.resnet
    width = resnet.width
    stages = (
        nn.Sequential(
            nn.Conv1d(width, width, 4, 2, 1),
            named_model(*(Block(width, growth**d) for d in reversed(range(resnet.depth)))),
        )
        for growth in resnet.dilation_growth_rate
    )
    return named_model(
        nn.Conv1d(config.channels, width, 3, 1, 1),
        nn.ReLU(),
        *stages,
        nn.Conv1d(width, config.code_dim, 3, 1, 1),
    )


def named_model(*layers: nn.Module) -> nn.Module:
    """Returns layers in a row, with parameter names that begin with ``model``."""
    return nn.Sequential(OrderedDict(model=nn.Sequential(*layers)))


def import_peer_quantizer() -> type[nn.Module]:
    """Returns the class of the peer's residual quantizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the package says on import is not ours
        from vector_quantize_pytorch import ResidualVQ as PeerVQ
    return PeerVQ


def make_peer_quantizer(ours: ResidualVQ) -> nn.Module:
    """Returns the peer of a quantizer, with the same codebooks."""
    config, codes = ours.config, ours.books.codes
    peer = import_peer_quantizer()(
        dim=codes.shape[2],
        num_quantizers=config.num_quantizers,
        codebook_size=config.codebook_size,
        decay=config.decay,
        threshold_ema_dead_code=0,
        # Our quantizer passes gradients straight through.
        rotation_trick=False,
    )
    for layer, book in zip(peer.layers, codes, strict=True):
        layer._codebook.embed.copy_(book[None])
        layer._codebook.embed_avg.copy_(book[None])
    return peer


def make_model(config: RVQVAEConfig) -> RVQVAE:
    """Returns a loaded model with random weights, and codes of random motion."""
    model = RVQVAE(config).eval()
    motion = torch.randn(8, 1024, config.channels)
    with torch.no_grad():
        model.quantizer.train()(model.encoder(motion.mT))
    with TemporaryDirectory(prefix="wanvae-benchmark-") as folder:
        path = Path(folder, "model.safetensors")
        model.save_pretrained(path)
        return RVQVAE.from_pretrained(path)


def make_quantizer(config: RVQVAEConfig, rows: Tensor) -> ResidualVQ:
    """Returns a quantizer with codes of ``rows`` ``(N, C)``, and the peer's first averages."""
    quantizer = ResidualVQ(config.quantizer, config.code_dim)
    books = quantizer.books
    books.initialize(rows)
    books.counts.fill_(1)
    books.sums.copy_(books.codes)
    return quantizer


def make_calls(job: MotionWorkload, config: RVQVAEConfig) -> dict[str, Callable[[], Tensor]]:
    """Returns for each side the call to measure, which returns indices ``(B, T, Q)``."""
    torch.manual_seed(0)
    if job.task == "encode":
        model = make_model(config)
        motion = torch.randn(job.batch, job.length, config.channels)
        encoder = make_peer_encoder(config).eval()
        encoder.load_state_dict(model.encoder.state_dict())
        quantizer = make_peer_quantizer(model.quantizer).eval()
        return {
            "ours": partial(model.encode, motion),
            "peer": partial(encode_by_peer, encoder, quantizer, model.normalizer, motion),
        }
    latents = torch.randn(job.batch, job.length, config.code_dim)
    ours = make_quantizer(config, latents.flatten(0, 1))
    sides = {"ours": ours, "peer": make_peer_quantizer(ours)}
    if job.task == "quantize":
        return {
            side: partial(quantize, quantizer.eval(), side, latents)
            for side, quantizer in sides.items()
        }
    backward = job.task == "backpropagate"
    return {
        side: partial(learn, quantizer.train(), side, latents, backward)
        for side, quantizer in sides.items()
    }


@torch.no_grad()
def encode_by_peer(
    encoder: nn.Module, quantizer: nn.Module, normalizer: Normalizer, motion: Tensor
) -> Tensor:
    return quantizer(encoder(normalizer.normalize(motion).mT).mT)[1]


@torch.no_grad()
def quantize(quantizer: nn.Module, side: str, latents: Tensor) -> Tensor:
    """Returns the indices of latents ``(B, T, C)``."""
    return quantizer(latents.mT).indices if side == "ours" else quantizer(latents)[1]


def learn(quantizer: nn.Module, side: str, latents: Tensor, backward: bool) -> Tensor:
    """Returns the indices in training mode; ``backward`` also computes gradients."""
    latents = latents.detach().requires_grad_()
    if side == "ours":
        result = quantizer(latents.mT)
        quantized, indices, loss = result.latents, result.indices, result.commitment_loss
    else:
        quantized, indices, losses = quantizer(latents)
        loss = losses.mean()
    if backward:
        (quantized.square().sum() + loss).backward()
    return indices


def measure(job: MotionWorkload, config: RVQVAEConfig, repeats: int) -> Result:
    """Returns all measurements of a job."""
    calls = make_calls(job, config)
    same = calls["ours"]() == calls["peer"]()  # warms up both
    rounds = [
        {side: time_call(call, "cpu") for side, call in calls.items()} for _ in range(repeats)
    ]
    seconds = {side: [times[side] for times in rounds] for side in calls}
    return Result(job, seconds, same.double().mean().item())


def report(results: Sequence[Result]) -> str:
    """Returns a Markdown table."""
    rows = [["job", "size", *results[0].summary()]]
    for result in results:
        cells = ["-" if x is None else f"{x:.2f}" for x in result.summary().values()]
        cells[-1] = f"{result.agreement:.3%}"
        rows.append([result.job.name, f"{result.job.batch}x{result.job.length}", *cells])
    return format_table(rows, labels=2)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options; exits with status 2 for a bad option."""
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(
        prog="benchmark motion", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    jobs_help = f"what to measure (default: all): {', '.join(names)}"
    parser.add_argument(
        "--jobs", nargs="+", choices=names, default=names, metavar="JOB", help=jobs_help
    )
    parser.add_argument("--model", choices=MODELS, default="full")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    return options


def run(options: argparse.Namespace) -> None:
    """Measures all jobs and prints a report."""
    require(PEER)
    header = describe(f"{options.model} motion model on cpu", PEER)
    jobs = [job.scaled(options.size_scale) for job in JOBS if job.name in options.jobs]
    results = measure_all(
        jobs,
        lambda job: measure(job, MODELS[options.model], options.repeats),
        lambda results: f"{header}\n\n{report(results)}",
    )
    if options.json:
        entries = (asdict(result) | {"summary": result.summary()} for result in results)
        write_json(options.json, header, entries)


def main(arguments: Sequence[str]) -> int:
    return exit_status(partial(run, parse(arguments)))
