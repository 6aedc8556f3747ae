"""Which model of which file is meant."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Source(os.PathLike[str]):
    """A path, and what has to be said about the file. It can be used wherever a path can.

    Attributes:
        path: a local path, or the ``"org/name"`` of a repository on the Hugging Face Hub.
        key: what is before the names of the wanted tensors, like "vae."; None if the file holds
            one model.
        latent_statistics: "none", "wan2.1", "wan2.2", or a JSON file with latents_mean and
            latents_std; None takes the statistics of the file, or those that its architecture
            tells.
        variant: the variant of a diffusers directory, like "fp16"; None takes the plain files, or
            the only variant.
    """

    path: str | os.PathLike[str]
    key: str | None = None
    latent_statistics: str | os.PathLike[str] | None = None
    variant: str | None = None

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)


def source_of(path: str | os.PathLike[str]) -> Source:
    """Returns a path as a source."""
    return path if isinstance(path, Source) else Source(path)
