"""What readers of latents share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from safetensors import SafetensorError

from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.storage.temporary_files import FullDiskError
from wanvae.errors import UserError

# The format in the metadata of our own files.
FORMAT = "wanvae-latents"
# The only tensor in files without a variance, and in files that people save themselves.
OTHER_NAME = "latents"


@contextmanager
def readable(path: str | PathLike[str]) -> Iterator[None]:
    """Turns errors in reading latents from ``path`` into a CheckpointError."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; check the path") from None
    except (CheckpointError, FullDiskError):
        raise
    except (SafetensorError, OSError, UserError) as error:
        raise CheckpointError(
            f"{path} cannot be read as latents: {error}; encode it again, or give a safetensors "
            f"file with a tensor {OTHER_NAME!r}"
        ) from error
