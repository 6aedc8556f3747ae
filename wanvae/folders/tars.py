"""Tar shards as the ``webdataset`` library and others write them, read in place.

That library reads shards as streams, one after another: which samples a process sees then depends
on how many processes there are, and a run that resumes has to read its way forward. An uncompressed
tar can be read at any position, so here its members are entries of the index like any other file,
and every promise about single files holds for shards too, as long as they lie on disks of this
machine or mounted there. Each member is a video or image of its own: a ``.json`` or ``.txt`` under
the same key is passed over.
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

from wanvae.video import FilePart, VideoError


def find_members(path: Path, suffixes: Collection[str]) -> Iterator[FilePart]:
    """Where the members of a tar lie whose lower-case suffix is one of ``suffixes``, in its order.

    Only the headers of the members are read.

    Raises:
        VideoError: the file is no uncompressed tar, or ends early; members before that point have
            been given by then.
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
