"""Parquet files, which need pyarrow."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


def open_parquet(path: Location) -> ParquetFile:
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
        # What is opened here has to be closed by whoever has it; the bytes of a file need not.
        return ParquetFile(BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path)
    except (ArrowException, OSError) as error:
        raise UserError(f"it is a damaged Parquet file ({error})") from error
