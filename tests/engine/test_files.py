from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanvae.engine.files import (
    TEMPORARY,
    FileError,
    atomic_directory,
    atomic_path,
    longest_name,
    remove_temporaries,
    temporary_sibling,
)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left")])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, failure: object) -> None:
    path = tmp_path / "model.txt"
    path.write_text("old")
    with pytest.raises((FileError, RuntimeError, KeyboardInterrupt)):  # noqa: SIM117
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text("half of the n")
            raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as temporary:
        (temporary / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(target) as temporary:
        (temporary / "whole").touch()
    assert [p.name for p in target.iterdir()] == ["whole"]
    with pytest.raises(FileError, match="it exists"), atomic_directory(target):
        pass
    assert [p.name for p in target.iterdir()] == ["whole"]


def names() -> st.SearchStrategy[str]:
    """Names of files of 1 to 255 bytes, of characters of 1 to 4 bytes, with and without suffix."""
    characters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
    text = st.builds(str.__mul__, st.text(characters, min_size=1, max_size=4), st.integers(1, 255))
    suffix = st.sampled_from(["", ".mp4", ".safetensors"])
    named = st.builds(str.__add__, text, suffix)
    return named.filter(lambda name: len(os.fsencode(name)) <= 255 and name not in (".", ".."))


@given(name=names())
def test_a_temporary_name_is_never_too_long(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    temporary = temporary_sibling(path)
    assert len(os.fsencode(temporary.name)) <= longest_name(path.parent)
    assert TEMPORARY.fullmatch(temporary.name)
    if 0 < len(os.fsencode(path.suffix)) <= 32:
        assert temporary.suffix == path.suffix


@pytest.mark.parametrize(
    "name", ["a" * 251 + ".mp4", "é" * 125 + ".mp4", "a." + "b" * 253, "\udce9" * 251 + ".mp4"]
)
def test_files_with_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("new")
    with atomic_directory(tmp_path / name[1:]) as temporary:
        (temporary / "file").touch()
    assert sorted(os.listdir(tmp_path)) == sorted([name, name[1:]])
    temporary_sibling(tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert len(os.listdir(tmp_path)) == 2


def test_a_name_that_is_too_long_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be written .*name too long"):  # noqa: SIM117
        with atomic_path(tmp_path / ("a" * 252 + ".mp4")):
            raise AssertionError("it is refused first")
    assert list(tmp_path.iterdir()) == []
