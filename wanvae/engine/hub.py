"""Checkpoints on the Hugging Face Hub, by the name of their repository."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path

from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.text import first_sentence

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


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


def local_checkpoint(
    path: str | PathLike[str], stored: HubFiles, subfolder: str | None = None
) -> Path:
    """Returns the local path of a checkpoint. A checkpoint on the Hub is downloaded once.

    Args:
        path: a local path, or the ``"org/name"`` of a repository if there is no such local path.
        subfolder: the folder in ``path`` that holds the checkpoint.

    Raises:
        CheckpointError: the repository or its files do not exist or cannot be reached.
    """
    if is_repository(path):
        return download(os.fspath(path), subfolder, stored)
    return Path(path, subfolder or "")


def is_repository(path: str | PathLike[str]) -> bool:
    """Returns whether ``path`` can only be the name of a repository. Does not ask the Hub."""
    if not isinstance(path, str) or path.endswith(SUFFIXES):
        return False
    return REPOSITORY.fullmatch(path) is not None and not os.path.exists(path)


def download(repository: str, subfolder: str | None, stored: HubFiles) -> Path:
    """Returns the first checkpoint of a repository: a file, or a diffusers directory."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folders = stored.folders if subfolder is None else (subfolder,)
    obstacle = find_obstacle()
    unreachable = obstacle is not None
    for folder, names in product(folders, stored.checkpoints):
        try:
            files = [fetch(repository, folder, name, cached=unreachable) for name in names]
        except LocalEntryNotFoundError:
            unreachable = True  # files that were downloaded before are still there
        except EntryNotFoundError:
            continue
        else:
            return files[0] if len(files) == 1 else files[0].parent
    if unreachable:
        raise CheckpointError(
            f"the path {repository} does not exist, no repository of this name was downloaded "
            "before, and the Hugging Face Hub could not be asked for one "
            f"({obstacle or 'the connection was lost'}); check the path or the network"
        )
    wanted = ", ".join(" with ".join(names) for names in stored.checkpoints)
    raise CheckpointError(
        f"{repository} has no {stored.model} in "
        f"{' or '.join(folder or 'its root' for folder in folders)} ({wanted}); "
        "name the subfolder that holds one"
    )


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


def fetch(repository: str, folder: str, name: str, *, cached: bool) -> Path:
    """Returns a file of a repository. With ``cached``, nothing is downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        file = huggingface_hub.hf_hub_download(
            repository, name, subfolder=folder or None, local_files_only=cached
        )
    except EntryNotFoundError:
        raise
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is neither a local path nor a repository of the Hugging Face Hub that "
            "you may read; check the name, or log in with hf auth login"
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
