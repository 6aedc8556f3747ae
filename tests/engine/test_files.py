from __future__ import annotations

from pathlib import Path

import pytest

from wanvae.engine.files import FileError, atomic_directory, atomic_path


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
