"""Training data: random crops from folders of videos, images and tars of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from wanvae.engine.config import check
from wanvae.engine.litter import describe_ignored
from wanvae.engine.storage.remote_path import Location, location
from wanvae.engine.training.notices import SHOWN, warn_about
from wanvae.errors import UserError
from wanvae.folders.catalog import Entries, names_of, numbers_of, open_folder
from wanvae.folders.excerpts import Selection, read_excerpt, select
from wanvae.folders.listing import File
from wanvae.folders.manifest import Entry, reason
from wanvae.train.colour import ColourConfig, draw_colours, recolour
from wanvae.train.degradation import DegradationConfig
from wanvae.video import HdrWarning, ReadOptions, VideoError, read_clip
from wanvae.video.reading.options import parse_options

# How many files in a row may fail before something else must be wrong.
MOST_FAILURES = 100
# Entries whose numbers are unpacked at once.
BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """One shape of crops.

    Attributes:
        frames: frames per crop, 1 + 4n for the official temporal factor; 1 takes images too.
        height: pixels, a multiple of 8 for the official spatial factor.
        width: pixels, likewise.
        weight: how often a step is of this shape, relative to the other buckets.
    """

    frames: int
    height: int
    width: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(0 < self.weight < float("inf"), "weight", self.weight, "above 0")

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}x{self.height} pixels"


# Where training videos are if nobody says so.
FOLDER = "data"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where training crops come from.

    Attributes:
        folder: searched for videos, images and tars of them, with its subfolders; quick to open
            after ``wanvae index``.
        folders: several such folders, instead of the one of folder.
        folder_weights: how often a clip is of each of the folders, relative to the others; without
            weights, all alike. Where a folder has nothing as large or long as a shape of crops, the
            others take its place.
        frames: frames per crop, 1 + 4n for the official temporal factor; 1 takes images too.
        size: height and width of a crop in pixels.
        buckets: several shapes of crops, instead of the one of frames and size. Each step draws one
            shape for all its samples. Shapes with about as many pixels in all make steps of about
            the same memory and time.
        strides: the smallest and largest distance between the frames of a crop, in frames of the
            video. It is drawn for each crop, and limited by the length of the video.
        largest_scale: a crop covers between 1 and this many times its size, and is scaled down. The
            factor is drawn for each crop, and limited by the size of the video.
        crops_per_clip: how many samples in a row are crops of the same decoded frames, because
            decoding often costs more than training a small model.
        flip: mirror half of the crops.
        colour: random colours of crops.
        degradation: what the encoder sees instead of a crop, so that the model learns to restore.
            Clips of the evaluation are degraded too, each time in the same way.
        deinterlace: give interlaced frames all lines of one time, also in clips of the evaluation.
        background: what transparent pictures are laid on, like "white" or "#ff8000" (default:
            black), also in clips of the evaluation. Only for models that do not encode alpha.
        hwaccel: decode on a device, if FFmpeg has it, like "cuda", "videotoolbox" or
            "vaapi:/dev/dri/renderD128" (default: on the CPU).
    """

    # The files that are trained on are compared instead: a folder can be moved. Devices decode
    # what the CPU decodes.
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"folder", "folders", "hwaccel"})

    folder: str = FOLDER
    folders: tuple[str, ...] = ()
    folder_weights: tuple[float, ...] = ()
    frames: int = 5
    size: int = 128
    buckets: tuple[BucketConfig, ...] = ()
    strides: tuple[int, int] = (1, 1)
    largest_scale: float = 1.0
    crops_per_clip: int = 1
    flip: bool = True
    colour: ColourConfig = field(default_factory=ColourConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    deinterlace: bool = False
    background: str | None = None
    hwaccel: str | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "size", "largest_scale", "crops_per_clip"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        smallest, largest = self.strides
        check(1 <= smallest <= largest, "strides", self.strides, "1 or more and in order")
        if self.folders and self.folder != FOLDER:
            raise UserError(
                f"data.folder is {self.folder!r} and data.folders are {', '.join(self.folders)}: "
                "give one of the two"
            )
        different = len({str(location(folder)) for folder in self.folders}) == len(self.folders)
        check(different, "folders", self.folders, "different from each other")
        weights = self.folder_weights
        positive = all(0 < weight < float("inf") for weight in weights)
        for_each = not weights or len(weights) == len(self.folders)
        check(positive and for_each, "folder_weights", weights, "one above 0 for each of folders")
        _ = self.reading  # a wrong colour is an error here

    @property
    def shapes(self) -> tuple[BucketConfig, ...]:
        """The buckets, or the one shape of ``frames`` and ``size``."""
        single = BucketConfig(frames=self.frames, height=self.size, width=self.size)
        return self.buckets or (single,)

    @property
    def reading(self) -> ReadOptions:
        """How pictures come out of files."""
        return parse_options(
            deinterlace=self.deinterlace, background=self.background, hwaccel=self.hwaccel
        )

    @property
    def shares(self) -> dict[str, float]:
        """The weight of each folder; their sum is 1."""
        folders = self.folders or (self.folder,)
        weights = self.folder_weights or (1.0,) * len(folders)
        return {name: w / sum(weights) for name, w in zip(folders, weights, strict=True)}


class VideoCrops(Dataset):
    """An endless list of random crops ``(C, T, H, W)`` in [-1, 1].

    Sample ``number`` depends on (seed, number) alone, and its shape on (seed, step), where the
    samples of a step are ``samples_per_step`` numbers in a row. So any number of workers and
    processes sees the same samples, and a run that resumes only needs the number of samples used.

    Another file of the same folder, drawn in the same way, replaces a file that cannot be read. One
    warning names the file, however many workers meet it. Other parts of the file are used if they
    can be read. What the reader warns of in a clip that is used, such as damage, is told once for
    the file too.

    Args:
        samples_per_step: on all processes together.
        alpha: whether crops are RGBA, opaque where a file has no alpha, or RGB.
        report: warn of files that are left out, and of HDR. One process of a run should.

    Attributes:
        sources: the folders, in the order of the config.

    Raises:
        VideoError: nothing in the folders is large and long enough for one of the shapes; nothing
            in one of them for any shape; or, for a sample, very many files in a row cannot be read.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        *,
        samples_per_step: int,
        alpha: bool = False,
        report: bool = True,
    ) -> None:
        self.config = config
        self.seed = seed
        self.samples_per_step = samples_per_step
        self.buckets = config.shapes
        weights = np.array([bucket.weight for bucket in self.buckets])
        self._shares = weights / weights.sum()
        self.sources = [Source(location(folder), config, alpha, report) for folder in config.shares]
        self._source_shares = [
            shares_for(bucket, self.sources, config) for bucket in range(len(self.buckets))
        ]
        self._held = -1, -1
        self._clip = torch.empty(0)

    def __getitem__(self, number: int) -> Tensor:
        bucket = self.bucket_of(number)
        wanted = bucket, number // self.config.crops_per_clip
        if wanted != self._held:
            self._held, self._clip = wanted, self.read_clip(*wanted)
        random = np.random.default_rng([self.seed, 0, number])
        crop = random_crop(self._clip, self.buckets[bucket], self.config, random)
        if not self.config.colour.changes:
            return crop
        random = np.random.default_rng([self.seed, 3, number])
        return recolour(crop, draw_colours(self.config.colour, random))

    def describe(self) -> dict[str, Iterator[str]]:
        """For each folder, lines that say which videos and images are used and how large."""
        return {str(source.folder): source.describe() for source in self.sources}

    def bucket_of(self, number: int) -> int:
        """Index of the bucket of a sample, the same for all samples of a step."""
        random = np.random.default_rng([self.seed, 2, number // self.samples_per_step])
        return int(random.choice(len(self.buckets), p=self._shares))

    def read_clip(self, bucket: int, number: int) -> Tensor:
        """Random whole frames ``(C, T, height, width)``, from which samples are cut."""
        random = np.random.default_rng([self.seed, 1, bucket, number])
        source, *others = self.sources
        if others:
            source = self.sources[random.choice(len(self.sources), p=self._source_shares[bucket])]
        return source.read_clip(bucket, random)


class Source:
    """A folder of videos, images and tars of them, of which clips are read.

    Args:
        alpha: whether clips are RGBA, or RGB.
        report: warn of files that are left out, and of HDR.

    Attributes:
        entries: what is in it; the scenes of videos that are analysed, instead of these.
        ignored: how many of its files are no videos, images or tars, by suffix; or empty.
        usable: for each bucket, the positions of the entries that are large and long enough.
        used: whether some bucket can use each entry.
    """

    def __init__(self, folder: Location, config: DataConfig, alpha: bool, report: bool) -> None:
        self.folder = folder
        self.config = config
        self.alpha = alpha
        self.reading = config.reading
        try:
            content = open_folder(folder)
        except VideoError as error:
            raise VideoError(f"{error}, or name another folder as data.folder") from error
        selection = select(content.entries)
        self.entries, self.ignored = selection.entries, describe_ignored(content.ignored)
        if report:
            warn_of_selection(selection, folder)
        if not self.entries:
            ignored = f", only other files ({self.ignored})" if self.ignored else ""
            if content.entries:
                ignored = ", except those that are left out"
            raise VideoError(
                f"no usable video in {str(folder)!r}: it has no videos and no images{ignored}"
            )
        numbers = numbers_of(self.entries)
        self.usable = find_usable(numbers, config)
        self.used = np.zeros(len(numbers), bool)
        for positions in self.usable:
            self.used[positions] = True
        if report:
            warn_of(self.entries, np.flatnonzero(~self.used), numbers["is_broken"], folder)
            warn_of_hdr(self.entries, np.flatnonzero(self.used & numbers["is_hdr"]), folder)
        if config.folders and not self.used.any():
            raise VideoError(
                f"no usable video in {str(folder)!r}: nothing in it is as large and long as a crop"
            )
        # In shared memory: a file that one worker has named is not named by another.
        self._named, self._told = torch.zeros(
            2, len(self.entries), dtype=torch.bool
        ).share_memory_()
        # The scenes of one file share the place of the first of them.
        self._file_of = places_of(self.entries)

    def describe(self) -> Iterator[str]:
        """A line for each video or image that is used: which it is and how large."""
        names, scenes = names_of(self.entries), scenes_of(self.entries)
        numbers = numbers_of(self.entries)
        columns = [numbers[field] for field in ("size", "frames", "width", "height")]
        for start in range(0, len(numbers), BLOCK):
            part = slice(start, start + BLOCK)
            values = (column[part].tolist() for column in columns)
            # Names and scenes go on where the block before has ended.
            rows = compress(zip(*values, names, scenes, strict=False), self.used[part].tolist())
            yield from [
                f"{name}: {size} bytes, {frames} x {width} x {height}{scene}"
                for size, frames, width, height, name, scene in rows
            ]

    def read_clip(self, bucket: int, random: np.random.Generator) -> Tensor:
        """Random whole frames ``(C, T, height, width)`` for crops of a bucket."""
        usable, shape = self.usable[bucket], self.config.shapes[bucket]
        failure = ""
        for _ in range(MOST_FAILURES):
            index = int(usable[random.integers(len(usable))])
            entry = self.entries[index]
            stride = int(random.integers(*stride_range(entry, shape, self.config), endpoint=True))
            start = random.integers(entry.frames - (shape.frames - 1) * stride)
            try:
                return self.read(index, start / entry.fps, shape, stride)
            except Exception as error:  # a damaged file can raise anything
                # Only its text: the error would keep the decoders of this call.
                failure = str(error)
                self.name_once(index, error)
        raise VideoError(
            f"{MOST_FAILURES} files in a row could not be read from {str(self.folder)!r}, the "
            f"last: {failure}; is the folder still there?"
        )

    def read(self, index: int, start: float, shape: BucketConfig, stride: int) -> Tensor:
        entry = self.entries[index]
        with warnings.catch_warnings(record=True) as notices:
            warnings.simplefilter("always")
            if entry.excerpt is None:
                source = entry.source(self.folder)
                clip = read_clip(
                    source, start, shape.frames, stride, alpha=self.alpha, options=self.reading
                )
            else:
                clip = read_excerpt(
                    entry,
                    self.folder,
                    start,
                    shape.frames,
                    stride,
                    alpha=self.alpha,
                    options=self.reading,
                )
        if clip.shape[2] < shape.height or clip.shape[3] < shape.width:
            raise VideoError("it has become smaller since it was indexed")
        self.tell_once(index, notices)
        return clip

    def tell_once(self, index: int, notices: Sequence[warnings.WarningMessage]) -> None:
        """Warns of what the reader has warned of, the first time that it does so for a file."""
        if self.entries[index].hdr is not None:  # which is told before the first sample
            notices = [notice for notice in notices if notice.category is not HdrWarning]
        if not notices or self._told[self._file_of[index]]:
            return
        self._told[self._file_of[index]] = True
        for notice in notices:
            warnings.warn(notice.message, stacklevel=2)

    def name_once(self, index: int, error: Exception) -> None:
        if self._named[self._file_of[index]]:
            return
        self._named[self._file_of[index]] = True
        entry = self.entries[index]
        why = reason(error, entry.source(self.folder))
        name = entry.name if not self.config.folders else f"{self.folder}/{entry.name}"
        warnings.warn(f"a clip of {name} could not be used: {why}", stacklevel=2)


def shares_for(bucket: int, sources: Sequence[Source], config: DataConfig) -> np.ndarray:
    """How often a clip of a bucket is of each folder: not of folders that have nothing for it.

    Raises:
        VideoError: no folder has a clip for the bucket.
    """
    shares = np.array([*config.shares.values()])
    shares *= [len(source.usable[bucket]) > 0 for source in sources]
    if not shares.any():
        shape = config.shapes[bucket]
        raise VideoError(
            f"no usable video in {', '.join(map(repr, config.shares))}: clips of {shape} need "
            "videos as large and long as that"
            f"{', or images as large' if shape.frames == 1 else ''}"
        )
    return shares / shares.sum()


def stride_range(entry: Entry, shape: BucketConfig, config: DataConfig) -> tuple[int, int]:
    """The smallest and largest stride of a crop of this shape from a long enough entry."""
    smallest, largest = config.strides
    if shape.frames == 1:
        return smallest, smallest
    return smallest, min(largest, (entry.frames - 1) // (shape.frames - 1))


def random_crop(
    clip: Tensor, shape: BucketConfig, config: DataConfig, random: np.random.Generator
) -> Tensor:
    """A random part of ``(C, T, H, W)``, scaled down to ``shape`` and perhaps mirrored."""
    whole, size = clip.shape[2:], (shape.height, shape.width)
    limit = min(length / wanted for length, wanted in zip(whole, size, strict=True))
    scale = random.uniform(1, min(config.largest_scale, limit))
    height, width = (
        min(length, round(wanted * scale)) for length, wanted in zip(whole, size, strict=True)
    )
    top = random.integers(whole[0] - height + 1)
    left = random.integers(whole[1] - width + 1)
    crop = clip[:, :, top : top + height, left : left + width]
    if (height, width) != size:
        crop = F.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False)
    if config.flip and random.random() < 0.5:
        crop = crop.flip(3)
    return crop.contiguous()


def find_usable(numbers: np.ndarray, config: DataConfig) -> list[np.ndarray]:
    """For each bucket, the positions of the entries that are large and long enough for it.

    Args:
        numbers: the numbers of the entries.
    """
    return [np.flatnonzero(fits(numbers, shape, config)) for shape in config.shapes]


def fits(numbers: np.ndarray, shape: BucketConfig, config: DataConfig) -> np.ndarray:
    """Whether each entry is large and long enough for crops of this shape."""
    return (
        ~numbers["is_broken"]
        & (numbers["height"] >= shape.height)
        & (numbers["width"] >= shape.width)
        & (numbers["frames"] > (shape.frames - 1) * config.strides[0])
    )


def warn_of(
    entries: Sequence[Entry], unusable: np.ndarray, is_broken: np.ndarray, folder: Location
) -> None:
    """Warns how many files are left out, and which: first the broken ones, then the small ones.

    Args:
        unusable: the positions of these entries.
        is_broken: for each entry, whether it cannot be read.
    """
    if not len(unusable):
        return
    broken, small = unusable[is_broken[unusable]], unusable[~is_broken[unusable]]
    scenes = " or scenes" if has_scenes(entries) else ""
    warn_about(
        f"{len(broken)} files in {str(folder)!r} cannot be read and {len(small)}{scenes} are "
        "smaller or shorter than every clip",
        [describe_unusable(entries[int(i)]) for i in np.concatenate([broken, small])[:SHOWN]],
        count=len(unusable),
    )


def describe_unusable(entry: Entry) -> str:
    """Says which entry is not used, and why."""
    if entry.error is not None:
        return f"{entry.name}: {entry.error}"
    counted = " by its header" if entry.excerpt is None else ""
    return f"{entry.label}: {entry.width}x{entry.height} pixels, {entry.frames} frames{counted}"


def has_scenes(entries: Sequence[Entry]) -> bool:
    """Whether some entries are scenes. Those that are parsed when they are asked for are not."""
    return not isinstance(entries, Entries) and any(entry.excerpt is not None for entry in entries)


def scenes_of(entries: Sequence[Entry]) -> Iterator[str]:
    """Returns what to add to the name of each entry: the part of its video, if it is a scene."""
    if not has_scenes(entries):
        return repeat("", len(entries))
    excerpts = ((entry.excerpt, entry.frames) for entry in entries)
    return ("" if each is None else f", {each.describe(n)}" for each, n in excerpts)


def places_of(entries: Sequence[Entry]) -> Sequence[int]:
    """Returns for each entry the position of the first entry of the same video."""
    if not has_scenes(entries):
        return range(len(entries))
    firsts: dict[tuple[File, str | None], int] = {}
    return [firsts.setdefault(entry.place, i) for i, entry in enumerate(entries)]


def warn_of_selection(selection: Selection, folder: Location) -> None:
    """Warns how many scenes are left out, and which; and what else is done with scenes."""
    if selection.notes:
        shown = selection.left_out
        warn_about(f"{str(folder)!r}: {'; '.join(selection.notes)}", shown, "as its index says")


def warn_of_hdr(entries: Sequence[Entry], found: np.ndarray, folder: Location) -> None:
    """Warns how many files are HDR, and which.

    Args:
        found: the positions of these entries.
    """
    if len(found):
        warn_about(
            f"{len(found)} files in {str(folder)!r} are HDR or have wide colours",
            [f"{entry.name}: {entry.hdr}" for entry in (entries[int(i)] for i in found[:SHOWN])],
            "they are converted to SDR of BT.709 (tone mapping), and highlights are darker",
            count=len(found),
        )
