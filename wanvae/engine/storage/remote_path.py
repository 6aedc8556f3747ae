"""Paths to files and folders at addresses, with the methods of ``pathlib.Path`` that we need."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, overload
from urllib.parse import urlsplit

from wanvae.engine.storage.remote_file import RemoteFile
from wanvae.engine.storage.retries import RemoteError, describe, retry
from wanvae.engine.text import first_sentence

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# The beginning of an address, such as s3:// or simplecache::https://.
PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://")
# Where file systems say when a file was changed, and what else changes with its content.
TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")
DIGESTS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id", "sha", "checksum")
EXTRAS = 'install what opens it, as pip install "wanvae[remote]" does for s3:// and https://'


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """What is known of a file without reading it.

    Attributes:
        size: bytes; 0 if the server does not tell.
        mtime: time of the last change in nanoseconds; or a number that changes with the content,
            where only a digest is known; or 0.
    """

    size: int
    mtime: int


@dataclass(frozen=True, order=True, slots=True)
class RemotePath:
    """A file or folder at an address.

    Nothing is kept open, so that a path may be copied to other processes. All methods that ask a
    server repeat what fails for a while, and raise RemoteError in the end.

    Attributes:
        address: such as ``s3://bucket/videos``, without "/" at its end.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    def __fspath__(self) -> str:
        return self.address

    def __truediv__(self, name: str | os.PathLike[str]) -> RemotePath:
        name = os.fspath(name)
        return self if name in ("", ".") else RemotePath(f"{self.address}/{name}")

    @property
    def _parts(self) -> PurePosixPath:
        """The path in the address; a web address may have a query after it."""
        return PurePosixPath(urlsplit(self.address).path if self.is_on_web else self.address)

    @property
    def is_on_web(self) -> bool:
        """Whether a web server has it, and not an object store."""
        return self.address.startswith(("http://", "https://"))

    @property
    def name(self) -> str:
        """The last part."""
        return self._parts.name

    @property
    def suffix(self) -> str:
        """The suffix of the last part, with its dot; or empty."""
        return self._parts.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder of a file."""
        return RemotePath(self.address.rpartition("/")[0])

    def resolve(self) -> RemotePath:
        """Returns the path itself, which is absolute."""
        return self

    def is_relative_to(self, other: object) -> bool:
        """Whether the path is ``other``, or in it or below it."""
        inside = isinstance(other, RemotePath)
        return inside and f"{self.address}/".startswith(f"{other.address}/")

    def file_system(self) -> tuple[AbstractFileSystem, str]:
        """Returns the file system of the address, and the path in it.

        Raises:
            RemoteError: there is no library for the address.
        """
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(self.address)
        except ImportError as error:
            raise RemoteError(f"cannot open {self}: {first_sentence(error)}; {EXTRAS}") from error
        except ValueError as error:
            raise RemoteError(f"cannot open {self}: {first_sentence(error)}") from error

    # Looking

    def status(self) -> RemoteStatus:
        """Returns size and time of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        info = self._info()
        if info.get("type") == "directory":
            raise FileNotFoundError(self.address)
        return status_of(info)

    def exists(self) -> bool:
        """Whether there is a file. Folders are only prefixes of names of files."""
        try:
            self.status()
        except FileNotFoundError:
            return False
        return True

    def _info(self) -> dict[str, Any]:
        files, path = self.file_system()
        files.invalidate_cache(path)
        return retry(lambda: files.info(path), f"find {self}")

    def files(self) -> dict[str, RemoteStatus | None]:
        """Returns the files in a folder and below, by their names relative to it.

        The status is None where a listing does not tell it. An address without files, or of a file,
        gives no names.
        """
        files, root = self.file_system()
        files.invalidate_cache(root)
        root = root.rstrip("/")
        try:
            # Web servers need the "/" for links to be relative to the folder.
            found = retry(lambda: files.find(f"{root}/", detail=True), f"list {self}")
        except FileNotFoundError:
            return {}
        names: dict[str, RemoteStatus | None] = {}
        assert isinstance(found, dict)
        for path, info in found.items():
            inside = path.startswith(f"{root}/") and not path.endswith("/")
            if inside and info.get("type", "file") == "file":
                known = info.get("size") is not None
                names[path.removeprefix(f"{root}/")] = status_of(info) if known else None
        return names

    def check_writable(self) -> None:
        """Raises RemoteError if nothing can be written at such an address, as on a web server."""
        if self.is_on_web:
            raise RemoteError(
                f"{self} cannot be written, because web servers only give files; name a folder on "
                "a disk or in an object store, like s3://bucket/folder"
            )

    # Reading

    @overload
    def open(self, mode: Literal["rb"]) -> io.BufferedReader: ...

    @overload
    def open(self, mode: Literal["r"] = "r", encoding: str | None = None) -> io.TextIOWrapper: ...

    def open(self, mode: Literal["r", "rb"] = "r", encoding: str | None = None) -> IO[Any]:
        """Opens the file for reading, "r" as text or "rb".

        Raises:
            FileNotFoundError: there is no such file.
        """
        content = io.BufferedReader(self.open_part())
        return content if mode == "rb" else io.TextIOWrapper(content, encoding=encoding)

    def open_part(self, start: int = 0, size: int | None = None) -> RemoteFile:
        """Opens bytes of the file for reading.

        Args:
            start: the first byte.
            size: the number of bytes; None is all to the end.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return RemoteFile(*self.file_system(), self.address, start, size)

    def read_bytes(self) -> bytes:
        """Returns the content of the file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        files, path = self.file_system()
        content = retry(lambda: files.cat_file(path), f"read {self}")
        return content.encode() if isinstance(content, str) else content

    # Writing

    def write_bytes(self, content: bytes) -> None:
        """Writes the file as a whole: others see the old content or the new one."""
        self._write(lambda files, path: files.pipe_file(path, content))

    def upload(self, source: Path) -> None:
        """Writes the content of a local file, as ``write_bytes`` does."""
        self._write(lambda files, path: files.put_file(str(source), path))

    def _write(self, write: Callable[[AbstractFileSystem, str], object]) -> None:
        files, path = self.file_system()
        try:
            retry(lambda: write(files, path), f"write {self}")
        except FileNotFoundError as error:
            raise RemoteError(
                f"cannot write {self}: {describe(error.__cause__ or error)}; check that its bucket "
                "or repository exists"
            ) from error
        files.invalidate_cache(path)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the file.

        Raises:
            FileNotFoundError: there is no such file, unless ``missing_ok``.
        """
        files, path = self.file_system()
        try:
            retry(lambda: files.rm_file(path), f"delete {self}")
        except FileNotFoundError:
            if not missing_ok:
                raise


# A file or folder on a disk, or at an address.
Location: TypeAlias = Path | RemotePath


def location(path: str | os.PathLike[str]) -> Location:
    """Returns where a text points to: an address like ``s3://bucket/videos``, or a local path."""
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return RemotePath(text.rstrip("/")) if is_address(text) else Path(text)


def is_address(text: object) -> bool:
    """Whether a text is an address, and not a local path."""
    return isinstance(text, str) and PROTOCOL.match(text) is not None


def status_of(info: dict[str, Any]) -> RemoteStatus:
    """Returns the status in what a file system knows of a file."""
    times = (nanoseconds(info[name]) for name in TIMES if info.get(name) is not None)
    mtime = next((time for time in times if time is not None), None)
    if mtime is None:
        digest = next((str(info[name]) for name in DIGESTS if info.get(name)), "")
        mtime = int(hashlib.sha256(digest.encode()).hexdigest()[:12], 16) if digest else 0
    return RemoteStatus(info.get("size") or 0, mtime)


def nanoseconds(time: object) -> int | None:
    """Returns a time of a file system in nanoseconds; None if it cannot be told."""
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time.replace("Z", "+00:00"))
        except ValueError:
            try:
                time = parsedate_to_datetime(time)
            except (TypeError, ValueError):
                return None
    if isinstance(time, datetime):
        zoned = time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)
        time = zoned.timestamp()
    # Floats are exact to microseconds, and lists and single files must give the same.
    return round(time * 1_000_000) * 1000 if isinstance(time, (int, float)) else None
