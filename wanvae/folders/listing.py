"""The files of a folder that may be videos, images or tars, and the files that are something else.

A file is tried unless its name says plainly that it is something else, because videos and images
have many suffixes, or none.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wanvae.engine.litter import is_litter, suffix_of
from wanvae.engine.storage.remote_path import Location, RemotePath, RemoteStatus
from wanvae.folders.tars import TAR_SUFFIX
from wanvae.video import VideoError

VIDEOS = """
    .3g2 .3gp .asf .avi .divx .f4v .flv .gif .m2t .m2ts .m2v .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg
    .mts .mxf .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .y4m
"""
IMAGES = """
    .avif .bmp .dpx .exr .heic .heif .jfif .jp2 .jpeg .jpg .jxl .pbm .pgm .png .ppm .tga .tif .tiff
    .webp
"""
TEXTS = """
    .ass .bib .c .caption .cfg .conf .cpp .css .csv .doc .docx .h .htm .html .ini .ipynb .js .json
    .jsonl .log .lrc .md .nfo .pdf .ps .py .rst .rtf .sh .srt .ssa .sub .svg .tex .toml .tsv .txt
    .vtt .xls .xlsx .xml .yaml .yml
"""
PLAYLISTS = ".asx .ffconcat .m3u .m3u8 .mpd .pls .sdp"
SOUNDS = ".aac .ac3 .aiff .flac .m4a .mid .mp3 .oga .ogg .opus .wav .wma"
DATA = """
    .arrow .bin .ckpt .db .gguf .h5 .hdf5 .idx .index .lmdb .mat .mdb .npy .npz .onnx .parquet
    .pickle .pkl .pt .pth .safetensors .sqlite .tfrecord
"""
ARCHIVES_AND_PROGRAMS = """
    .7z .bak .bz2 .dll .exe .gz .iso .md5 .pyc .rar .sha1 .sha256 .so .tbz2 .tgz .torrent .xz .zip
    .zst
"""
UNFINISHED = ".aria2 .crdownload .download .part .partial .tmp"
# Files with these suffixes are named if they cannot be read. Other files that cannot be read are
# taken for something else.
MEDIA_SUFFIXES = frozenset((VIDEOS + IMAGES).split())
SOUND_SUFFIXES = frozenset(SOUNDS.split())
# Files with these suffixes are not opened: FFmpeg takes some texts for videos, and playlists name
# other files.
OTHER_SUFFIXES = frozenset(
    " ".join((TEXTS, PLAYLISTS, SOUNDS, DATA, ARCHIVES_AND_PROGRAMS, UNFINISHED)).split()
)
# Files with these suffixes, beside a video or image of the same name, describe it.
CAPTION_SUFFIXES = frozenset({".caption", ".json", ".txt"})
# Tables that describe the videos and images of their folder and its subfolders.
METADATA = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
MANIFEST = "wanvae-manifest.jsonl"
# Requests that are sent to a server at once.
REQUESTS = 16
# What an unfinished index has found so far: one line for each file, a list of its entries.
JOURNAL = "wanvae-manifest.partial.jsonl"
# The numbers of the entries of a manifest, so that it opens in a moment.
TABLE = "wanvae-manifest.npz"


class File(NamedTuple):
    """A file on disk, with what changes when the file changes.

    path: relative to the folder, with "/" between its parts.
    size: bytes.
    mtime: time of the last change, in nanoseconds.
    """

    path: str
    size: int
    mtime: int


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        files: files to try, sorted by path.
        ignored: how many files of each suffix are something else. Litter does not count, nor do
            descriptions.
        descriptions: captions beside videos and images, and tables of metadata, by path.
    """

    files: list[File]
    ignored: Counter[str]
    descriptions: tuple[str, ...] = ()


