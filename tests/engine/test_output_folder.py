"""The folder of a long job: new, or of the same settings."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from wanvae.engine.files import FileError
from wanvae.engine.output_folder import describe_differences, refuse_nested, take_folder
from wanvae.errors import UserError


@dataclass(frozen=True)
class Recipe:
    salt: int = 1
    soup: str = "tomato"


def take(folder: Path, recipe: Recipe) -> bool:
    with ExitStack() as held:
        started = take_folder(
            folder / "recipe.json",
            recipe,
            "a soup",
            lambda ours, theirs: describe_differences(asdict(ours), asdict(theirs)),
            held,
        )
        assert (folder / ".lock").exists()
    return started


def test_a_new_folder_is_taken_and_the_same_settings_go_on(tmp_path: Path) -> None:
    assert not take(tmp_path / "a", Recipe())
    (tmp_path / "a" / ".c.0123abcd").write_text("half of a killed run")
    assert take(tmp_path / "a", Recipe())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["recipe.json"]


def test_other_settings_are_named(tmp_path: Path) -> None:
    take(tmp_path / "a", Recipe())
    with pytest.raises(UserError, match="a was written with other settings: salt is 1, not 2; "):
        take(tmp_path / "a", replace(Recipe(), salt=2))


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="has other files in it; name a new folder"):
        take(tmp_path, Recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"pepper": 1}')
    with pytest.raises(UserError, match="does not hold the settings of a soup of this version"):
        take(tmp_path, Recipe())


def test_a_folder_that_cannot_be_created_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        take(tmp_path / "file" / "a", Recipe())


def test_folders_inside_each_other_are_refused(tmp_path: Path) -> None:
    refuse_nested(tmp_path / "a", tmp_path / "b")
    for one, other in ((".", "a"), ("a", "."), ("a", "a")):
        with pytest.raises(UserError, match="name another"):
            refuse_nested(tmp_path / one, tmp_path / other)
