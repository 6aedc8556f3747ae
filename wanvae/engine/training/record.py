"""What a run is of. Its folder keeps that, and a run goes on only with the same."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from wanvae.engine.command_line.outcome import versions
from wanvae.engine.config import from_json_dict, to_json_dict
from wanvae.engine.files import atomic_path
from wanvae.engine.json_files import read_value, write_value
from wanvae.engine.output_folder import describe_differences
from wanvae.engine.text import first_sentence, writable
from wanvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

CONFIG = "config.yaml"
RECORD = "run.json"
# The option that names the checkpoint to start from. Not its name but its content must stay.
START = "weights"
# Lines that are hashed at once.
BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """A part of the training data, such as a folder.

    Attributes:
        name: where it lies, which may change.
        count: how many files or clips it has.
        digest: SHA-256 of what names and describes each of them.
    """

    name: str
    count: int
    digest: str

    def __str__(self) -> str:
        return f"{self.count} entries (digest {self.digest[:8]})"


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a run was started the last time, besides its options.

    Attributes:
        command: the command line.
        versions: of this package, PyTorch, Python and the system.
        batches_per_step: on all processes together.
        data_count: how many files or clips the training data are.
        data_digest: SHA-256 of what names and describes each of them.
        data_parts: the same of each part; empty in runs of earlier versions.
        start: a digest of the tensors and the config of the checkpoint that the model starts from;
            empty if it is a new model; None in runs of earlier versions, which do not tell.
    """

    command: str
    versions: str
    batches_per_step: int
    data_count: int
    data_digest: str
    data_parts: tuple[DataPart, ...] = ()
    start: str | None = None


def make_record(data: Mapping[str, Iterable[str]], batches_per_step: int, start: str) -> Record:
    """The record of this process.

    Args:
        data: for each part of the training data by name, a line for each file or clip in it; all
            in their order.
        batches_per_step: on all processes together.
        start: a digest of the checkpoint that the model starts from; empty if it is a new model.
    """
    digest, parts = hashlib.sha256(), []
    for name, lines in data.items():
        of_part, count, rest = hashlib.sha256(), 0, iter(lines)
        while block := list(islice(rest, BLOCK)):
            content = "\n".join([*block, ""]).encode(errors="surrogateescape")
            digest.update(content)
            of_part.update(content)
            count += len(block)
        parts.append(DataPart(name=writable(name), count=count, digest=of_part.hexdigest()))
    return Record(
        command=shlex.join(sys.argv),
        versions=versions(),
        batches_per_step=batches_per_step,
        data_count=sum(part.count for part in parts),
        data_digest=digest.hexdigest(),
        data_parts=tuple(parts),
        start=start,
    )


def keep_record(run: Path, config: DataclassInstance, record: Record, *, goes_on: bool) -> str:
    """Writes what a run is of to its folder; checks it first if the run goes on.

    Args:
        run: the folder. It gets ``config.yaml``, a file for ``--config``, and ``run.json``.
        config: all options of the run.
        record: how it is started.
        goes_on: whether the run has checkpoints.

    Returns:
        One line for people; empty if there is nothing to say.

    Raises:
        UserError: the run was started with something else that its result depends on.
        FileError: the folder cannot be written.
    """
    note = ""
    if goes_on and not ((run / CONFIG).exists() and (run / RECORD).exists()):
        note = (
            f"{run} has no {CONFIG} and {RECORD}, so it cannot be checked that it goes on with the "
            "same settings and data; both are written now"
        )
    elif goes_on:
        changes = find_changes(run, config, record)
        if changes:
            raise UserError(
                f"{run} was started with something else: {'; '.join(changes)}. Give the same to go "
                "on, or name another folder (trainer.run) to start a new run, which can begin with "
                "weights of this one"
            )
    with atomic_path(run / CONFIG) as temporary:
        text = yaml.safe_dump(to_json_dict(config), sort_keys=False, allow_unicode=True)
        temporary.write_text(text, encoding="utf-8")
    write_value(run / RECORD, record, indent=2)
    return note


def find_changes(run: Path, config: DataclassInstance, record: Record) -> list[str]:
    """Says in words what is not as it was when the run was started.

    Raises:
        UserError: the files of the run are damaged or of another version.
    """
    try:
        mapping = yaml.safe_load((run / CONFIG).read_bytes())
        before = from_json_dict(type(config), mapping)
        started = read_value(run / RECORD, Record)
    except (OSError, UserError, yaml.YAMLError) as error:
        raise UserError(
            f"{CONFIG} or {RECORD} in {run} cannot be read ({first_sentence(error)}); delete both "
            "to go on without a check that the settings are the same"
        ) from error
    ours, theirs = decisive_options(config), decisive_options(before)
    # Records of earlier versions have the name only.
    checked = () if started.start is None else (START,)
    names = [name for name in {**ours, **theirs} if name not in checked]
    changes = describe_differences(
        {name: ours.get(name) for name in names}, {name: theirs.get(name) for name in names}
    )
    if started.start is not None and started.start != record.start:
        changes.append(
            f"{START} is {theirs.get(START)!r} (digest {(started.start or 'none')[:8]}), not "
            f"{ours.get(START)!r} (digest {(record.start or 'none')[:8]})"
        )
    if started.batches_per_step != record.batches_per_step:
        changes.append(
            f"batches in a step (trainer.accumulate x processes) are {started.batches_per_step}, "
            f"not {record.batches_per_step}"
        )
    changes += describe_data_changes(started, record)
    return changes


def describe_data_changes(started: Record, record: Record) -> Iterator[str]:
    """Says in words which training data are not what they were when the run was started."""
    before, now = started.data_parts, record.data_parts
    if len(before) != len(now) or len(now) == 1:
        before, now = (
            (DataPart(name="", count=each.data_count, digest=each.data_digest),)
            for each in (started, record)
        )
    for one, other in zip(before, now, strict=True):
        if (one.count, one.digest) != (other.count, other.digest):
            of = f" of {other.name}" if other.name else ""
            yield f"the training data{of} are {one}, not {other}: files came, went or changed"


def decisive_options(config: DataclassInstance, prefix: str = "") -> dict[str, Any]:
    """The options that change the result of a run, by name, such as ``model.dim``.

    A dataclass names its other fields in ``MAY_CHANGE``, a class variable.
    """
    options = {}
    for field in fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if field.name in getattr(config, "MAY_CHANGE", ()):
            continue
        if is_dataclass(value) and not isinstance(value, type):
            options |= decisive_options(value, f"{name}.")
        else:
            options[name] = value
    return options


def flat_options(config: DataclassInstance) -> dict[str, bool | int | float | str]:
    """All options by name, with what is no single value as text, as trackers want them."""

    def flatten(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        flat = {}
        for name, value in values.items():
            if isinstance(value, dict):
                flat |= flatten(value, f"{prefix}{name}.")
            else:
                single = isinstance(value, (bool, int, float, str))
                flat[f"{prefix}{name}"] = value if single else str(value)
        return flat

    return flatten(asdict(config), "")
