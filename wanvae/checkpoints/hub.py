"""Checkpoints on the Hugging Face Hub, by the name of their repository."""

from __future__ import annotations

import os
import re
from itertools import product
from os import PathLike
from pathlib import Path

from wanvae.checkpoints.diffusers_layout import DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.text import first_sentence

# The name of a native checkpoint in a repository.
NATIVE_FILE = "wanvae.safetensors"
# Files that form a checkpoint together, in the order of the search.
CHECKPOINTS = (
    (NATIVE_FILE,),
    ("Wan2.1_VAE.pth",),
    ("Wan2.2_VAE.pth",),
    (DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS),
)
# Folders to search if none is named. Pipelines keep their VAE in the folder vae.
FOLDERS = ("", "vae")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def local_checkpoint(path: str | PathLike[str], subfolder: str | None = None) -> Path:
    """Returns the local path of a checkpoint. A checkpoint on the Hub is downloaded once.

    Args:
        path: a local path, or the ``"org/name"`` of a repository if there is no such local path.
        subfolder: the folder in ``path`` that holds the checkpoint.

    Raises:
        CheckpointError: the repository or its files do not exist or cannot be reached.
    """
    if is_repository(path):
        return download(os.fspath(path), subfolder)
    return Path(path, subfolder or "")


def is_repository(path: str | PathLike[str]) -> bool:
    """Returns whether ``path`` can only be the name of a repository. Does not ask the Hub."""
    if not isinstance(path, str) or path.endswith(SUFFIXES):
        return False
    return REPOSITORY.fullmatch(path) is not None and not os.path.exists(path)


def download(repository: str, subfolder: str | None) -> Path:
    """Returns the first checkpoint of a repository: a file, or a diffusers directory."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folders = FOLDERS if subfolder is None else (subfolder,)
    unreachable = False
    for folder, names in product(folders, CHECKPOINTS):
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
            f"{repository} is not a local path, and was not downloaded before; "
            "the Hugging Face Hub cannot be reached: check the path or the network"
        )
    wanted = ", ".join(" with ".join(names) for names in CHECKPOINTS)
    raise CheckpointError(
        f"{repository} has no Wan VAE in {' or '.join(folder or 'its root' for folder in folders)} "
        f"({wanted}); name the subfolder that holds one"
    )


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


def upload(path: str | PathLike[str], repository: str) -> None:
    """Uploads a native checkpoint to a repository of the Hub. A missing repository is created.

    Raises:
        CheckpointError: the upload failed.
    """
    import huggingface_hub

    try:
        huggingface_hub.create_repo(repository, exist_ok=True)
        huggingface_hub.upload_file(
            path_or_fileobj=Path(path), path_in_repo=NATIVE_FILE, repo_id=repository
        )
    except Exception as error:  # errors of the network have no class in common
        raise CheckpointError(
            f"{path} is written, but cannot be uploaded to {repository} ({first_sentence(error)}); "
            "check the name and the network, and log in with hf auth login"
        ) from error
