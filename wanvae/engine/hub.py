"""Checkpoints on the Hugging Face Hub, by the name of their repository or their address."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from os import PathLike
from pathlib import Path
from posixpath import dirname, join
from urllib.parse import unquote, urlsplit

from wanvae.engine.split_file import is_index, parts_of
from wanvae.engine.stored_tensors import CheckpointError
from wanvae.engine.text import first_few, first_sentence

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf")
HOSTS = ("huggingface.co", "hf.co")
# org/name, then @revision, then a path. A revision is one name, except refs/pr/1 and its like.
ADDRESS = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?"
    r"(?P<path>(?:/(?!\.{1,2}(?:/|$))[^/\\]+)*)/?"
)
# The part of a web address after the repository: a page of files, or a download.
WEB_PATH = re.compile(r"/(?:blob|resolve|raw|tree)/(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)")


@dataclass(frozen=True)
class HubFiles:
    """How the checkpoints of a kind of model are stored in repositories.

    Attributes:
        model: the name of the kind of model in errors.
        checkpoints: for each layout the files that form a checkpoint together, in the order of the
            search. The first is the native file.
        folders: folders to search if none is named; "" is the root.
    """

    model: str
    checkpoints: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class HubAddress:
    """A place on the Hub.

    Attributes:
        repository: the ``"org/name"`` of the repository.
        revision: a branch, tag or commit; None is the main branch.
        path: a file or folder in the repository; "" is its root.
    """

    repository: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return join(f"{self.repository}{at}", self.path) if self.path else f"{self.repository}{at}"


def local_checkpoint(
    path: str | PathLike[str], stored: HubFiles, subfolder: str | None = None
) -> Path:
    """Returns the local path of a checkpoint. A checkpoint on the Hub is downloaded once.

    Args:
        path: a local path, or an address on the Hub if there is no such local path; see
            ``parse_address``.
        subfolder: the folder in ``path`` that holds the checkpoint.

    Raises:
        CheckpointError: the repository or its files do not exist or cannot be reached.
    """
    address = None if os.path.exists(path) else parse_address(path)
    if address is None:
        return Path(path, subfolder or "")
    return download(address, subfolder, stored)


def parse_address(path: str | PathLike[str]) -> HubAddress | None:
    """Returns the place on the Hub that a text names; None if it can only be a local path.

    An address is ``org/name``, ``org/name@revision``, one of these with the path of a file or
    folder in the repository (``org/name/vae``), the same after ``hf://``, or the web address of
    any of them. The Hub is not asked.
    """
    if not isinstance(path, str):
        return None
    if path.startswith(("https://", "http://")):
        return parse_web_address(path)
    if path.startswith(tuple(f"{host}/" for host in HOSTS)):
        return parse_web_address(f"https://{path}")
    match = ADDRESS.fullmatch(path.removeprefix("hf://"))
    if match is None:
        return None
    revision = match["revision"]
    return HubAddress(match["repository"], revision and unquote(revision), match["path"].strip("/"))


def parse_web_address(address: str) -> HubAddress:
    """Returns the place on the Hub of a web address.

    Raises:
        CheckpointError: it is an address of another site, or not of a repository.
    """
    from huggingface_hub import constants

    parts = urlsplit(address)
    hosts = {*HOSTS, urlsplit(constants.ENDPOINT).netloc}
    path = unquote(parts.path).strip("/")
    match = re.fullmatch(rf"({ADDRESS.pattern.split('(?:@')[0]})(.*)", path)
    page = match and WEB_PATH.match(match[3])
    if parts.netloc not in hosts or match is None or (match[3] and page is None):
        raise CheckpointError(
            f"{address} is no address of a model on the Hugging Face Hub, such as "
            "https://huggingface.co/org/name/blob/main/vae.safetensors; download the file, and "
            "name it here"
        )
    if page is None:
        return HubAddress(match["repository"])
    revision = None if page["revision"] == "main" else page["revision"]
    return HubAddress(match["repository"], revision, match[3][page.end() :].strip("/"))


def download(address: HubAddress, subfolder: str | None, stored: HubFiles) -> Path:
    """Returns the checkpoint at an address: a file, or a directory of files."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    place = join(address.path, subfolder or "").rstrip("/")
    obstacle = find_obstacle()
    named = place.endswith(SUFFIXES)
    held = None if named or obstacle else list_files(address)
    folders = (place,) if place else stored.folders
    choices = [(place,)] if named else find_checkpoints(folders, stored, held)
    for names in choices:
        try:
            return fetch_all(address, names, cached=obstacle is not None)
        except LocalEntryNotFoundError as error:
            obstacle = obstacle or first_sentence(error.__cause__ or error)
        except EntryNotFoundError:
            continue
    if obstacle is not None:
        raise CheckpointError(
            f"the path {address} does not exist, no repository of this name was downloaded "
            "before, and the Hugging Face Hub could not be asked for one "
            f"({obstacle}); check the path or the network"
        )
    missing = f"file {place}" if named else f"{stored.model} in {describe_folders(folders)}"
    held = list_files(address) if held is None else held
    raise CheckpointError(f"{address.repository} has no {missing}; {list_weights(address, held)}")


