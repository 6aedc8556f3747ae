"""The report of an evaluation, ``report.html``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from wanvae.evaluate.records import ModelRecord, TrialRecord
from wanvae.evaluate.summary import Evaluation, Summary
from wanvae.metrics.columns import QUALITY, RATE
from wanvae.metrics.means import mean_of
from wanvae.report import (
    Column,
    Comparison,
    Curves,
    Picture,
    Pictures,
    Row,
    Section,
    Table,
    write_page,
)
from wanvae.report.elements import Cell

PAGE = "report.html"
# Bytes of videos and pictures that a page holds. Media of further clips stay files beside it.
MEDIA_LIMIT = 48 * 2**20

SIZE = Column("size", explanation="height and width in pixels, or the shorter side")


def write_report(folder: Path, trials: Path, evaluation: Evaluation, facts: dict[str, str]) -> Path:
    """Writes the page, and returns its path.

    Args:
        folder: folder of the evaluation.
        trials: folder of the records and their media.
        facts: lines for the head of the page.

    Raises:
        FileError: the page cannot be written.
    """
    path = folder / PAGE
    title = f"Reconstruction of {Path(evaluation.settings.source).name}"
    write_page(path, title=title, facts=facts, sections=sections(evaluation, trials))
    return path


def sections(evaluation: Evaluation, trials: Path) -> Iterator[Section]:
    """Yields all sections of the page, the clips last."""
    parts = [*summary_tables(evaluation.overall), *mean_curves(evaluation.records)]
    yield Section("Summary", "summary", parts)
    for kind, rows in (("size", evaluation.by_size), ("length", evaluation.by_length)):
        if len({row.group for row in rows}) > 1:
            yield Section(f"By {kind}", f"by-{kind}", [group_table(kind, rows)])
    yield Section("Clips", "clips", [clip_table(evaluation.records)])
    notes = notes_table(evaluation)
    if notes.rows:
        yield Section("Notes", "notes", [notes])
    room = MEDIA_LIMIT
    for number, record in enumerate(evaluation.records):
        size = media_size(record, trials)
        fits = size <= room
        room -= size if fits else 0
        text = describe(record)
        if not fits:
            text += f" Its video and pictures are in {trials.name}/{record.folder}."
        parts = clip_parts(record, trials, with_media=fits)
        # The first clip is unfolded, so that there is something to see.
        yield Section(title_of(record), record.folder, parts, text, folded=number > 0)


def summary_tables(rows: Sequence[Summary]) -> Iterator[Table]:
    """Yields two tables with a row for each model: quality, then rate and speed."""
    for caption, columns in (("Quality", QUALITY), ("Rate and speed", RATE)):
        names = used(columns, rows)
        yield Table(
            [Column("model"), *(columns[name] for name in names)],
            [Row([row.model, *figures(row, names)]) for row in rows],
            caption,
        )


def mean_curves(records: Sequence[TrialRecord]) -> Iterator[Curves]:
    """Yields the PSNR of each frame, averaged over videos, up to the shortest one's length."""
    moving = [record for record in records if record.frames > 1]
    if len(moving) < 2:
        return
    count = min(record.frames for record in moving)
    lines: dict[str, list[float | None]] = {}
    for rows in zip(*(record.models for record in moving), strict=True):
        frames = zip(*(row.frame_psnr[:count] for row in rows), strict=True)
        lines[rows[0].model] = [mean_of(values) for values in frames]
    title = f"PSNR of each frame, the mean over {len(moving)} clips"
    yield Curves(title, "frame", "dB", lines, markers=count <= 100)


def group_table(kind: str, rows: Sequence[Summary]) -> Table:
    """Returns a table with a row for each group of clips and model."""
    names = used(QUALITY, rows)
    columns = [
        SIZE if kind == "size" else Column(kind),
        Column("model"),
        Column("clips", 0),
        *plain(QUALITY, names),
    ]
    cells = [[row.group, row.model, row.clips, *figures(row, names)] for row in rows]
    return Table(columns, [Row(row) for row in cells])


