"""Parquet files, which need pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wanvae.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


def open_parquet(path: Path) -> ParquetFile:
    """Opens a Parquet file.

    Raises:
        UserError: pyarrow is missing, or the file is damaged.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(
            "it is a Parquet file, which needs pyarrow: pip install 'wanvae[parquet]'"
        ) from None
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"it is a damaged Parquet file ({error})") from error
