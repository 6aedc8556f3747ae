"""Processes share work: each item goes to one process, and their work is about the same."""

from __future__ import annotations

from accelerate import PartialState
from hypothesis import given
from hypothesis import strategies as st

from wanvae.engine.sharing import balanced_share, neighbouring_share, progress_bar, share_files


def test_neighbouring_shares_are_balanced_and_in_order() -> None:
    sizes = [5, 1, 1, 1, 9, 2, 3, 2, 6, 6]
    items = list(enumerate(sizes))
    for ranks in (1, 2, 3, 20):
        shares = [neighbouring_share(items, sizes, rank, ranks) for rank in range(ranks)]
        assert [item for share in shares for item in share] == items
        loads = [sum(size for _, size in share) for share in shares]
        assert max(loads) <= 36 / ranks + 9


@given(sizes=st.lists(st.integers(1, 50), max_size=12), ranks=st.integers(1, 4))
def test_balanced_shares_differ_by_one_item_at_most(sizes: list[int], ranks: int) -> None:
    items = list(enumerate(sizes))
    shares = [balanced_share(items, sizes, rank, ranks) for rank in range(ranks)]
    assert sorted(item for share in shares for item in share) == items
    work = [[size for _, size in share] for share in shares]
    # Every process starts with its largest item.
    assert all(share == sorted(share, reverse=True) for share in work)
    for share in work:
        assert sum(share[:-1]) <= min(map(sum, work))


def test_a_process_alone_takes_all_files() -> None:
    assert list(share_files("abc", PartialState(cpu=True), progress=False)) == ["a", "b", "c"]


def test_only_the_first_process_shows_its_progress() -> None:
    processes = PartialState(cpu=True)
    assert not progress_bar(processes, "file", total=2, show=True).disable
    assert progress_bar(processes, "file", total=2, show=False).disable
