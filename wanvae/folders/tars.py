"""Tar files of videos and images, as the ``webdataset`` library writes them, read in place.

``webdataset`` reads tars as streams, one after another. Which samples a process sees then depends
on the number of processes, and a resumed run has to read everything before its position. Here the
members of an uncompressed tar are entries of the index like any other file, because such a tar can
be read at any position, also at an address such as ``s3://bucket/videos.tar``. Each video or image
is an entry of its own; the other members with its key describe it.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Collection, Iterator
from pathlib import PurePosixPath

from wanvae.engine.storage.remote_path import Location
from wanvae.video import FilePart, VideoError

TAR_SUFFIX = ".tar"


def find_members(path: Location, wanted: Callable[[str], bool]) -> Iterator[FilePart]:
    """Yields the members of a tar whose names are ``wanted``, in their order.

    Only the headers of the members are read. Of members of one name only the last one counts, as
    for programs that extract the tar.

    Raises:
        VideoError: the file is not an uncompressed tar, or it ends too early. Members before the
            damage are yielded first.
    """
    found: dict[str, FilePart] = {}
    damage = None
    try:
        with path.open("rb") as content, tarfile.open(fileobj=content, mode="r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and wanted(member.name):
                    found.pop(member.name, None)
                    found[member.name] = FilePart(
                        path, member.name, member.offset_data, member.size
                    )
    except (tarfile.TarError, OSError) as error:
        damage = error
    yield from found.values()
    if damage is not None:
        raise VideoError(
            f"cannot read {path}: {damage}; it must be an uncompressed, complete tar"
        ) from damage


def split_key(name: str) -> tuple[str, str]:
    """Returns the path of a member up to the first dot of its file name, and what follows."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, suffix.lower()


def webdataset_key(name: str, taken: Collection[str]) -> str:
    """Returns the path of a clip in a tar without its suffix. The file name has no dots.

    ``webdataset`` takes files whose names are the same up to the first dot for parts of one sample.

    Args:
        taken: keys of other clips.
    """
    path = PurePosixPath(name)
    key = str(path.with_name(path.name.replace(".", "_")))
    return f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if key in taken else key
