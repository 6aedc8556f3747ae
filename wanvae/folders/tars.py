"""Tar files of videos and images, as the ``webdataset`` library writes them, read in place.

``webdataset`` reads tars as streams, one after another. Which samples a process sees then depends
on the number of processes, and a resumed run has to read everything before its position. Here the
members of an uncompressed tar are entries of the index like any other file, because such a tar can
be read at any position. The tars must lie on disks of this machine or on mounted disks. Each member
is a video or image of its own; a ``.json`` or ``.txt`` with the same key is ignored.
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

from wanvae.video import FilePart, VideoError

TAR_SUFFIX = ".tar"


def find_members(path: Path, suffixes: Collection[str]) -> Iterator[FilePart]:
    """Yields the members of a tar whose lower-case suffix is in ``suffixes``, in their order.

    Only the headers of the members are read.

    Raises:
        VideoError: the file is not an uncompressed tar, or it ends too early. Members before the
            damage are yielded first.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                plain = member.isreg() and not member.issparse()
                if plain and Path(member.name).suffix.lower() in suffixes:
                    yield FilePart(path, member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise VideoError(
            f"cannot read {path}: {error}; it must be an uncompressed, complete tar"
        ) from error
