"""Checkpoints on the Hugging Face Hub, by the name of their repository or their address."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from itertools import product
from os import PathLike
from pathlib import Path
from posixpath import join, split
from urllib.parse import unquote, urlsplit

from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.text import first_few, first_sentence

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf")
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
    hosts = {"huggingface.co", "hf.co", urlsplit(constants.ENDPOINT).netloc}
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
    """Returns the checkpoint at an address: a file, or a diffusers directory."""
    place = join(address.path, subfolder or "").rstrip("/")
    if place.endswith(SUFFIXES):
        folder, name = split(place)
        return find_checkpoint(address, (folder,), ((name,),), stored.model)
    folders = (place,) if place else stored.folders
    return find_checkpoint(address, folders, stored.checkpoints, stored.model)


def find_checkpoint(
    address: HubAddress,
    folders: tuple[str, ...],
    checkpoints: tuple[tuple[str, ...], ...],
    model: str,
) -> Path:
    """Returns the first of ``checkpoints`` in the first of ``folders`` of a repository."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    obstacle = find_obstacle()
    unreachable = obstacle is not None
    for folder, names in product(folders, checkpoints):
        try:
            files = [fetch(address, join(folder, name), cached=unreachable) for name in names]
        except LocalEntryNotFoundError as error:
            unreachable = True  # files that were downloaded before are still there
            obstacle = obstacle or first_sentence(error.__cause__ or error)
        except EntryNotFoundError:
            continue
        else:
            return files[0] if len(files) == 1 else files[0].parent
    if unreachable:
        raise CheckpointError(
            f"the path {address} does not exist, no repository of this name was downloaded "
            "before, and the Hugging Face Hub could not be asked for one "
            f"({obstacle}); check the path or the network"
        )
    wanted = ", ".join(" with ".join(names) for names in checkpoints)
    places = " or ".join(folder or "its root" for folder in folders)
    raise CheckpointError(
        f"{address.repository} has no {model} in {places} ({wanted}); {list_weights(address)}"
    )


def list_weights(address: HubAddress) -> str:
    """Returns what a person may name instead: the weight files that a repository has."""
    import huggingface_hub

    try:
        files = huggingface_hub.list_repo_files(address.repository, revision=address.revision)
    except Exception:  # errors of the network have no class in common
        files = []
    root = replace(address, path="")
    weights = [f"{root}/{name}" for name in files if name.endswith(SUFFIXES)]
    if not weights:
        return "it has no weight files that this program reads"
    return f"it has {first_few(weights)}; name the file that holds one"


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
    from huggingface_hub.errors import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, revision = address.repository, address.revision
    try:
        file = huggingface_hub.hf_hub_download(
            repository, name, revision=revision, local_files_only=cached
        )
    except EntryNotFoundError:
        raise
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository} has no revision {revision}; name one of its branches, tags or commits"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{address} is neither a local path nor a place in a repository of the Hugging Face "
            "Hub that you may read; check the name, or log in with hf auth login"
        ) from error
    except Exception as error:  # errors of the network have no class in common
        raise CheckpointError(
            f"{name} of {repository} cannot be downloaded ({first_sentence(error)}); try again"
        ) from error
    return Path(file)


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
