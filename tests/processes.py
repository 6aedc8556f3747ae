"""What the processes of test_sharding.py do; each calls the same functions in lockstep."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import WAN22, random_video, tiny
from wanvae import WanVAE
from wanvae.execution.cost import Costs, Workload
from wanvae.execution.network import Network
from wanvae.execution.plan import Plan
from wanvae.execution.sharding import Shares, share_out
from wanvae.nn.kernels.dispatch import IN_PLACE, TABLE, Observer

VARIANTS = [{}, {"attn_scales": (0.5,)}, {"temporal_downsample": (True, False, True)}, WAN22]
EXACTLY = {"rtol": 0, "atol": 1e-10}
# Latents of the clips whose work is counted, as Shares count it.
LATENTS = 2

# In latents.
side = st.integers(1, 6)
# Nothing is random, so that all processes draw the same; nor is a failure tried again.
in_lockstep = settings(
    max_examples=9, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


@dataclass(frozen=True)
class Rank:
    """A process of several."""

    process_index: int
    num_processes: int


def make_model(variant: dict[str, object]) -> WanVAE:
    """The same weights in every process."""
    torch.manual_seed(0)
    return tiny(**variant)


def in_pixels(vae: WanVAE, sides: tuple[int, ...] | int | None) -> tuple[int, ...] | int | None:
    """Latents in pixels; None stays None."""
    factor = vae.config.spatial_factor
    if isinstance(sides, tuple):
        return tuple(factor * side for side in sides)
    return None if sides is None else factor * sides


def check_all(rank: int, count: int, folder: Path) -> None:
    """Everything that process ``rank`` of ``count`` checks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=count)
    processes = Rank(rank, count)
    check_clips(processes)
    check_streams(processes)
    check_half_types(processes)
    check_work(processes)
    dist.destroy_process_group()


def check_clips(processes: Rank) -> None:
    """Encoded and decoded clips are those of one process, for whom there are any."""

    @in_lockstep
    @given(
        variant=st.sampled_from(VARIANTS),
        batch=st.integers(1, 2),
        latents=st.integers(1, 3),
        size=st.tuples(side, side),
        tile_size=st.one_of(st.none(), side),
    )
    def check(variant, batch, latents, size, tile_size):
        vae = make_model(variant)
        size, tile_size = in_pixels(vae, size), in_pixels(vae, tile_size)
        video = random_video(1 + 4 * (latents - 1), *size, batch=batch)
        whole = vae.encode(video)
        shared = vae.encode(video, tile_size=tile_size, shard=processes)
        torch.testing.assert_close(shared.mean, whole.mean, **EXACTLY)
        torch.testing.assert_close(shared.logvar, whole.logvar, **EXACTLY)
        expected = vae.decode(whole.mean)
        decoded = vae.decode(whole.mean, tile_size=tile_size, shard=processes)
        assert_for_first(decoded, expected, processes)

    check()


def check_streams(processes: Rank) -> None:
    """So are streams, also where they go on from a saved state."""

    @in_lockstep
    @given(
        lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
        variant=st.sampled_from([{}, WAN22]),
        size=st.tuples(side, side),
        tile_size=st.one_of(st.none(), side),
    )
    def check(lengths, variant, size, tile_size):
        vae = make_model(variant)
        size, tile_size = in_pixels(vae, size), in_pixels(vae, tile_size)
        options = {"tile_size": tile_size, "shard": processes}
        video = random_video(sum(lengths), *size)
        expected, encoder, state = vae.stream_encode(), vae.stream_encode(**options), None
        state_alone = None
        for piece in video.split(lengths, dim=2):
            encoder = vae.stream_encode(encoder.state, **options)
            whole, shared = expected.push(piece), encoder.push(piece)
            assert (whole is None) == (shared is None)
            if whole is None:
                continue
            torch.testing.assert_close(shared.mean, whole.mean, **EXACTLY)
            alone, decoder = vae.stream_decode(state_alone), vae.stream_decode(state, **options)
            assert_for_first(decoder.push(whole.mean), alone.push(whole.mean), processes)
            state_alone, state = alone.state, decoder.state
        ended, end = expected.finish(), encoder.finish()
        assert ended.padded_frames == end.padded_frames

    check()


def check_half_types(processes: Rank) -> None:
    """Tensors of half types are exchanged as well."""
    for dtype in (torch.bfloat16, torch.float16):
        vae = make_model({}).to(dtype)
        latents = torch.randn(1, 2, 2, 3, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
        expected, decoded = vae.decode(latents), vae.decode(latents, shard=processes)
        assert decoded.dtype == expected.dtype
        assert_for_first(decoded, expected, processes, rtol=0, atol=0.1)


def check_work(processes: Rank) -> None:
    """No process computes more than its share of the shell, nor than a fair one."""
    TABLE[Observer.NOBODY]["cpu"] = IN_PLACE  # to count all multiply-adds
    for variant, decoding in product([{}, WAN22], [False, True]):
        vae = make_model(variant)
        height, width = in_pixels(vae, (4, 26))
        network = vae.decoder_network() if decoding else vae.encoder_network()
        plan = Plan(None, 2)
        shares = share_out(network, plan, height, width, processes.num_processes)
        core, whole_shell = work_of(network, height, width)
        latents = torch.zeros(1, 2, LATENTS, 4, 26, dtype=torch.float64)
        with FlopCounterMode(display=False) as counter:
            if decoding:
                vae.decode(latents, shard=processes)
            else:
                vae.encode(random_video(5, height, width), shard=processes)
        done = counter.get_total_flops() / 2
        share = shares.work[processes.process_index]
        # Inside a block layers make a little more than the block does.
        assert abs(done - core - share) < 0.05 * share, (done, core, share)
        assert_fair(shares, whole_shell)


def work_of(network: Network, height: int, width: int) -> tuple[int, int]:
    """Multiply-adds of the core and of the shell for whole frames."""
    channels = 2 if network.core_first else 3
    workload = Workload(1, channels, LATENTS, height, width, torch.float64)
    whole = Costs(network).multiply_adds(workload, Plan(None, 2))
    alone = share_out(network, Plan(None, 2), height, width, 1).work[0]
    return whole - alone, alone


def assert_fair(shares: Shares, whole_shell: int) -> None:
    """All have about as much to do, and less than the whole."""
    assert max(shares.work) < 1.15 * min(shares.work)
    assert max(shares.work) < 0.9 * whole_shell


def assert_for_first(
    found: torch.Tensor, expected: torch.Tensor, processes: Rank, **tolerance: float
) -> None:
    """The first process has all frames, the others none."""
    if processes.process_index > 0:
        expected = expected[:, :, :0]
    torch.testing.assert_close(found, expected, **(tolerance or EXACTLY))
