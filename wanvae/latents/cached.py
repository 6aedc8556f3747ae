"""Latents that other programs saved or cached: finding the clips in files and folders, reading one.

The content of a file decides which program wrote it; ``formats`` lists them. Nothing in a file is
run.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.pickles import ZIP_MAGIC, load_pickle
from wanvae.engine.storage.temporary_files import temporary_folder
from wanvae.engine.text import first_few
from wanvae.errors import UserError
from wanvae.latents.common import FORMAT, readable
from wanvae.latents.formats import (
    DIFFUSION_PIPE,
    FASTVIDEO,
    FORMATS,
    PICKLE_FORMATS,
    SAFETENSORS_FORMATS,
    diffusion_pipe,
    fastvideo,
)
from wanvae.latents.formats.base import (
    Axes,
    Format,
    Found,
    Header,
    OtherLatentsError,
    as_clip,
    axes_of,
    channels_of,
    clip_shape,
    clips_in,
    whose,
)
from wanvae.latents.formats.plain import Pickle, tensor_in
from wanvae.latents.scale import Scale

# Files of a folder that may hold latents.
SUFFIXES = {".safetensors", ".latent", ".pt", ".pth", ".parquet"}
GZIP_MAGIC = b"\x1f\x8b"
# How pickles begin, and files of torch.save that are no archives.
PICKLE_MAGIC = b"\x80"
# Bytes 4 to 8 of safetensors: the upper half of the size of the header, and its beginning. Before
# them is the lower half, which may be any bytes, such as those that pickles begin with.
SAFETENSORS_MARK = b"\0\0\0\0{"
# How many times larger than its file a packed tensor may be. Latents hardly compress.
LARGEST_GROWTH = 20
# Bytes that are unpacked at once.
BLOCK = 2**20


class NoLatentsError(CheckpointError):
    """A file or folder holds no latents of a known program."""


@dataclass(frozen=True, slots=True)
class CachedClip:
    """A clip that another program cached, and where it is.

    Attributes:
        name: its name, unique in its folder or file.
        path: the file, or the folder of diffusion-pipe.
        format: the name of the format.
        place: where it is in the file.
        axes: the order of the axes of the stored tensor.
        number: number of the clip in the stored tensor.
        shape: shape of the latents, (z_dim, T, H, W).
        scale: the scale that the program stores; None if that is not known.
    """

    name: str
    path: Path
    format: str
    place: str
    axes: Axes
    number: int
    shape: tuple[int, int, int, int]
    scale: Scale | None

    @property
    def program(self) -> str:
        """The name of the program, for people."""
        return FORMATS[self.format].program

    @property
    def ambiguous(self) -> bool:
        """Whether the latents may as well be a batch of images, and are taken as a video."""
        return (
            not FORMATS[self.format].ordered
            and self.axes == "CTHW"
            and (self.shape[0] == self.shape[1])
        )

    def load(self) -> Tensor:
        """Returns the latents ``(z_dim, T, H, W)`` as they are stored.

        Raises:
            CheckpointError: the file cannot be read, or is another one than before.
        """
        with readable(self.path):
            latents = load_stored(self)
            check_stored(latents)
            clip = as_clip(latents, self.axes, self.number)
            if tuple(clip.shape) != self.shape:
                raise UserError(f"it has {list(clip.shape)} now, not {list(self.shape)}")
            return clip


def load_stored(clip: CachedClip) -> Tensor:
    """Returns the tensor that holds a clip."""
    if clip.format == DIFFUSION_PIPE.name:
        return diffusion_pipe.load(clip.path, clip.place)
    if clip.format == FASTVIDEO.name:
        return fastvideo.load(clip.path, clip.place)
    if FORMATS[clip.format] in SAFETENSORS_FORMATS:
        with safe_open(clip.path, framework="pt") as file:
            return file.get_tensor(clip.place)
    latents = tensor_in(read_pickle(clip.path), clip.place)
    if not isinstance(latents, Tensor):
        raise UserError("it holds other things than before")
    return latents


def check_stored(latents: Tensor) -> None:
    """Raises UserError if a tensor is not of plain numbers that are in its file."""
    if latents.layout is not torch.strided or latents.device.type != "cpu":
        raise UserError("its latents are no plain tensor")
    if not latents.is_floating_point():
        raise UserError(f"latents must be floating point, not {latents.dtype}")
    if latents.numel() * latents.itemsize > latents.untyped_storage().nbytes():
        raise UserError(f"it claims latents {list(latents.shape)}, more than it holds")


# Finding


@dataclass(frozen=True)
class Cache:
    """The clips in a file or folder.

    Attributes:
        clips: in the order of their files.
        others: how many files of each suffix hold no latents.
    """

    clips: tuple[CachedClip, ...]
    others: Counter[str]


def find_cache(path: Path, channels: int | None) -> Cache:
    """Returns the clips in a file or folder of another program.

    Args:
        channels: channels of the model that decodes them; None if it is not known.

    Raises:
        CheckpointError: there are none, a file cannot be read, or the channels are others.
    """
    clips: list[CachedClip] = []
    others: Counter[str] = Counter()
    for source in sources_of(path):
        with readable(source):
            found = find_clips(source, channels)
            if not found and source == path:
                raise UserError("it holds no latents of a known program")
        if not found:
            others[source.suffix or source.name] += 1
        clips += found
    if not clips:
        held = f"; its files hold other things: {dict(others)}" if others else ""
        raise NoLatentsError(f"{path} holds no latents of a known program{held}; check the path")
    if path.is_dir():
        clips = [replace(clip, name=name_in(path, clip)) for clip in clips]
    return Cache(tuple(with_unique_names(clips)), others)


def sources_of(path: Path) -> Iterable[Path]:
    """Returns the files below a folder that may hold latents, and folders of diffusion-pipe."""
    if not path.is_dir() or (path / diffusion_pipe.DATABASE).is_file():
        return [path]
    found: list[Path] = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        if diffusion_pipe.DATABASE in files:
            found.append(here)
            continue
        names = (name for name in sorted(files) if not name.startswith("."))
        paths = [here / name for name in names if Path(name).suffix.lower() in SUFFIXES]
        found += [path for path in paths if not path.is_fifo()]
    return found


def name_in(folder: Path, clip: CachedClip) -> str:
    """Returns the name of a clip with the path of its file in a folder."""
    inner = clip.path if clip.path.is_dir() else clip.path.parent
    return (inner.relative_to(folder) / clip.name).as_posix()


def with_unique_names(clips: Sequence[CachedClip]) -> Iterator[CachedClip]:
    """Yields clips with a number after names that occur more than once."""
    counts = Counter(clip.name for clip in clips)
    seen: Counter[str] = Counter()
    for clip in clips:
        if counts[clip.name] == 1:
            yield clip
        else:
            yield replace(clip, name=f"{clip.name}.{seen[clip.name]}")
            seen[clip.name] += 1


def find_clips(path: Path, channels: int | None) -> list[CachedClip]:
    """Returns the clips in a file, or in a folder of diffusion-pipe; none if it has no latents.

    Raises:
        UserError: the file is damaged, or no model of so many channels decodes its latents.
        OSError: the file cannot be read.
    """
    kind, found = find_in(path)
    if kind is None:
        return []
    return [clip for each in found for clip in split(path, kind, each, channels)]


def find_in(path: Path) -> tuple[Format | None, Sequence[Found]]:
    """Returns the format of a file and the latents in it."""
    if path.is_dir():
        found = diffusion_pipe.find(path)
        return (DIFFUSION_PIPE, found) if found else (None, ())
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(fastvideo.MAGIC):
        found = fastvideo.find(path)
        return (FASTVIDEO, found) if found else (None, ())
    others = (ZIP_MAGIC, PICKLE_MAGIC, GZIP_MAGIC)
    if head.startswith(others) and head[4:9] != SAFETENSORS_MARK:
        content, formats = Pickle(path, read_pickle(path)), PICKLE_FORMATS
    else:
        content, formats = read_header(path), SAFETENSORS_FORMATS
        if content.metadata.get("format") == FORMAT:
            raise UserError("it is a file of wanvae without its data set: decode it by itself")
    for kind in formats:
        if found := kind.find(content):
            return kind, found
    return None, ()


def split(path: Path, kind: Format, found: Found, channels: int | None) -> Iterator[CachedClip]:
    """Yields the clips of a tensor."""
    axes = found.axes or axes_of(found.shape, channels)
    if len(axes) != len(found.shape) or 0 in found.shape:
        raise UserError(f"its latents must be ({', '.join(axes)}), not {list(found.shape)}")
    own = channels_of(found.shape, axes)
    if channels not in (None, own):
        raise OtherLatentsError(
            f"{path} has latents of {own} channels, but this model has {channels}{whose(own)}; use "
            "the checkpoint that encoded them"
        )
    name = found.name or (path.name if path.is_dir() else path.stem)
    for number in range(clips_in(found.shape, axes)):
        yield CachedClip(
            name=name,
            path=path,
            format=kind.name,
            place=found.place,
            axes=axes,
            number=number,
            shape=clip_shape(found.shape, axes),
            scale=kind.scale,
        )


def pick(path: Path, clips: Sequence[CachedClip], name: str | None) -> CachedClip:
    """Returns the clip of a name, or the only one.

    Raises:
        CheckpointError: there is no such clip, or no name although there are several.
    """
    chosen = [clip for clip in clips if name in (None, clip.name)]
    if len(chosen) == 1:
        return chosen[0]
    names = first_few([clip.name for clip in clips])
    if name is None:
        raise CheckpointError(f"{path} holds {len(clips)} clips; choose one with --entry: {names}")
    raise CheckpointError(f"{path} holds no clip {name!r}; choose one with --entry: {names}")


# Opening files


def read_header(path: Path) -> Header:
    """Returns the head of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        return Header(path, file.metadata() or {}, shapes)


