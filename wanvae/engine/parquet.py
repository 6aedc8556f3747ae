"""Parquet files, which need pyarrow."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

NEEDED = "needs pyarrow: pip install 'wanvae[parquet]'"


def require_pyarrow() -> None:
    """Raises UserError if pyarrow is missing, which writes Parquet files."""
    if find_spec("pyarrow") is None:
        raise UserError(f"writing Parquet files {NEEDED}")


def open_parquet(path: Location) -> ParquetFile:
    """Opens a Parquet file.

    Raises:
        UserError: pyarrow is missing, or the file is damaged.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"it is a Parquet file, which {NEEDED}") from None
    try:
        # What is opened here has to be closed by whoever has it; the bytes of a file need not.
        return ParquetFile(BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path)
    except (ArrowException, OSError) as error:
        raise UserError(f"it is a damaged Parquet file ({error})") from error
