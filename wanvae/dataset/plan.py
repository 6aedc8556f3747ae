"""The plan of a data set of latents: which files it has, and which of them are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from wanvae.checkpoints.formats import weights_file
from wanvae.dataset.files import LatentsFilePlan, plan_files
from wanvae.dataset.records import FAILURES, read_failures
from wanvae.dataset.settings import DATA_SET, SETTINGS, DatasetOptions, DatasetSettings
from wanvae.engine.digest import digest_of_file
from wanvae.engine.json_files import write_lines
from wanvae.engine.output_folder import refuse_nested, take_folder
from wanvae.errors import UserError
from wanvae.folders.clips import Clip, find_clips, parse_cut
from wanvae.folders.failure import Failure
from wanvae.folders.manifest import load_entries
from wanvae.model import WanVAE


@dataclass(frozen=True)
class DatasetPlan:
    """The files of a data set, the same in all processes.

    Attributes:
        settings: the settings of the data set.
        files: all files.
        existing: the names of the files that are there already.
        broken: files of the source that cannot be read.
        left_out: videos and images that are too small or too short for a clip, one line each.
    """

    settings: DatasetSettings
    files: tuple[LatentsFilePlan, ...]
    existing: frozenset[str]
    broken: tuple[Failure, ...]
    left_out: tuple[str, ...]

    @property
    def kept(self) -> list[LatentsFilePlan]:
        """The files that are there."""
        return [file for file in self.files if file.name in self.existing]

    @property
    def missing(self) -> list[LatentsFilePlan]:
        """The files that are not there."""
        return [file for file in self.files if file.name not in self.existing]


def prepare(
    vae: WanVAE,
    checkpoint: str | PathLike[str],
    source: Path,
    destination: Path,
    options: DatasetOptions,
) -> DatasetPlan:
    """Plans the files of a data set, and takes the folder for it.

    Raises:
        UserError: there is nothing to encode, the options do not fit the model, or the folder
            belongs to other settings.
        FileError: the folder cannot be written.
    """
    refuse_nested(source, destination)
    cut = parse_cut(options.frames, options.fps, options.resize, vae.config)
    found = find_clips(load_entries(source), cut, vae.config)
    if not found.clips:
        raise UserError(
            f"nothing to encode in {source}: {len(found.broken)} files cannot be read, and "
            f"{len(found.left_out)} are too small or too short for a clip; give other videos, or "
            "other --frames or --resize"
        )
    settings = DatasetSettings(
        options=options,
        source=str(source.resolve()),
        checkpoint=digest_of_file(weights_file(checkpoint)),
        compute_dtype=str(vae.encode_dtype).removeprefix("torch."),
        latents_mean=vae.config.latents_mean,
        latents_std=vae.config.latents_std,
        clips="" if options.container == "files" else digest_of_clips(found.clips),
    )
    path = destination / SETTINGS
    if take_folder(path, settings, DATA_SET, DatasetSettings.differences):
        # Drops a line that a killed run left unfinished.
        write_lines(destination / FAILURES, read_failures(destination))
    files = tuple(plan_files(found.clips, options, vae.config))
    existing = frozenset(file.name for file in files if (destination / file.name).exists())
    return DatasetPlan(settings, files, existing, found.broken, found.left_out)


def digest_of_clips(clips: Sequence[Clip]) -> str:
    """Returns a digest of the names of clips, and of what they are cut from."""
    lines = (f"{c.name} {c.fps} {c.first} {c.frames} {c.scaled} {c.size}\n" for c in clips)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
