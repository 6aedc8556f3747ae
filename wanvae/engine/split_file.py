"""Tensors that are split over several files, which an index lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wanvae.engine.json_files import read_json
from wanvae.engine.stored_tensors import StoredFile, StoredTensors, damaged
from wanvae.engine.text import first_few
from wanvae.errors import UserError


def is_index(path: Path) -> bool:
    """Returns whether a file is called like an index of files with parts of a checkpoint."""
    return path.suffix == ".json" and ".index." in path.name


def parts_of(index: Path) -> dict[str, str]:
    """Returns the name of the file that holds each tensor.

    Raises:
        CheckpointError: the file is no such index, or names files of other directories.
    """
    try:
        content: Any = read_json(index)
    except UserError as error:
        raise damaged(index, error) from error
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not parts:
        raise damaged(index, "it has no weight_map, so it is no index of a checkpoint")
    for file in parts.values():
        if not isinstance(file, str) or Path(file).name != file or is_index(Path(file)):
            raise damaged(index, f"it names {file!r}, which is no file of tensors beside it")
    return parts


def open_split_file(index: Path, open_part: Callable[[Path], StoredFile]) -> StoredFile:
    """Opens all files that an index lists. Tensors are read when somebody asks for them.

    Args:
        open_part: opens one of the files.

    Raises:
        CheckpointError: the index or a file is missing or damaged, or a file lacks a tensor.
    """
    parts = parts_of(index)
    files = {name: open_part(index.parent / name) for name in sorted(set(parts.values()))}
    lost = [name for name, file in parts.items() if name not in files[file].tensors]
    if lost:
        raise damaged(index, f"its files do not hold {first_few(lost)}")
    tensors = StoredTensors(
        {name: files[file].tensors.outline[name] for name, file in parts.items()},
        lambda name: files[parts[name]].tensors[name],
        shared=any(file.tensors.shared for file in files.values()),
    )
    container = next(iter(files.values())).container
    return StoredFile(
        tensors,
        f"{len(files)} files of {container}",
        size=sum(file.size for file in files.values()),
        quantized={name: kind for file in files.values() for name, kind in file.quantized.items()},
    )
