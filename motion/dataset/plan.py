"""Which files hold the tokens of a folder of motion files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from motion.config import RVQVAEConfig
from motion.dataset.containers import CONTAINERS
from motion.dataset.descriptions import SPEAKER, compile_speaker
from motion.dataset.records import SETTINGS, TokenFormat, TokenSettings
from motion.features.recording import find_files
from wanvae.engine.config import check, check_option
from wanvae.engine.json_files import read_value
from wanvae.engine.output_folder import refuse_nested
from wanvae.errors import UserError

CLIPS_PER_FILE = 1000


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """How the tokens of a folder are stored.

    Attributes:
        format: one file for each clip (npz, safetensors), or one for many (tar, parquet).
        clips_per_file: clips in a tar or Parquet file.
        speaker: a regular expression with one group, which finds the speaker in the name of a
            motion file.

    Raises:
        UserError: a value is out of range, or ``speaker`` is no such expression.
    """

    format: TokenFormat = "npz"
    clips_per_file: int = CLIPS_PER_FILE
    speaker: str = SPEAKER

    def __post_init__(self) -> None:
        check_option("format", self.format, TokenFormat)
        check(self.clips_per_file >= 1, "clips_per_file", self.clips_per_file, "1 or more")
        compile_speaker(self.speaker)


@dataclass(frozen=True)
class FolderPlan:
    """The files of tokens of a folder, the same in all processes.

    Attributes:
        source: the folder of the motion files.
        destination: the folder of the files of tokens.
        targets: the motion files of each file of tokens to write.
        failures: a line for each motion file whose tokens would be in a file of another one.
        others: the other files of the folder.
        many: whether a file of tokens may hold many clips.
    """

    source: Path
    destination: Path
    targets: Mapping[Path, Sequence[Path]]
    failures: Sequence[str]
    others: Sequence[Path]
    many: bool

    @property
    def files(self) -> list[Path]:
        """All motion files to tokenize, in order."""
        return [file for files in self.targets.values() for file in files]

    def name_of(self, file: Path) -> str:
        """Returns the name of the clip of a motion file."""
        return file.relative_to(self.source).with_suffix("").as_posix()


def plan_targets(
    source: Path, destination: Path, options: FolderOptions, config: RVQVAEConfig
) -> FolderPlan:
    """Plans the files of tokens of a folder.

    Raises:
        MotionError: there are no motion files.
        UserError: one folder is inside the other, or ``destination`` holds tokens of another
            format.
    """
    refuse_nested(source, destination)
    refuse_other_format(destination, options.format)
    many, suffix = options.format in CONTAINERS, f".{options.format}"
    clips: dict[Path, Path] = {}
    same = []
    found = find_files(source, config)
    for file in found.paths:
        target = destination / file.relative_to(source).with_suffix("" if many else suffix)
        if target in clips:
            same.append(f"{file} would become {target}, as {clips[target]} does; rename one")
        else:
            clips[target] = file
    targets: dict[Path, Sequence[Path]] = {target: (file,) for target, file in clips.items()}
    if many:
        files, size = list(clips.values()), options.clips_per_file
        targets = {
            destination / shard_name(number, suffix): files[number * size : (number + 1) * size]
            for number in range(-(-len(files) // size))
        }
    return FolderPlan(source, destination, targets, same, found.others, many)


def shard_name(number: int, suffix: str) -> str:
    """Returns the name of a file of many clips."""
    return f"shard-{number:05}{suffix}"


def refuse_other_format(destination: Path, asked: TokenFormat) -> None:
    """Raises UserError if a folder holds tokens in another format than is asked for."""
    path = destination / SETTINGS
    if path.exists() and (found := read_value(path, TokenSettings).format) != asked:
        raise UserError(
            f"{destination} holds tokens as {found}, not {asked}; name another folder, or give "
            f"--format {found}"
        )
