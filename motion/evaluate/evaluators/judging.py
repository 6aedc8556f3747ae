"""A model judged as papers judge it: by the vectors of motion and of its reconstruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.evaluate.evaluators.captions import Caption, read_captions
from motion.evaluate.evaluators.figures import (
    GROUP,
    diversity,
    fid,
    mm_distance,
    r_precision,
)
from motion.evaluate.evaluators.loading import LONGEST, Evaluators
from motion.evaluate.evaluators.networks import FRAMES_OF_MOVEMENT
from motion.evaluate.reconstruction import reconstruct
from motion.features.recording import Recording, read_recording
from motion.models import MotionModel
from wanvae.engine.evaluating import evaluating
from wanvae.engine.processes import gather_objects
from wanvae.engine.sharing import share_files
from wanvae.engine.text import writable

if TYPE_CHECKING:
    from accelerate import PartialState

# Motions with fewer frames are left out, by the number of channels; and so are longer ones.
FEWEST_FRAMES = {263: 40, 251: 24}
MOST_FRAMES = 199
# How often what is drawn by chance is drawn, as published.
REPEATS = 20
BATCH = 32


class Estimate(NamedTuple):
    """A figure that depends on chance.

    Attributes:
        mean: its mean over draws.
        interval: half of the 95% interval of the mean.
    """

    mean: float
    interval: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of some motion.

    Attributes:
        diversity: the mean distance of random motions.
        r_precision: for the ranks 1, 2 and 3, the share of texts that find their motion among 32;
            empty without texts, or with fewer than 32 motions.
        mm_distance: the mean distance of motions and their texts; None without texts.
    """

    diversity: Estimate
    r_precision: tuple[Estimate, ...] = ()
    mm_distance: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the evaluators say about reconstructions.

    Attributes:
        evaluators: the folder of the evaluators.
        motions: the number of motions.
        left_out: the number of motions that are too short or too long for the evaluators.
        without_text: the number of files without a text, which are left out; 0 without texts.
        size: the size of the vectors.
        fid: the Frechet distance between the vectors of the originals and of the reconstructions.
        originals, reconstructions: the other figures.
        failures: a line for each file whose captions cannot be read, which is left out; sorted.
    """

    evaluators: str
    motions: int
    left_out: int
    without_text: int
    size: int
    fid: float
    originals: Figures
    reconstructions: Figures
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Judged:
    """The vectors of a motion.

    Attributes:
        key: the file, and the frame it starts at; for sorting.
        original, reconstruction: ``(E,)``, vectors of motion.
        texts: ``(captions, E)``, vectors of its captions; None without texts.
    """

    key: tuple[str, int]
    original: Tensor
    reconstruction: Tensor
    texts: Tensor | None


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a recording that captions describe, cut as the evaluators take it.

    Attributes:
        key: as in ``Judged``.
        recording: the part.
        captions: its captions; empty without texts.
    """

    key: tuple[str, int]
    recording: Recording
    captions: tuple[Caption, ...]


@dataclass
class Count:
    """What is left out while parts are read."""

    left_out: int = 0
    without_text: int = 0
    failures: list[str] = field(default_factory=list)


def judge(
    model: MotionModel,
    evaluators: Evaluators,
    files: Sequence[Path],
    processes: PartialState,
    *,
    texts: Path | None = None,
    progress: bool = False,
) -> Judgement:
    """Judges the reconstructions of motion files with all layers of the quantizer.

    Motions are cut to whole steps of 4 frames from their first frame, and to 196 frames. Motions of
    fewer than 40 frames (24 of KIT) or of 200 and more are left out, as published. Random draws
    start from the same seed.

    Args:
        files: motion files that the model reads.
        processes: the processes of the run. They all call this function and share the files.
        texts: the folder of the captions, with a file of the name of each motion file; None leaves
            out what needs texts.
        progress: show a progress bar.

    Returns:
        The figures, in every process.

    Raises:
        MotionError: fewer than 2 motions can be judged.
    """
    count = Count()
    shared = share_files(files, processes, progress=progress)
    parts = (part for file in shared for part in read_parts(model, file, texts, count))
    own = [judged for batch in in_batches(parts) for judged in embed(model, evaluators, batch)]
    gathered = gather_objects((own, count))
    everything = sorted((one for some, _ in gathered for one in some), key=lambda one: one.key)
    left_out = sum(each.left_out for _, each in gathered)
    without_text = sum(each.without_text for _, each in gathered)
    failures = sorted(line for _, each in gathered for line in each.failures)
    if len(everything) < 2:
        fewest = FEWEST_FRAMES[model.config.channels]
        unread = [f"; {len(failures)} have texts that cannot be read: {one}" for one in failures]
        raise MotionError(
            f"the evaluators need at least 2 motions of {fewest} to {MOST_FRAMES} frames, not "
            f"{len(everything)}: {left_out} of the files, or of the parts that texts describe, are "
            f"shorter or longer, and {without_text} have no text{''.join(unread[:1])}"
        )
    originals = torch.stack([one.original for one in everything])
    reconstructions = torch.stack([one.reconstruction for one in everything])
    captions = [one.texts for one in everything if one.texts is not None]
    return Judgement(
        evaluators=str(evaluators.folder),
        motions=len(everything),
        left_out=left_out,
        without_text=without_text,
        size=originals.shape[1],
        fid=fid(reconstructions, originals),
        originals=find_figures(originals, captions),
        reconstructions=find_figures(reconstructions, captions),
        failures=tuple(failures),
    )


