"""The tokens of a folder of motion files: writing and indexing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from motion.dataset.containers import CONTAINERS, StoredTokens, read_container
from motion.dataset.descriptions import SPEAKER, DescriptionReader
from motion.dataset.plan import FolderPlan
from motion.dataset.records import (
    INDEX,
    SETTINGS,
    Description,
    TokenFormat,
    TokenRecord,
    TokenSettings,
)
from motion.errors import MotionError
from motion.tokens import Origin, Tokens, read_tokens, write_tokens
from wanvae.engine.json_files import write_lines, write_value
from wanvae.engine.litter import describe_ignored, suffix_of
from wanvae.engine.processes import gather_objects
from wanvae.engine.sharing import share_files
from wanvae.engine.text import writable
from wanvae.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class FolderReport:
    """What happened to the files of a folder.

    Attributes:
        written: the number of motion files whose tokens were written.
        kept: the number of motion files whose tokens were there already.
        failures: a line for each motion file that cannot be read, sorted.
        changed: motion files whose tokens were there, but of another state of the file or of
            another model, sorted.
        unknown: the number of kept tokens that do not tell these states.
        ignored: how many files of the folder are neither motion files nor describe any, by suffix;
            or empty.
        notes: what people must know of captions, speakers, sound and words, sorted.
        records: the clips of the index.
    """

    written: int
    kept: int
    failures: tuple[str, ...]
    changed: tuple[str, ...] = ()
    unknown: int = 0
    ignored: str = ""
    notes: tuple[str, ...] = ()
    records: tuple[TokenRecord, ...] = field(default=(), compare=False)


def write_folder(
    plan: FolderPlan,
    settings: TokenSettings,
    tokenize: Callable[[Path], Tokens],
    is_current: Callable[[Origin, Path], bool],
    processes: PartialState,
    *,
    speaker: str = SPEAKER,
    progress: bool = False,
) -> FolderReport:
    """Writes the tokens of motion files and their index.

    Tokens that are there, and current, are kept. All processes call this function, and share the
    files of tokens.

    Args:
        tokenize: returns the tokens of a motion file; raises UserError or OSError.
        is_current: whether tokens of this origin are of a motion file as it is now.
        speaker: as in ``FolderOptions``.
        progress: show a progress bar.

    Returns:
        What happened to all files, in every process.

    Raises:
        UserError: a table of metadata is damaged, or ``speaker`` is no regular expression.
        FileError: a file cannot be written.
    """
    files = plan.files
    with DescriptionReader(plan.source, files, plan.others, speaker) as reader:
        if processes.is_main_process:
            # An index of an earlier run would name tokens that are about to change.
            (plan.destination / INDEX).unlink(missing_ok=True)
        writer = FolderWriter(plan, tokenize, is_current, reader)
        targets = list(plan.targets.items())
        for target, sources in share_files(targets, processes, progress=progress):
            writer.write(target, sources)
        own = writer.report(plan.failures if processes.is_main_process else ())
        report = gather_reports(own, plan, reader.used)
    if processes.is_main_process:
        remove_shards(plan, settings.format)
        write_value(plan.destination / SETTINGS, settings, indent=2)
        write_lines(plan.destination / INDEX, report.records, whole=False)
    return report


class FolderWriter:
    """Writes files of tokens one after the other, and counts what happens.

    Args:
        tokenize, is_current: as for ``write_folder``.
        reader: reads what describes the motion files.
    """

    def __init__(
        self,
        plan: FolderPlan,
        tokenize: Callable[[Path], Tokens],
        is_current: Callable[[Origin, Path], bool],
        reader: DescriptionReader,
    ) -> None:
        self._plan = plan
        self._tokenize = tokenize
        self._is_current = is_current
        self._reader = reader
        self._known = read_shards(plan) if plan.many else {}
        self._written = self._kept = self._unknown = 0
        self._failures: list[str] = []
        self._changed: list[str] = []
        self._records: list[TokenRecord] = []

    def write(self, target: Path, files: Sequence[Path]) -> None:
        """Writes a file of tokens, unless it is there and current.

        Raises:
            FileError: the file cannot be written.
        """
        before = self._written
        found = [self._store(file, target) for file in files]
        clips = [clip for clip in found if clip is not None]
        self._records += [clip.record for clip in clips]
        if not clips:
            target.unlink(missing_ok=True)
        elif self._plan.many:
            if self._written > before or not self._holds(target, clips):
                CONTAINERS[format_of(target)].write(target, clips)
        elif self._written > before:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_tokens(target, clips[0].tokens)

    def report(self, failures: Sequence[str]) -> FolderReport:
        """Returns what happened so far, in this process.

        Args:
            failures: lines for motion files that were not tried.
        """
        return FolderReport(
            self._written,
            self._kept,
            (*failures, *self._failures),
            tuple(self._changed),
            self._unknown,
            notes=tuple(self._reader.notes),
            records=tuple(self._records),
        )

    def _store(self, file: Path, target: Path) -> StoredTokens | None:
        """Returns the clip of a motion file; None if the file cannot be read."""
        name = self._plan.name_of(file)
        old = self._known[name].tokens if name in self._known else find_tokens(target)
        origin = None if old is None else old.origin
        if old is not None and origin is not None and self._is_current(origin, file):
            self._kept += 1
            self._unknown += origin.source is None
            tokens = old
        else:
            if origin is not None:
                self._changed.append(writable(str(file)))
            try:
                tokens = self._tokenize(file)
            except (UserError, OSError) as error:
                self._failures.append(str(error))
                return None
            self._written += 1
        # Both ``tokenize`` and files of tokens that are kept set an origin.
        assert tokens.origin is not None
        frames, fps = tokens.origin.frames, tokens.origin.fps
        described: Description = self._reader.read(file, frames / fps)
        record = TokenRecord(
            name=name,
            source=file.relative_to(self._plan.source).as_posix(),
            file=target.relative_to(self._plan.destination).as_posix(),
            tokens=len(tokens.indices),
            frames=frames,
            captions=described.captions,
            speaker=described.speaker,
            audio=described.audio,
            words=described.words,
        )
        return StoredTokens(record, tokens)

    def _holds(self, target: Path, clips: Sequence[StoredTokens]) -> bool:
        """Whether a file of many clips holds these clips, which are described as they are there."""
        name = target.relative_to(self._plan.destination).as_posix()
        there = [clip.record for clip in self._known.values() if clip.record.file == name]
        return there == [clip.record for clip in clips]


def format_of(path: Path) -> TokenFormat:
    """Returns the format of a file of many clips."""
    return next(name for name in CONTAINERS if suffix_of(path.name) == f".{name}")


def read_shards(plan: FolderPlan) -> dict[str, StoredTokens]:
    """Returns the clips in files of many clips, by their names. Damaged files are left out."""
    found: dict[str, StoredTokens] = {}
    suffix = next(iter(plan.targets)).suffix
    for path in sorted(plan.destination.glob(f"shard-*{suffix}")):
        try:
            clips = read_container(path)
        except UserError:
            continue
        found |= {clip.record.name: clip for clip in clips}
    return found


def find_tokens(path: Path) -> Tokens | None:
    """Returns the tokens of a file; None if it is no complete file of the tokens of one clip."""
    try:
        return read_tokens(path)
    except MotionError:
        return None


def remove_shards(plan: FolderPlan, form: TokenFormat) -> None:
    """Deletes files of many clips that an earlier run wrote for more clips than there are now."""
    if plan.many:
        for path in plan.destination.glob(f"shard-*.{form}"):
            if path not in plan.targets:
                path.unlink()


def gather_reports(own: FolderReport, plan: FolderPlan, used: frozenset[str]) -> FolderReport:
    """Returns the sum of the reports of all processes.

    Args:
        used: the files that describe motion files, as this process found.
    """
    gathered = gather_objects((own, used))
    reports = [report for report, _ in gathered]
    all_used = frozenset().union(*(each for _, each in gathered))
    ignored = Counter(
        suffix_of(path.name)
        for path in plan.others
        if path.relative_to(plan.source).as_posix() not in all_used
    )
    places = {plan.name_of(file): place for place, file in enumerate(plan.files)}
    records = [record for report in reports for record in report.records]
    return FolderReport(
        written=sum(report.written for report in reports),
        kept=sum(report.kept for report in reports),
        failures=tuple(sorted(line for report in reports for line in report.failures)),
        changed=tuple(sorted(file for report in reports for file in report.changed)),
        unknown=sum(report.unknown for report in reports),
        ignored=describe_ignored(ignored),
        notes=tuple(sorted({note for report in reports for note in report.notes})),
        records=tuple(sorted(records, key=lambda record: places[record.name])),
    )
