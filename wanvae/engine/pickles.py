"""Reading what ``torch.save`` writes. Nothing in a file is run, whatever is in it."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from wanvae.engine.stored_tensors import CheckpointError, StoredFile, damaged, stored
from wanvae.engine.text import first_few

ZIP_MAGIC = b"PK\x03\x04"
# How torch.save began its files before it wrote zip archives.
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# Bytes of the longest pickle without its tensors, and dicts within dicts, entries of all dicts.
# Files of large models have a tenth of each.
LONGEST_PICKLE = 50_000_000
DEEPEST = 20
MOST_ENTRIES = 1_000_000


def load_pickle(path: Path) -> object:
    """Returns the content of a file that ``torch.save`` wrote; tensors may be in the file itself.

    Raises:
        CheckpointError: the file holds objects other than tensors and plain values, is damaged, or
            claims to be larger than it is.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            if zipped:
                check_archive(path)
            file.seek(0)
            # Only zip archives can be mapped, and only by path, which must not look like
            # safetensors.
            mapped = zipped and path.suffix != ".safetensors"
            source = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise CheckpointError(
                f"{path} holds objects that are not tensors ({forbidden[1]}) and was not loaded; "
                "nothing of it was run. Save its tensors alone, best as .safetensors"
            ) from error
        raise damaged(path, error) from error


def check_archive(path: Path) -> None:
    """Checks that what a zip archive holds is not larger than the archive.

    ``torch.save`` never compresses.

    Raises:
        CheckpointError: entries are compressed or overlap, or the pickle is very long.
        zipfile.BadZipFile: it is no archive.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript program, which would have to be run; save its tensors alone"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path} is no checkpoint: it is an archive that torch.save did not write, with "
            f"{first_few([entry.filename for entry in entries])}; unpack it first"
        )
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(
                f"{path} is no checkpoint: it is a compressed archive, and torch.save does not "
                "compress; unpack it first"
            )
        if entry.filename.endswith(".pkl") and entry.file_size > LONGEST_PICKLE:
            raise damaged(path, f"its pickle of {entry.file_size} bytes is too long")
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise damaged(path, f"it claims to hold {total} bytes, but has {size}")


def open_pickle(path: Path) -> StoredFile:
    """Reads a file that ``torch.save`` wrote. Names in dicts within dicts are joined by dots.

    Items of lists are named by their numbers.

    Raises:
        CheckpointError: as ``load_pickle``, or dicts are nested without end.
    """
    tensors: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, value in entries_of(load_pickle(path), path):
        if name in tensors:
            raise damaged(path, f"two tensors are called {name}")
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
            tensors[name] = value.detach()
        else:
            ignored.append(name)
    return StoredFile(stored(tensors), "pickle", {}, tuple(ignored), path.stat().st_size)


def entries_of(content: object, path: Path) -> Iterator[tuple[str, object]]:
    """Yields the values in dicts and lists within dicts, with their names joined by dots.

    Raises:
        CheckpointError: there are very many, or the dicts are very deep, as in a dict that is in
            itself.
    """
    waiting = [("", content, 0)]
    seen = 0
    while waiting:
        prefix, value, depth = waiting.pop()
        if isinstance(value, list | tuple) and any(isinstance(v, dict | Tensor) for v in value):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            yield prefix, value
            continue
        seen += len(value)
        if depth == DEEPEST or seen > MOST_ENTRIES:
            raise CheckpointError(
                f"{path} is no checkpoint: its dicts are nested without end; save named tensors"
            )
        start = f"{prefix}." if depth else ""
        waiting += [(f"{start}{key}", item, depth + 1) for key, item in reversed(value.items())]
