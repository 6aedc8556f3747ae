"""Videos shared by several processes: the result of one, and no work done twice but at borders."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers import random_video, tensors_in, tiny
from tests.processes import Rank, check_all
from wanvae import WanVAE
from wanvae.execution.limits import Limits
from wanvae.execution.plan import Plan
from wanvae.execution.run import Runner
from wanvae.execution.sharding import SharedTiles, find_balanced_ends, share_out
from wanvae.execution.tiling import Coding

VAE = tiny()


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_what_one_does(tmp_path, count):
    torch.multiprocessing.spawn(check_all, (count, tmp_path), nprocs=count)


def test_a_process_alone_shares_with_nobody():
    video, alone = random_video(5, 16, 24), Rank(0, 1)
    posterior = VAE.encode(video, shard=alone)
    assert torch.equal(posterior.mean, VAE.encode(video).mean)
    decoded = VAE.decode(posterior.mean, shard=alone)
    assert torch.equal(decoded, VAE.decode(posterior.mean))


def test_errors_of_the_model_are_not_taken_for_a_process_that_ended(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    network, plan = VAE.decoder_network(), Plan(None, 2)
    monkeypatch.setattr(network.shell[0], "step", fail)
    coding = Coding(network, plan, SharedTiles(share_out(network, plan, 16, 24, 1), 0))
    with pytest.raises(RuntimeError, match="not enough memory"):
        coding.run(torch.zeros(1, 2, 1, 2, 3, dtype=torch.float64))


def test_a_process_that_sends_its_tiles_keeps_their_states_on_the_host(monkeypatch):
    """On tensors that have no values, and that tell of a GPU."""
    sent = []
    monkeypatch.setattr(torch.distributed, "send", lambda x, dst: sent.append((x.device.type, dst)))
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        vae = WanVAE(VAE.config).eval()
        runner = Runner(vae.decoder_network(), Limits(shard=Rank(1, 2)))
        coding = runner.start((1, 2, 1, 4, 6), Plan((16, 16), 2, offload=True))
        (flows,) = (flows for part, flows in coding.parts if not part.whole)
        for pushed in (1, 2):
            before = len(sent)
            assert coding.run(torch.empty(1, 2, pushed, 4, 6)).shape[2] == 0
            assert set(sent[before:]) == {("cuda", 0)}
            states = [flow.state for _, flow in flows if flow.started]
            assert len(states) == len(sent) - before
            assert {x.device.type for x in tensors_in(tuple(states))} == {"cpu"}


def test_models_that_need_whole_clips_refuse_to_be_shared():
    with pytest.raises(ValueError, match="cannot stream"):
        tiny(norm="group").encode(random_video(5), shard=Rank(0, 2))


@given(
    decoding=st.booleans(),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    tile=st.one_of(st.none(), st.tuples(st.integers(1, 6), st.integers(1, 6))),
    processes=st.integers(1, 9),
)
def test_tiles_cover_the_frame_once_and_are_not_too_large(decoding, size, tile, processes):
    network = VAE.decoder_network() if decoding else VAE.encoder_network()
    tile_size = None if tile is None else (8 * tile[0], 8 * tile[1])
    shares = share_out(network, Plan(tile_size, 2), 8 * size[0], 8 * size[1], processes)
    seen = torch.zeros(8 * size[0], 8 * size[1])
    for rows, columns in shares.tiles:
        seen[rows.start : rows.stop, columns.start : columns.stop] += 1
        if tile is not None:
            assert len(rows) <= tile_size[0] and len(columns) <= tile_size[1]
    assert torch.equal(seen, torch.ones_like(seen))
    assert len(shares.work) == processes
    assert max(shares.owners) < processes
    assert min(shares.owners) == 0
    idle = set(range(processes)) - set(shares.owners)
    assert all((shares.work[rank] == 0) == (rank in idle) for rank in range(processes))


@given(
    size=st.integers(1, 9),
    count=st.integers(1, 4),
    halo=st.integers(0, 3),
    slack=st.integers(0, 4),
)
def test_ends_are_fair(size, count, halo, slack):
    count = min(count, size)
    most = -(-size // count) + slack

    def work(start, stop):
        """Of a span with what it sees at each side, unless the axis ends there."""
        return min(stop + halo, size) - max(start - halo, 0)

    def largest(ends):
        return max(work(*span) for span in pairwise(ends))

    ends = find_balanced_ends(size, count, most, work)
    assert ends[0] == 0 and ends[-1] == size and len(ends) == count + 1
    possible = [(0, *inner, size) for inner in combinations(range(1, size), count - 1)]
    allowed = [other for other in possible if all(b - a <= most for a, b in pairwise(other))]
    assert tuple(ends) in allowed
    assert largest(ends) == min(map(largest, allowed))


def test_inner_tiles_are_smaller_for_they_overlap_more():
    shares = share_out(VAE.decoder_network(), Plan(None, 2), 8, 8 * 60, 3)
    first, inner, last = (len(columns) for _, columns in shares.tiles)
    assert inner < first and inner < last


def test_more_processes_take_less_time_each():
    network = VAE.decoder_network()
    slowest = [max(share_out(network, Plan(None, 2), 240, 320, n).work) for n in (1, 2, 4, 8)]
    assert all(after < 0.7 * before for before, after in pairwise(slowest))