def read_parts(model: MotionModel, path: Path, texts: Path | None, count: Count) -> Iterator[Part]:
    """Yields the parts of a motion file that the evaluators can judge, and counts the others.

    These are the whole motion, and the part of each caption that is of a part of it.
    """
    recording, fps = read_recording(path, model.config), model.config.fps
    fewest = FEWEST_FRAMES[model.config.channels]
    if not fewest <= len(recording) <= MOST_FRAMES:
        count.left_out += 1
        return
    spans: list[tuple[int, int, tuple[Caption, ...]]] = [(0, len(recording), ())]
    if texts is not None:
        written = texts / f"{path.stem}.txt"
        try:
            captions = read_captions(written) if written.is_file() else []
        except MotionError as error:
            count.failures.append(writable(str(error)))
            return
        count.without_text += not captions
        whole = tuple(caption for caption in captions if caption.is_whole)
        spans = [(0, len(recording), whole)] if whole else []
        spans += [
            (int(caption.start * fps), int(caption.end * fps), (caption,))
            for caption in captions
            if not caption.is_whole
        ]
    for start, end, described in spans:
        part = recording[start:end]
        if len(part) < fewest:
            count.left_out += 1
            continue
        frames = min(len(part), LONGEST) // FRAMES_OF_MOVEMENT * FRAMES_OF_MOVEMENT
        yield Part((str(path), start), part[:frames], described)


def in_batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Yields lists of parts."""
    parts = iter(parts)
    while batch := list(islice(parts, BATCH)):
        yield batch


def embed(model: MotionModel, evaluators: Evaluators, parts: Sequence[Part]) -> Iterator[Judged]:
    """Yields the vectors of parts, of their reconstructions and of their captions."""
    with evaluating(model):
        decoded = [reconstruct(model, part.recording)[1] for part in parts]
    originals = evaluators.embed_motions([part.recording.features for part in parts])
    reconstructions = evaluators.embed_motions(decoded)
    captions = [caption for part in parts for caption in part.captions]
    texts: Sequence[Tensor | None] = [None] * len(parts)
    if captions:
        vectors = evaluators.embed_captions(captions)
        texts = vectors.split([len(part.captions) for part in parts])
    for part, original, reconstruction, text in zip(
        parts, originals, reconstructions, texts, strict=True
    ):
        yield Judged(part.key, original, reconstruction, text)


def find_figures(motions: Tensor, texts: Sequence[Tensor]) -> Figures:
    """Returns the figures of vectors of motion ``(N, E)``.

    Args:
        texts: the vectors of the captions of each motion, ``(captions, E)``; empty without texts.
    """
    draws = [torch.Generator().manual_seed(seed) for seed in range(REPEATS)]
    spread = estimate(diversity(motions, generator=draw) for draw in draws)
    if not texts:
        return Figures(diversity=spread)
    precisions, distances = [], []
    for draw in draws:
        order = torch.randperm(len(motions), generator=draw)
        chosen = torch.stack([draw_row(captions, draw) for captions in texts])[order]
        distances.append(mm_distance(chosen, motions[order]))
        if len(motions) >= GROUP:
            precisions.append(r_precision(chosen, motions[order]))
    return Figures(
        diversity=spread,
        r_precision=tuple(map(estimate, zip(*precisions, strict=True))),
        mm_distance=estimate(distances),
    )


def draw_row(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Returns one of the rows ``(N, E)``."""
    return rows[torch.randint(len(rows), (), generator=generator)]


def estimate(values: Iterable[float]) -> Estimate:
    """Returns the mean of draws and its interval, as published."""
    values = list(values)
    return Estimate(fmean(values), 1.96 * pstdev(values) / sqrt(len(values)))
