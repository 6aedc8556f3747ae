"""What there is to do for a data set of latents, and which process does it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from wanvae.checkpoints.formats import weights_file
from wanvae.dataset.files import Unit, plan_units
from wanvae.dataset.records import FAILURES, Failure, read_failures, write_lines
from wanvae.dataset.settings import (
    SETTINGS,
    DatasetOptions,
    DatasetSettings,
    read_settings,
    write_settings,
)
from wanvae.engine.files import is_nested, make_directory, remove_temporaries
from wanvae.errors import UserError
from wanvae.folders.clips import Clip, find_clips, parse_cut
from wanvae.folders.manifest import load_entries
from wanvae.model import WanVAE

# Bytes of a file that are hashed at once.
BLOCK = 2**20


@dataclass(frozen=True)
class Job:
    """What is to be done, as all processes know it.

    Attributes:
        settings: of the data set.
        units: all its files.
        there: the names of those that are there already.
        broken: files of the source that cannot be read.
        left_out: videos and images that no clip can be cut from, a line each.
    """

    settings: DatasetSettings
    units: tuple[Unit, ...]
    there: frozenset[str]
    broken: tuple[Failure, ...]
    left_out: tuple[str, ...]

    @property
    def kept(self) -> list[Unit]:
        """The units that are there."""
        return [unit for unit in self.units if unit.file in self.there]

    @property
    def missing(self) -> list[Unit]:
        """The units that are not there."""
        return [unit for unit in self.units if unit.file not in self.there]


def prepare(
    vae: WanVAE,
    checkpoint: str | PathLike[str],
    source: Path,
    destination: Path,
    options: DatasetOptions,
) -> Job:
    """Find out what is to be done, and make the folder ready for it."""
    if is_nested(source, destination):
        raise UserError(f"{destination} must not be in {source}, nor around it; name another")
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
    take_folder(destination, settings)
    units = tuple(plan_units(found.clips, options, vae.config))
    there = frozenset(unit.file for unit in units if (destination / unit.file).exists())
    return Job(settings, units, there, found.broken, found.left_out)


def take_folder(folder: Path, settings: DatasetSettings) -> None:
    """Make the folder, or check that it is of the same settings, and clean it up."""
    make_directory(folder)
    if (folder / SETTINGS).exists():
        differences = settings.differences(read_settings(folder))
        if differences:
            raise UserError(
                f"{folder} was made with other settings: {'; '.join(differences)}; "
                "give the same again, or name another folder"
            )
        remove_temporaries(folder)
        write_lines(folder / FAILURES, read_failures(folder))
    elif any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder} has other files in it; name a new folder")
    else:
        write_settings(folder, settings)


def digest_of_file(path: Path) -> str:
    """SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_of_clips(clips: Sequence[Clip]) -> str:
    """A digest of which clips there are and what they are cut from."""
    lines = (f"{c.name} {c.fps} {c.first} {c.frames} {c.scaled} {c.size}\n" for c in clips)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def share(units: Sequence[Unit], rank: int, ranks: int) -> list[Unit]:
    """The units of one process: about as many pixels as those of the others, and in a row.

    In a row, so that clips cut from one video mostly go to one process, which need not seek.
    """
    sizes = [sum(clip.pixels for clip in unit.clips) for unit in units]
    total, before, chosen = sum(sizes), 0, []
    for unit, size in zip(units, sizes, strict=True):
        if (2 * before + size) * ranks // (2 * total) == rank:
            chosen.append(unit)
        before += size
    return chosen
