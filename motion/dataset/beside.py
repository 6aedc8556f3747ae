"""Files that belong to motion files by their names, such as sound."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from wanvae.engine.litter import is_litter, suffix_of


class FileFinder:
    """Finds what belongs to a motion file: a file of its name beside it, or in a folder for it.

    In such a folder it has the same path, or another path but a name that is there once.

    Args:
        folder: the folder of motion files.
        others: the files in it that are no motion files.
        what: what the files are, for people.
        suffixes: the suffixes of the files, in lower case.
        places: the names of folders for the files, in the folder of motion files or beside it.

    Attributes:
        notes: what people must know, one line for each motion file.
    """

    def __init__(
        self,
        folder: Path,
        others: Sequence[Path],
        what: str,
        suffixes: Collection[str],
        places: Sequence[str],
    ) -> None:
        self.notes: dict[Path, str] = {}
        self._folder, self._what = folder, what
        self._beside = {
            path.relative_to(folder).with_suffix(""): path
            for path in others
            if has_suffix(path, suffixes)
        }
        found = (place / name for place in (folder, folder.parent) for name in places)
        self._away = [list_names(place, suffixes) for place in found if place.is_dir()]

    def find(self, file: Path) -> Path | None:
        """Returns what belongs to a motion file; None if there is none."""
        name = file.relative_to(self._folder).with_suffix("")
        if name in self._beside:
            return self._beside[name]
        for names in self._away:
            found = names.get(name.as_posix()) or names.get(f"*/{name.name}", [])
            if len(found) > 1:
                shown = ", ".join(map(str, found[:2]))
                self.notes[file] = (
                    f"{file} has no {self._what}, because it may be of {shown}: rename one"
                )
            elif found:
                return found[0]
        return None


def list_names(place: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """Returns the files in a folder by their paths without suffix, and by "*/" and name.

    Of files of one path, which differ in the suffix, the first counts.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in place.rglob("*") if has_suffix(path, suffixes)):
        key = path.relative_to(place).with_suffix("").as_posix()
        if key not in found:
            found[key] = [path]
            found.setdefault(f"*/{path.stem}", []).append(path)
    return found


def has_suffix(path: Path, suffixes: Collection[str]) -> bool:
    """Whether a file has one of these suffixes, and is none that a system leaves."""
    return suffix_of(path.name) in suffixes and not is_litter(path.name)