def list_files(folder: Location) -> Listing:
    """Lists the files of a folder and its subfolders, except hidden ones.

    Links to folders are followed, so that one folder may be spread over several disks. Warns of
    folders that cannot be searched.

    Raises:
        VideoError: there is no such folder, or no file at an address.
        RemoteError: a server cannot be reached.
    """
    if isinstance(folder, RemotePath):
        return list_remote(folder)
    if not folder.is_dir():
        raise VideoError(f"no usable video in {str(folder)!r}: it is not a folder; check the path")
    chosen = choose_files(walk(folder, warn_of_folder))
    files = [File(path, *size_and_time(folder / path)) for path in chosen.files]
    return Listing(files, chosen.ignored, chosen.descriptions)


def list_remote(folder: RemotePath) -> Listing:
    """Lists the files at an address, as ``list_files`` does."""
    statuses = folder.files()
    if not statuses:
        raise VideoError(
            f"no usable video in {str(folder)!r}: there are no files in a folder of this name, or "
            "the server does not list them; check the address, or name a manifest in it"
        )
    chosen = choose_files(by_folder(statuses))

    def list_file(path: str) -> File:
        status = statuses[path] or RemoteStatus(0, 0)
        if statuses[path] is None:
            with suppress(FileNotFoundError):
                status = (folder / path).status()
        return File(path, status.size, status.mtime)

    with ThreadPoolExecutor(REQUESTS) as pool:
        files = list(pool.map(list_file, chosen.files))
    return Listing(files, chosen.ignored, chosen.descriptions)


def by_folder(paths: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    """Returns the folders of files, each with the names of its files, without hidden ones."""
    names = defaultdict(list)
    for path in paths:
        if not is_litter(path):
            names[str(PurePosixPath(path).parent)].append(PurePosixPath(path).name)
    return names.items()


def walk(
    folder: Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yields the folders on a disk, as paths relative to the first, with the names of their files.

    Args:
        onerror: gets the error of a folder that cannot be searched.
    """
    visited = set()
    for place, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_litter(name))
        yield Path(place).relative_to(folder).as_posix(), names


class ChosenFiles(NamedTuple):
    """The paths of files, as in a ``Listing``."""

    files: list[str]
    ignored: Counter[str]
    descriptions: tuple[str, ...]


def choose_files(places: Iterable[tuple[str, list[str]]]) -> ChosenFiles:
    """Returns the files to try and the descriptions, sorted, and counts the others by suffix.

    Args:
        places: folders as relative paths, with the names of their files.
    """
    found, ignored, descriptions = [], Counter[str](), []
    for place, names in places:
        described = {stem for name in names if may_be_media(name) for stem in stems_of(name)}
        for name in names:
            if is_left_out(name):
                continue
            path = str(PurePosixPath(place, name))
            if is_caption(name, described) or name in METADATA:
                descriptions.append(path)
            elif suffix_of(name) in OTHER_SUFFIXES:
                ignored[suffix_of(name)] += 1
            else:
                found.append(path)
    return ChosenFiles(sorted(found), ignored, tuple(sorted(descriptions)))


def is_left_out(path: str) -> bool:
    """Whether a file or folder is litter, or belongs to the index of the folder."""
    return is_litter(path) or PurePosixPath(path).name in (MANIFEST, JOURNAL, TABLE)


def stems_of(name: str) -> tuple[str, str]:
    """Returns the names without suffix that a caption of ``name`` may have."""
    return name, PurePosixPath(name).stem


def is_caption(name: str, described: Collection[str]) -> bool:
    """Whether a file describes a video or image beside it.

    Args:
        described: the stems of the videos and images of its folder.
    """
    return suffix_of(name) in CAPTION_SUFFIXES and PurePosixPath(name).stem in described


def may_be_media(name: str) -> bool:
    """Whether a file has to be opened to know whether it is a video or image."""
    return not is_left_out(name) and suffix_of(name) not in {*OTHER_SUFFIXES, TAR_SUFFIX}


def warn_of_folder(error: OSError) -> None:
    """Warns of a folder that cannot be searched."""
    warnings.warn(f"{error.filename} cannot be searched: {error.strerror}", stacklevel=2)


def size_and_time(path: Path) -> tuple[int, int]:
    """Returns bytes and the time of the last change in nanoseconds; zeros for a broken link."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
