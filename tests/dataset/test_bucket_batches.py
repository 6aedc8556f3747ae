"""BucketBatches: one shape in a batch, every clip once, equal shares, and runs that go on."""

import json
import logging
import math
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.helpers import LAUNCHER
from wanvae import BucketBatches
from wanvae.errors import UserError

SHAPES = [(2, 1, 4, 6), (2, 3, 4, 6), (2, 3, 6, 4), (2, 5, 6, 4), (2, 5, 8, 8)]
PROGRAM = Path(__file__).with_name("bucket_program.py")

data_sets = st.lists(st.sampled_from(SHAPES), min_size=12, max_size=80)


class Clips(Dataset):
    """Clips of shapes; the numbers in a clip tell which it is."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes = list(shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor:
        return torch.full(self.shapes[index], float(index))


def numbers(batch: Tensor) -> list[int]:
    """The numbers of the clips in a batch."""
    return [int(clip.flatten()[0]) for clip in batch]


def shares(shapes: Sequence[tuple[int, ...]], size: int, processes: int, **options: object):
    """The batches of each process in an epoch."""
    return [
        list(BucketBatches(shapes, size, processes=processes, process=process, **options))
        for process in range(processes)
    ]


def some_shapes(seed: int = 0, count: int = 60) -> list[tuple[int, ...]]:
    chosen = torch.randint(0, len(SHAPES), (count,), generator=torch.Generator().manual_seed(seed))
    return [SHAPES[number] for number in chosen]


# Batches of an epoch


@given(
    shapes=data_sets,
    size=st.integers(1, 9),
    processes=st.integers(1, 12),
    seed=st.integers(0, 99),
    shuffle=st.booleans(),
)
def test_every_clip_is_in_one_batch_of_one_shape(
    shapes: list[tuple[int, ...]], size: int, processes: int, seed: int, shuffle: bool
) -> None:
    options = {"seed": seed, "shuffle": shuffle}
    batches = shares(shapes, size, processes, **options)
    assert len({len(share) for share in batches}) == 1
    together = [batch for step in zip(*batches, strict=True) for batch in step]
    counts = Counter(chain(*together))
    assert sorted(counts) == list(range(len(shapes)))
    # Clips come twice only if batches of one clip do not fill the last step.
    assert max(counts.values()) == 1 or set(map(len, together)) == {1}
    assert sum(counts.values()) - len(shapes) < processes
    for batch in together:
        assert 1 <= len(batch) <= size
        assert len({shapes[clip] for clip in batch}) == 1
    whole = BucketBatches(shapes, size, processes=processes, **options)
    assert list(whole) == together and len(whole) == len(together)
    one = BucketBatches(shapes, size, processes=processes, process=processes - 1, **options)
    assert len(one) == len(batches[-1])


@given(
    shapes=data_sets,
    size=st.integers(1, 4),
    processes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_without_the_last_batches_all_are_full(
    shapes: list[tuple[int, ...]], size: int, processes: int, seed: int
) -> None:
    full = sum(count // size for count in Counter(shapes).values())
    if full < processes:
        with pytest.raises(UserError, match="too few clips for a batch of"):
            shares(shapes, size, processes, drop_last=True)
        return
    batches = shares(shapes, size, processes, seed=seed, drop_last=True)
    together = list(chain(*batches))
    assert {len(share) for share in batches} == {full // processes}
    assert all(len(batch) == size for batch in together)
    assert all(len({shapes[clip] for clip in batch}) == 1 for batch in together)
    assert len(set(chain(*together))) == len(together) * size
    assert len(BucketBatches(shapes, size, processes=processes, drop_last=True)) == len(together)


@given(shapes=data_sets, size=st.integers(2, 6), processes=st.integers(2, 6))
def test_the_processes_have_about_the_same_work(
    shapes: list[tuple[int, ...]], size: int, processes: int
) -> None:
    """Steps of batches of different work are few: only where the work changes in its order."""
    batches = shares(shapes, size, processes)
    work = [
        [len(batch) * math.prod(shapes[batch[0]]) for batch in step]
        for step in zip(*batches, strict=True)
    ]
    kinds = len({number for step in work for number in step})
    assert sum(max(step) > min(step) for step in work) < kinds
    ordered = sorted(work, reverse=True)
    assert all(min(a) >= max(b) for a, b in pairwise(ordered))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    shapes = some_shapes()
    batches, again = BucketBatches(shapes, 4, seed=3), BucketBatches(shapes, 4, seed=3)
    first = list(batches)
    assert first == list(batches) == list(again) != list(BucketBatches(shapes, 4, seed=4))
    batches.set_epoch(1)
    second = list(batches)
    # Other clips come together, in another order.
    assert not {frozenset(batch) for batch in first if len(batch) > 2} & set(map(frozenset, second))
    again.set_epoch(1)
    assert list(again) == second
    batches.set_epoch(0)
    assert list(batches) == first
    # So that a run goes on with other versions of Python, PyTorch and this package.
    assert first[:3] == [[17, 52, 19, 2], [10, 42, 58, 49], [51, 26, 1, 18]]


def test_without_shuffling_the_largest_batches_come_first() -> None:
    shapes = some_shapes()
    batches = list(BucketBatches(shapes, 4, shuffle=False))
    work = [len(batch) * math.prod(shapes[batch[0]]) for batch in batches]
    assert work == sorted(work, reverse=True)
    assert all(batch == sorted(batch) for batch in batches)


def test_clips_that_never_come_are_told(caplog: pytest.LogCaptureFixture) -> None:
    BucketBatches([SHAPES[0]] * 8 + [SHAPES[1]] * 3 + [SHAPES[2]], 4, drop_last=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "drop_last leaves out 4 clips in every epoch, because there are fewer than 4 of their shape"
    )


def test_clips_that_come_twice_are_told(caplog: pytest.LogCaptureFixture) -> None:
    batches = BucketBatches(SHAPES[:3] * 3, 1, processes=4)
    assert caplog.messages == [
        "3 of 9 clips come twice in every epoch, so that all 4 processes have as many"
    ]
    twice = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        counts = Counter(chain(*batches))
        assert sorted(counts) == list(range(9)) and sorted(counts.values()) == 6 * [1] + 3 * [2]
        twice.append(frozenset(clip for clip, count in counts.items() if count == 2))
    assert len(set(twice)) > 1  # not always the same clips
    # More processes than clips.
    assert sorted(map(len, shares(SHAPES[:2], 4, 5))) == 5 * [1]


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"processes": 0}, "processes must be 1 or more, not 0"),
        ({"processes": 2, "process": 2}, "process must be from 0 to 1"),
        ({"processes": 2, "process": -1}, "process must be from 0 to 1"),
    ],
)
def test_impossible_arguments(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BucketBatches(SHAPES, **{"batch_size": 1, **options})


def test_a_data_set_is_no_list_of_shapes() -> None:
    with pytest.raises(UserError, match=r"takes the shapes of the clips: give dataset\.shapes"):
        BucketBatches(Clips(SHAPES), 4)


@pytest.mark.parametrize(("clips", "drop_last"), [(0, False), (0, True), (3, True)])
def test_too_few_clips(clips: int, drop_last: bool) -> None:
    batches = BucketBatches(SHAPES[:clips], 2, processes=2, drop_last=drop_last)
    assert len(batches) == 0
    with pytest.raises(UserError, match="too few clips for a batch of 2 in each of 2 processes"):
        list(batches)


def test_accelerate_must_not_share_out_a_share() -> None:
    batches = BucketBatches(some_shapes(), 4, processes=2, process=0)
    with pytest.raises(UserError, match="share out the batches of one process once more"):
        BatchSamplerShard(batches, 2, 0)
    assert BatchSamplerShard(BucketBatches(some_shapes(), 4, processes=2), 2, 0).batch_size is None


# Going on


def passes(batches: BucketBatches, loader: DataLoader, epochs: int) -> Iterator[list[int]]:
    """The clips of each batch until so many epochs are over."""
    while batches.epoch < epochs:
        yield from map(numbers, batches.track(loader))


@given(
    shapes=data_sets,
    size=st.integers(1, 5),
    processes=st.integers(1, 3),
    stops=st.lists(st.integers(0, 30), max_size=4),
    drop_last=st.booleans(),
)
def test_a_run_that_goes_on_is_as_one_that_never_stopped(
    shapes: list[tuple[int, ...]], size: int, processes: int, stops: list[int], drop_last: bool
) -> None:
    if sum(count // size for count in Counter(shapes).values()) < processes:
        drop_last = False
    options = {"processes": processes, "process": processes - 1, "drop_last": drop_last}

    def start() -> tuple[BucketBatches, DataLoader]:
        batches = BucketBatches(shapes, size, **options)
        return batches, DataLoader(Clips(shapes), batch_sampler=batches)

    expected = list(passes(*start(), epochs=2))
    seen, state = [], None
    for stop in [*stops, None]:
        batches, loader = start()
        if state is not None:
            batches.load_state_dict(json.loads(state))
        seen += islice(passes(batches, loader, epochs=2), stop)
        state = json.dumps(batches.state_dict())
    assert seen == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_have_asked_for_ahead_does_not_count(workers: int) -> None:
    shapes = some_shapes()
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    batches = BucketBatches(shapes, 4)
    loader = DataLoader(Clips(shapes), batch_sampler=batches, **options)
    before = [numbers(batch) for batch in islice(batches.track(loader), 3)]
    again = BucketBatches(shapes, 4)
    again.load_state_dict(batches.state_dict())
    rest = [numbers(batch) for batch in again.track(DataLoader(Clips(shapes), batch_sampler=again))]
    assert before + rest == list(BucketBatches(shapes, 4))
    # The same loader goes on where its loop has stopped, too.
    assert [numbers(batch) for batch in batches.track(loader)] == rest
    assert batches.state_dict() == again.state_dict() | {"epoch": 1, "step": 0}
    assert len(list(batches.track(loader))) == len(batches) and batches.epoch == 2


def test_a_state_before_the_end_of_an_epoch_is_told_apart() -> None:
    """A training saves after its last step too, before the loop knows that it is the last one."""
    shapes = some_shapes(count=20)
    batches = BucketBatches(shapes, 4)
    for _ in batches.track(batches):
        state = batches.state_dict()
    assert (state["epoch"], state["step"]) == (0, len(batches))
    again = BucketBatches(shapes, 4)
    again.load_state_dict(state)
    assert list(again.track(again)) == [] and again.epoch == 1
    assert next(again.track(again)) == next(iter(batches))


def test_a_loader_of_accelerate_does_not_start_at_the_first_epoch() -> None:
    """It counts epochs itself, from 0, and sets them in its sampler if there is one process."""
    batches, shapes = BucketBatches(some_shapes(), 4), some_shapes()
    batches.set_epoch(2)
    second = list(batches)
    for _ in islice(batches.track(batches), 3):
        state = batches.state_dict()
    again = BucketBatches(shapes, 4)
    again.load_state_dict(state)
    loader = DataLoaderShard(Clips(shapes), batch_sampler=again)
    assert [numbers(batch) for batch in again.track(loader)] == second[3:]
    again.set_epoch(3)  # as loops over epochs do
    third = [numbers(batch) for batch in again.track(loader)]
    batches.set_epoch(3)
    assert third == list(batches)


def test_batches_that_nothing_counts_have_no_state() -> None:
    batches = BucketBatches(some_shapes(), 4)
    assert batches.state_dict()["step"] == 0
    next(iter(batches))
    with pytest.raises(UserError, match=r"loop over batches.track\(loader\)"):
        batches.state_dict()
    next(batches.track(batches))
    assert batches.state_dict()["step"] == 1


def test_a_loader_of_other_batches_is_told() -> None:
    batches = BucketBatches(some_shapes(), 4)
    with pytest.raises(UserError, match=r"the loader ended after 5 batches, not \d+: it must take"):
        list(batches.track(range(5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 3}, "batch_size is 4, not 3"),
        ({"seed": 1}, "seed is 0, not 1"),
        ({"processes": 3}, "processes is 2, not 3"),
        ({"drop_last": True}, "drop_last is False, not True"),
        ({"shuffle": False}, "shuffle is True, not False"),
        ({"shapes": some_shapes(1)}, "clips is '"),
    ],
)
def test_other_batches_do_not_go_on(change: dict[str, object], message: str) -> None:
    options = {"shapes": some_shapes(), "batch_size": 4, "processes": 2}
    state = BucketBatches(**options).state_dict()
    with pytest.raises(UserError, match=message):
        BucketBatches(**{**options, **change}).load_state_dict(state)
    with pytest.raises(UserError, match="these are no batches of clips, but lr"):
        BucketBatches(**options).load_state_dict({"lr": 1})


# accelerate


def launch(folder: Path, *arguments: object) -> list[dict[str, object]]:
    """Runs the program in two processes; gives what each of them has seen, in its own order."""
    command = [*LAUNCHER, str(PROGRAM), str(folder), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_accelerate_gives_each_process_its_batches(processes: int, drop_last: bool) -> None:
    batches = BucketBatches(some_shapes(), 4, processes=processes, drop_last=drop_last)
    parts = [BatchSamplerShard(batches, processes, rank) for rank in range(processes)]
    assert [list(part) for part in parts] == shares(
        some_shapes(), 4, processes, drop_last=drop_last
    )
    assert {len(part) for part in parts} == {len(batches) // processes}


@pytest.mark.slow
@pytest.mark.parametrize("drop_last", [False, True])
def test_two_processes_of_accelerate(tmp_path: Path, drop_last: bool) -> None:
    """Each gets its share, once; a run that is interrupted ends with the same weights."""
    options = ["--drop_last"] if drop_last else []
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = launch(whole, *options)
    first = launch(stopped, *options, "--stop", 5)
    rest = launch(stopped, *options, "--resume")
    shapes = expected[0]["shapes"]
    for rank in range(2):
        assert len(first[rank]["seen"]) == 5
        assert first[rank]["seen"] + rest[rank]["seen"] == expected[rank]["seen"]
        assert rest[rank]["weights"] == expected[rank]["weights"]
    assert expected[0]["weights"] == expected[1]["weights"]
    size, epochs = 4, 2
    options = {"drop_last": drop_last, "processes": 2}
    planned = BucketBatches(shapes, size, **options)
    for epoch in range(epochs):
        planned.set_epoch(epoch)
        steps = len(planned) // 2
        seen = [expected[rank]["seen"][epoch * steps : (epoch + 1) * steps] for rank in range(2)]
        assert [batch for step in zip(*seen, strict=True) for batch in step] == list(planned)