def clip_table(records: Sequence[TrialRecord]) -> Table:
    """Returns a table with a row for each trial and model. A row links to its section."""
    rows = [row for record in records for row in record.models]
    names = [name for name in used(QUALITY, rows) if name != "rfvd"]
    columns = [Column("clip"), SIZE, Column("frames", 0), Column("model")]
    return Table(
        [*columns, *plain(QUALITY, names)],
        [
            Row(
                [record.name, record.size, record.frames, row.model, *figures(row, names)],
                record.folder,
            )
            for record in records
            for row in record.models
        ],
    )


def notes_table(evaluation: Evaluation) -> Table:
    """Returns a table of what is missing or not exact, and why."""
    rows = [
        *evaluation.notes,
        *((failure.source, f"cannot be read: {failure.reason}") for failure in evaluation.failures),
        *((failure.source, failure.reason) for failure in evaluation.left_out),
    ]
    return Table([Column("what"), Column("why")], [Row(row) for row in rows])


def used(columns: dict[str, Column], rows: Sequence[Summary | ModelRecord]) -> list[str]:
    """Returns the columns that have a figure in at least one row."""
    return [name for name in columns if any(getattr(row, name, None) is not None for row in rows)]


def plain(columns: dict[str, Column], names: Sequence[str]) -> list[Column]:
    """Returns columns without a best row, because the rows are of different clips."""
    return [
        Column(columns[name].name, columns[name].digits, None, columns[name].explanation)
        for name in names
    ]


def figures(row: Summary | ModelRecord, names: Sequence[str]) -> list[Cell]:
    """Returns the cells of a row."""
    return [getattr(row, name) for name in names]


# A clip


def title_of(record: TrialRecord) -> str:
    """Returns the title of the section of a clip."""
    frames = f"{record.frames} frames" if record.frames > 1 else "1 frame"
    return f"{record.name}, {record.height}x{record.width}, {frames}"


def describe(record: TrialRecord) -> str:
    """Returns a sentence on where a clip starts and how well each model reconstructs it."""
    rows = (
        f"{row.model}: PSNR {QUALITY['psnr'].text(row.psnr)} dB, "
        f"SSIM {QUALITY['ssim'].text(row.ssim)}"
        for row in record.models
    )
    start = f"From {record.start:.2f} s on. " if record.start else ""
    return f"{start}{'; '.join(rows)}."


def clip_parts(
    record: TrialRecord, trials: Path, *, with_media: bool
) -> Iterator[Comparison | Curves | Pictures]:
    """Yields the slider, the curves and the worst frames of a clip."""
    folder = trials / record.folder
    names = [row.model for row in record.models]
    if record.video is not None and with_media:
        yield Comparison(folder / record.video, ["original", *names], record.fps)
    if record.frames > 1:
        lines = {row.model: row.frame_psnr for row in record.models}
        yield Curves("PSNR of each frame", "frame", "dB", lines, by_frame=True)
    for row in record.models:
        if row.worst and with_media:
            yield worst_pictures(row, folder)


def worst_pictures(row: ModelRecord, folder: Path) -> Pictures:
    """Returns the worst frames of a model, each in a row with its original and its error."""
    pictures = []
    for frame in row.worst:
        psnr = QUALITY["psnr"].text(frame.psnr)
        captions = (
            (frame.original, f"frame {frame.number}, original"),
            (frame.image, f"frame {frame.number}, {row.model}, {psnr} dB"),
            (
                frame.difference,
                f"error, 0 (black) to {frame.levels:.0f} of 255 levels (white)",
            ),
        )
        pictures += [Picture(folder / file, caption) for file, caption in captions]
    return Pictures(pictures, 3, f"Worst frames of {row.model}")


def media_size(record: TrialRecord, trials: Path) -> int:
    """Returns the bytes of the videos and pictures of a clip."""
    worst = [frame for row in record.models for frame in row.worst]
    files = [name for frame in worst for name in (frame.original, frame.image, frame.difference)]
    files += [] if record.video is None else [record.video]
    return sum((trials / record.folder / name).stat().st_size for name in files)
