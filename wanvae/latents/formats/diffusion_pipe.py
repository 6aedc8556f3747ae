"""Latents as diffusion-pipe caches them: a folder with ``metadata.db`` and ``shard_N.bin``.

A shard holds what ``torch.save`` wrote of each clip, one after the other: a dict with ``latents``
``(C, T, H, W)``, normalized, and ``image_spec``, the tar and path of the video. The database, of
SQLite, has a table ``items`` with shard and number of each clip, and a table ``shard_N`` with
offset and size of each clip in a shard.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePath
from typing import IO

from torch import Tensor

from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.files import atomic_path
from wanvae.engine.pickles import load_pickle
from wanvae.engine.storage.temporary_files import temporary_folder
from wanvae.errors import UserError
from wanvae.latents.formats.base import Format, Found
from wanvae.latents.formats.layout import ClipFacts, Condition, Layout, write_archive
from wanvae.latents.spool import LatentsSpool

DATABASE = "metadata.db"
# The key of the latents of a clip, and of the tar and path of its video.
LATENTS, SOURCE = "latents", "image_spec"
# What identifies the list of videos of a cache that this package writes.
FINGERPRINT = "wanvae"
# Bytes that are copied at once.
BLOCK = 2**20


def find(folder: Path) -> list[Found]:
    """Returns the latents of all clips; none if the database is of text embeddings.

    Raises:
        UserError: the folder is damaged.
    """
    found: list[Found] = []
    for number, (shard, offset, size) in enumerate(read_items(folder)):
        place = f"{shard}:{offset}:{size}"
        item = read_item(folder, place)
        latents = item.get(LATENTS)
        if not isinstance(latents, Tensor):
            if found:
                raise UserError(f"its clip {number} has no latents")
            return []
        found.append(Found(place, tuple(latents.shape), name_of(item.get(SOURCE)), "CTHW"))
    return found


def name_of(source: object) -> str:
    """Returns the name of a clip by the tar and path of its video; empty if they are not told."""
    path = source[-1] if isinstance(source, (list, tuple)) and source else None
    return PurePath(path).stem if isinstance(path, str) else ""


def read_items(folder: Path) -> list[tuple[int, int, int]]:
    """Returns the shard, offset and size of each clip.

    Raises:
        UserError: the database is damaged or not one of diffusion-pipe.
    """
    try:
        with closing(open_database(folder / DATABASE)) as database:
            tables = real_tables(database)
            if "items" not in tables:
                raise UserError(f"its {DATABASE} has no table of clips")
            items = database.execute("SELECT shard, shard_index FROM items").fetchall()
            places = {
                shard: database.execute(f"SELECT offset, size FROM shard_{shard}").fetchall()
                for shard in {shard for shard, _ in items if type(shard) is int}
                if f"shard_{shard}" in tables
            }
    except sqlite3.Error as error:
        raise UserError(f"its {DATABASE} is damaged ({error})") from error
    return [find_place(places, shard, number) for shard, number in items]


def open_database(path: Path) -> sqlite3.Connection:
    """Opens a database that nobody changes, and lets it run nothing of its own."""
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    database.execute("PRAGMA trusted_schema = OFF")
    return database


def real_tables(database: sqlite3.Connection) -> set[str]:
    """Returns the names of tables that are no views and compute nothing."""
    rows = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    computing = ("VIRTUAL", "GENERATED", " AS ")
    return {
        name
        for name, sql in rows
        if isinstance(sql, str) and not any(word in sql.upper() for word in computing)
    }


def find_place(
    places: dict[int, list[tuple[object, object]]], shard: object, number: object
) -> tuple[int, int, int]:
    """Returns the shard, offset and size of a clip by its number in the shard."""
    if isinstance(shard, int) and isinstance(number, int):
        rows = places.get(shard, [])
        if 0 <= number < len(rows):
            offset, size = rows[number]
            if isinstance(offset, int) and isinstance(size, int) and offset >= 0 and size > 0:
                return shard, offset, size
    raise UserError(f"its {DATABASE} names a clip {number!r} of shard {shard!r} that is not there")


def read_item(folder: Path, place: str) -> dict[object, object]:
    """Returns what is stored of a clip; its tensors have memory of their own.

    Raises:
        UserError: it is not there, or is no dict.
    """
    with item_file(folder, place) as path:
        try:
            item = load_pickle(path)
        except CheckpointError as error:
            raise UserError(str(error).replace(str(path), "a clip of it")) from error
        if not isinstance(item, dict):
            raise UserError(f"a clip of it is {type(item).__name__}, not a dict")
        return {
            key: value.clone() if key == LATENTS and isinstance(value, Tensor) else value
            for key, value in item.items()
        }


@contextmanager
def item_file(folder: Path, place: str) -> Iterator[Path]:
    """Copies what is stored of a clip to a file of its own, which is then deleted."""
    shard, offset, size = map(int, place.split(":"))
    path = folder / f"shard_{shard}.bin"
    with temporary_folder() as temporary:
        copy = temporary / "clip.pt"
        with path.open("rb") as file, copy.open("wb") as content:
            file.seek(offset)
            while size and (block := file.read(min(size, BLOCK))):
                content.write(block)
                size -= len(block)
        if size:
            raise UserError(f"its {path.name} ends too early")
        yield copy


def load(folder: Path, place: str) -> Tensor:
    """Returns the latents of a clip as they are stored."""
    latents = read_item(folder, place).get(LATENTS)
    if not isinstance(latents, Tensor):
        raise UserError("a clip of it has no latents")
    return latents


DIFFUSION_PIPE = Format("diffusion-pipe", "diffusion-pipe", "normalized", find)


def file_name(facts: ClipFacts) -> str:
    """Returns the path of the file of a clip without number and suffix: a folder for each size."""
    height, width = facts.size
    return f"cache_{width}x{height}x{facts.frames}/latents/shard_"


def write(
    file: IO[bytes],
    facts: ClipFacts,
    spool: LatentsSpool,
    record: str,
    conditions: Mapping[Condition, LatentsSpool],
) -> None:
    """Writes what is stored of a clip."""
    item = {LATENTS: spool.tensor(), SOURCE: list(facts.location), "mask": None, "caption": []}
    write_archive(file, item, record)


def write_database(folder: Path, shards: Mapping[int, Sequence[tuple[int, int]]]) -> None:
    """Writes the database of a folder.

    Args:
        shards: offset and size of each clip, by the number of the shard.
    """
    with atomic_path(folder / DATABASE) as temporary:
        temporary.unlink()
        with closing(sqlite3.connect(temporary)) as database, database:
            database.execute("CREATE TABLE fingerprint(value)")
            database.execute("INSERT INTO fingerprint VALUES(?)", (FINGERPRINT,))
            database.execute("CREATE TABLE items(shard, shard_index)")
            for shard, places in shards.items():
                database.execute(f"CREATE TABLE shard_{shard}(offset, size)")
                database.executemany(f"INSERT INTO shard_{shard} VALUES(?, ?)", places)
                items = ((shard, number) for number in range(len(places)))
                database.executemany("INSERT INTO items VALUES(?, ?)", items)


DIFFUSION_PIPE_LAYOUT = Layout(
    name="diffusion-pipe",
    program="diffusion-pipe",
    scale="normalized",
    store="mean",
    dtype="bfloat16",
    file_name=file_name,
    write=write,
    one_clip=True,
    shards=True,
    note="diffusion-pipe deletes a cache that does not have the fingerprint and the order of its "
    f"own list of videos; this one has the fingerprint {FINGERPRINT!r} and the order of the folder",
)
