"""Files of many clips of tokens: tars as ``webdataset`` reads them, and Parquet.

A sample of a tar has the indices (T', Q) as ``.npy``, what describes the clip as ``.json``, and its
first caption as ``.txt``. A row of a Parquet file has the same in columns. Both hold where the
tokens come from, so they can be turned into motion again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from motion.dataset.records import TokenFormat, TokenRecord
from motion.tokens import (
    Origin,
    Tokens,
    find_smallest_type,
    parse_origin,
    write_origin,
    write_state,
)
from wanvae.engine.config import from_json_dict, parse_json, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.engine.parquet import open_parquet, require_pyarrow
from wanvae.errors import UserError

# What reading a damaged file raises.
DAMAGE = (OSError, UserError, KeyError, TypeError, ValueError, tarfile.TarError)


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """A clip in a file of tokens.

    Attributes:
        record: the clip, as in the index.
        tokens: its tokens, with their origin.
    """

    record: TokenRecord
    tokens: Tokens

    @property
    def origin(self) -> Origin:
        """Where the tokens come from."""
        # Tokens of an unknown origin are refused before they are stored.
        assert self.tokens.origin is not None
        return self.tokens.origin

    @property
    def values(self) -> dict[str, Any]:
        """What is stored besides the indices, as JSON has it."""
        origin = {"motion": write_origin(self.origin), "state": write_state(self.origin)}
        return {**to_json_dict(self.record), "fps": self.origin.fps, **origin}

    @property
    def smallest(self) -> Tensor:
        """The indices in the smallest integer type that holds all codes."""
        return self.tokens.indices.to(find_smallest_type(self.origin.codes))


def parse_stored(values: Mapping[str, Any], indices: Tensor) -> StoredTokens:
    """Returns the clip of ``StoredTokens.values``; UserError if they are not valid."""
    origin = parse_origin(values["motion"], values["state"])
    others = ("fps", "motion", "state")
    record = from_json_dict(TokenRecord, {k: x for k, x in values.items() if k not in others})
    return StoredTokens(record, Tokens(indices.long(), origin))


def write_tar(path: Path, clips: Iterable[StoredTokens]) -> None:
    """Writes an uncompressed tar with the members of each clip."""
    # Imported here because it imports a reader of videos, which ``import motion`` does not need.
    from wanvae.folders.tars import webdataset_key

    taken: set[str] = set()
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for clip in clips:
            key = webdataset_key(clip.record.name, taken)
            taken.add(key)
            buffer = io.BytesIO()
            np.save(buffer, clip.smallest.numpy())
            add_member(tar, f"{key}.npy", buffer.getvalue())
            add_member(tar, f"{key}.json", json.dumps(clip.values).encode())
            if captions := clip.record.captions:
                add_member(tar, f"{key}.txt", captions[0].text.encode(errors="replace"))


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar. Time and owner stay 0, so that the bytes do not depend on the run."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def read_tar(path: Path) -> list[StoredTokens]:
    """Reads what ``write_tar`` wrote."""
    found = []
    indices = torch.empty(0)
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            content = b"" if file is None else file.read()
            if member.name.endswith(".npy"):
                array = np.load(io.BytesIO(content), allow_pickle=False)
                indices = torch.from_numpy(array.astype(np.int64))
            elif member.name.endswith(".json"):
                found.append(parse_stored(parse_json(content), indices))
    return found


def write_parquet(path: Path, clips: Iterable[StoredTokens]) -> None:
    """Writes a Parquet file with a row for each clip. It needs pyarrow."""
    require_pyarrow()
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {
            **clip.values,
            "caption": next((caption.text for caption in clip.record.captions), None),
            "indices": clip.smallest.tolist(),
        }
        for clip in clips
    ]
    # A caption, or a word.
    timed = pa.struct({"text": pa.string(), "start": pa.float64(), "stop": pa.float64()})
    numbers = dict.fromkeys(("rate", "start", "stop"), pa.int64())
    audio = pa.struct({"path": pa.string(), **numbers})
    fields = {
        **dict.fromkeys(("name", "source", "file", "caption"), pa.string()),
        "indices": pa.list_(pa.list_(pa.int32())),
        **dict.fromkeys(("tokens", "frames"), pa.int64()),
        "fps": pa.float64(),
        "captions": pa.list_(timed),
        "speaker": pa.string(),
        "audio": audio,
        "words": pa.list_(timed),
        **dict.fromkeys(("motion", "state"), pa.string()),
    }
    with atomic_path(path) as temporary:
        parquet.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), temporary)


def read_parquet(path: Path) -> list[StoredTokens]:
    """Reads what ``write_parquet`` wrote."""
    with open_parquet(path) as file:
        rows = file.read().to_pylist()
    found = []
    for row in rows:
        indices = torch.tensor(row.pop("indices"))
        row.pop("caption")
        found.append(parse_stored(row, indices))
    return found


@dataclass(frozen=True)
class Container:
    """How files of many clips are written and read."""

    write: Callable[[Path, Iterable[StoredTokens]], None]
    read: Callable[[Path], list[StoredTokens]]


# The containers of many clips, by their format, which is their suffix too.
CONTAINERS: Mapping[TokenFormat, Container] = {
    "tar": Container(write_tar, read_tar),
    "parquet": Container(write_parquet, read_parquet),
}


def read_container(path: Path) -> Sequence[StoredTokens]:
    """Reads a file of many clips.

    Raises:
        UserError: the file is damaged, or not there.
    """
    container = next(x for name, x in CONTAINERS.items() if path.suffix == f".{name}")
    try:
        return container.read(path)
    except DAMAGE as error:
        raise UserError(
            f"{path} cannot be read as tokens ({error}); delete it, and run tokenize again"
        ) from error