def is_own(path: Path) -> bool:
    """Whether this package wrote a file of latents."""
    with readable(path), path.open("rb") as file:
        if file.read(9)[8:] != b"{":
            return False
    with readable(path):
        return read_header(path).metadata.get("format") == FORMAT


def read_pickle(path: Path) -> object:
    """Returns the content of a file that ``torch.save`` wrote, which may be packed by gzip.

    Raises:
        UserError: it is damaged, holds other things than tensors and plain values, or unpacks to
            much more than it is.
    """
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    if not packed:
        return load_pickle(path)
    with unpacked(path) as copy:
        try:
            return cloned(load_pickle(copy))
        except CheckpointError as error:
            raise UserError(str(error).replace(str(copy), "what it unpacks to")) from error


def cloned(content: object) -> object:
    """Returns a tensor, or a dict of them, in memory of its own."""
    if isinstance(content, Tensor):
        check_stored(content)
        return content.clone()
    if isinstance(content, dict):
        return {key: cloned(value) for key, value in content.items()}
    return content


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Gives a file with what gzip packed, which is then deleted."""
    limit = LARGEST_GROWTH * path.stat().st_size
    with temporary_folder() as folder:
        copy = folder / "latents.pt"
        with gzip.open(path) as file, copy.open("wb") as content:
            try:
                while block := file.read(BLOCK):
                    content.write(block)
                    limit -= len(block)
                    if limit < 0:
                        raise UserError("it unpacks to much more than it is")
            except (EOFError, zlib.error) as error:
                raise UserError(f"it is damaged ({error})") from error
        yield copy