def find_checkpoints(
    folders: tuple[str, ...], stored: HubFiles, held: Sequence[str] | None
) -> Iterator[tuple[str, ...]]:
    """Yields the files of each checkpoint that a repository may hold.

    Args:
        held: all files of the repository; None if they are not known.
    """
    for folder, names in product(folders, stored.checkpoints):
        paths = tuple(join(folder, name) for name in names)
        if held is None or set(paths) <= set(held):
            yield paths


def describe_folders(folders: tuple[str, ...]) -> str:
    """Returns folders of a repository for people."""
    return " or ".join(folder or "its root" for folder in folders)


def list_weights(address: HubAddress, held: Sequence[str]) -> str:
    """Returns what a person may name instead: the weight files that a repository has."""
    root = replace(address, path="")
    weights = [f"{root}/{name}" for name in held if name.endswith(SUFFIXES)]
    if not weights:
        return "it has no weight files that this program reads"
    return f"it has {first_few(weights)}; name the file that holds one"


def list_files(address: HubAddress) -> list[str]:
    """Returns the paths of all files of a repository."""
    import huggingface_hub

    with plain_errors(address, "the list of files"):
        return huggingface_hub.list_repo_files(address.repository, revision=address.revision)


def fetch_all(address: HubAddress, names: Sequence[str], *, cached: bool) -> Path:
    """Returns the file of a checkpoint, or the directory of its files.

    An index of files brings these files, too.
    """
    files = [fetch(address, name, cached=cached) for name in names]
    for name, file in zip(names, files, strict=True):
        if is_index(file):
            for part in sorted(set(parts_of(file).values())):
                fetch(address, join(dirname(name), part), cached=cached)
    return files[0] if len(files) == 1 else files[0].parent


def find_obstacle() -> str | None:
    """Returns why the Hub cannot be reached; None if it answers.

    It is asked once. A download would try again for half a minute and longer.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # errors of the network have no class in common
        return first_sentence(error)
    return None


def fetch(address: HubAddress, name: str, *, cached: bool) -> Path:
    """Returns a file of a repository. With ``cached``, nothing is downloaded."""
    import huggingface_hub

    with plain_errors(address, name):
        file = huggingface_hub.hf_hub_download(
            address.repository, name, revision=address.revision, local_files_only=cached
        )
    return Path(file)


@contextmanager
def plain_errors(address: HubAddress, wanted: str) -> Iterator[None]:
    """Turns errors of huggingface_hub into a CheckpointError, except a file that is not there."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository = address.repository
    try:
        yield
    except EntryNotFoundError:
        raise
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository} has no revision {address.revision}; name one of its branches, tags or "
            "commits"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{address} is neither a local path nor a place in a repository of the Hugging Face "
            "Hub that you may read; check the name, or log in with hf auth login"
        ) from error
    except Exception as error:  # errors of the network have no class in common
        raise CheckpointError(
            f"{wanted} of {repository} cannot be downloaded ({first_sentence(error)}); try again"
        ) from error


def upload(path: str | PathLike[str], repository: str, stored: HubFiles) -> None:
    """Uploads a native checkpoint to a repository of the Hub. A missing repository is created.

    Raises:
        CheckpointError: the upload failed.
    """
    import huggingface_hub

    try:
        huggingface_hub.create_repo(repository, exist_ok=True)
        huggingface_hub.upload_file(
            path_or_fileobj=Path(path), path_in_repo=stored.checkpoints[0][0], repo_id=repository
        )
    except Exception as error:  # errors of the network have no class in common
        raise CheckpointError(
            f"{path} is written, but cannot be uploaded to {repository} ({first_sentence(error)}); "
            "check the name and the network, and log in with hf auth login"
        ) from error
