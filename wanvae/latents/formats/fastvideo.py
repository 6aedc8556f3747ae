"""Latents as FastVideo caches them: Parquet files with a row for each clip.

``vae_latent_bytes`` are raw latents ``(C, T, H, W)``, and ``vae_latent_shape`` and
``vae_latent_dtype`` say how to read them. FastVideo normalizes latents when it trains.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wanvae.engine.parquet import open_parquet
from wanvae.errors import UserError
from wanvae.latents.formats.base import Format, Found

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAGIC = b"PAR1"
BYTES, SHAPE, DTYPE = "vae_latent_bytes", "vae_latent_shape", "vae_latent_dtype"
NAME = "id"
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
# How many times larger than its file a column of latents may be. Latents hardly compress.
LARGEST_GROWTH = 20


def find(path: Path) -> list[Found]:
    """Returns the latents of all clips; none if there is no column of latents.

    Raises:
        UserError: pyarrow is missing, or the file is damaged.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        if BYTES not in names:
            return []
        check_growth(file, path)
        wanted = [name for name in (NAME, SHAPE, DTYPE) if name in names]
        rows = [row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist()]
    return [
        Found(str(number), shape_of(row, number), str(row.get(NAME) or ""), axes_in(row))
        for number, row in enumerate(rows)
        if row.get(SHAPE)
    ]


def check_growth(file: ParquetFile, path: Path) -> None:
    """Raises UserError if latents are much larger than the file, as in a file that is a trap."""
    size = path.stat().st_size
    column = file.schema_arrow.names.index(BYTES)
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        columns = (row_group.column(number) for number in range(row_group.num_columns))
        unpacked = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == BYTES)
        if unpacked > LARGEST_GROWTH * size:
            raise UserError(
                f"its column {column} claims {unpacked} bytes, but the file has only {size}"
            )


def shape_of(row: dict[str, Any], number: int) -> tuple[int, ...]:
    """Returns the shape of the latents of a row.

    Raises:
        UserError: it is none.
    """
    shape = row[SHAPE]
    if isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape):
        return tuple(shape)
    raise UserError(f"its row {number} has no shape, but {shape!r}")


def axes_in(row: dict[str, Any]) -> Any:
    """Returns the order of the axes of the latents of a row."""
    return "CHW" if len(row[SHAPE]) == 3 else "CTHW"


def load(path: Path, place: str) -> Tensor:
    """Returns the latents of a row as they are stored.

    Raises:
        UserError: the row is damaged.
    """
    with open_parquet(path) as file:
        check_growth(file, path)
        row = read_row(file, int(place))
    shape, content = shape_of(row, int(place)), row[BYTES]
    dtype = DTYPES.get(str(row.get(DTYPE)).removeprefix("torch."))
    if dtype is None:
        raise UserError(f"its row {place} has latents of {row.get(DTYPE)!r}")
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
        raise UserError(f"the latents of its row {place} do not have the size of {list(shape)}")
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)


def read_row(file: ParquetFile, number: int) -> dict[str, Any]:
    """Returns the latents of a row, with no more than one row in memory."""
    from pyarrow import ArrowException

    group = 0
    while number >= file.metadata.row_group(group).num_rows:
        number -= file.metadata.row_group(group).num_rows
        group += 1
    try:
        batches = file.iter_batches(1, row_groups=[group], columns=[BYTES, SHAPE, DTYPE])
        for _ in range(number):
            next(batches)
        return next(batches).to_pylist()[0]
    except (ArrowException, OSError, StopIteration) as error:
        raise UserError(f"it is a damaged Parquet file ({error})") from error


FASTVIDEO = Format("fastvideo", "FastVideo", "raw", find)
