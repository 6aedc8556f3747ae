"""Files of named tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from wanvae.engine.files import atomic_path, unwritable
from wanvae.engine.gguf_file import GGUF_MAGIC, open_gguf
from wanvae.engine.pickles import LEGACY_MAGIC, ZIP_MAGIC, load_pickle, open_pickle
from wanvae.engine.safetensors_file import open_safetensors
from wanvae.engine.split_file import is_index, open_split_file
from wanvae.engine.stored_tensors import CheckpointError, StoredFile, StoredTensors, damaged
from wanvae.engine.text import first_few

# What people have where a download went wrong, by how it begins.
PAGE = "a web page; download the file itself"
OTHER_FILES = {
    b"version https:/": "a pointer of Git LFS; run git lfs pull, or download the file itself",
    b"<!DOCTYPE": PAGE,
    b"<!doctype": PAGE,
    b"<html": PAGE,
    b"Entry not found": "the answer of a server that has no such file; check its name there",
}


@dataclass(frozen=True)
class TensorFile:
    """What a file of named tensors holds.

    Attributes:
        tensors: by name, on the CPU. Their memory may be the file itself. Copy them, as
            ``load_tensors`` does, if they must outlive a change of the file.
        metadata: the texts in a safetensors file; empty for a pickle.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def open_tensors(path: str | os.PathLike[str]) -> StoredFile:
    """Opens a file of named tensors of any kind; the content decides which.

    Tensors are read when somebody asks for them. Objects other than tensors are never unpickled.

    Raises:
        CheckpointError: the file is missing, cannot be read, or holds no tensors.
    """
    path = Path(path)
    if is_index(path):
        return open_split_file(path, open_tensors)
    head = read_head(path)
    opener = opener_of(path, head)
    try:
        file = opener(path)
    except OSError as error:
        raise damaged(path, error) from error
    if not file.tensors:
        held = f", only {first_few(file.ignored)}" if any(file.ignored) else ""
        raise CheckpointError(f"{path} holds no tensors of a known kind{held}; save it again")
    return file


def opener_of(path: Path, head: bytes) -> Callable[[Path], StoredFile]:
    """Returns the function that opens files with such first bytes.

    Raises:
        CheckpointError: no checkpoint begins like this.
    """
    if head.startswith(GGUF_MAGIC):
        return open_gguf
    if head[8:9] == b"{":
        return open_safetensors
    if head.startswith(ZIP_MAGIC) or head == LEGACY_MAGIC:
        return open_pickle
    for beginning, kind in OTHER_FILES.items():
        if head.startswith(beginning):
            raise CheckpointError(f"{path} is no checkpoint: it is {kind}")
    raise CheckpointError(
        f"{path} is no checkpoint: it begins with {head!r}, as no file of safetensors, torch.save "
        "or GGUF does; download or save it again"
    )


def read_head(path: Path) -> bytes:
    """Returns the first bytes of a file.

    Raises:
        CheckpointError: the file is missing, empty, or cannot be read.
    """
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a directory; name the checkpoint file in it")
    if path.is_fifo():
        raise CheckpointError(f"{path} is a pipe, which cannot be searched; save it to a file")
    try:
        with path.open("rb") as file:
            head = file.read(len(LEGACY_MAGIC))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty; download or save it again")
    return head


def read_tensors(
    path: str | os.PathLike[str], wrappers: Sequence[str] = ("state_dict",)
) -> TensorFile:
    """Reads a safetensors file, or a pickle as ``torch.save`` writes it; the content decides.

    Objects other than tensors are never unpickled.

    Args:
        wrappers: keys under which a pickle may hold its dict of tensors. The first that exists
            counts; without one the pickle itself is the dict.

    Raises:
        CheckpointError: the file is missing, cannot be read, or holds anything else.
    """
    path = Path(path)
    head = read_head(path)
    if opener_of(path, head) is open_pickle:
        file = TensorFile(named_tensors(path, load_pickle(path), wrappers))
        if not file.tensors:
            raise CheckpointError(f"{path} holds no tensors; save it again")
        return file
    opened = open_tensors(path)
    return TensorFile(dict(opened.tensors), opened.metadata)


def named_tensors(path: Path, content: object, wrappers: Sequence[str]) -> dict[str, Tensor]:
    """Returns the tensors in the content of a pickle, which must hold nothing else.

    Args:
        wrappers: as for ``read_tensors``.

    Raises:
        CheckpointError: it holds something else.
    """
    if isinstance(content, dict):
        wrapped = (content[key] for key in wrappers if isinstance(content.get(key), dict))
        content = next(wrapped, content)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path} holds {kind}, not named tensors; save a dict of them")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointError(
                f"{path} holds {type(value).__name__} under {name!r}; save named tensors alone"
            )
    return {name: tensor.detach() for name, tensor in content.items()}


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, complete or not at all. Tensors may be views and share memory.

    The same tensors and metadata give the same bytes.

    Raises:
        FileError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            save_file(standalone(tensors), temporary, dict(metadata))
        except SafetensorError as error:
            raise unwritable(path, error) from error
        sort_metadata(temporary)


def sort_metadata(path: Path) -> None:
    """Sorts the metadata of a safetensors file, which the library writes in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", {})
        ordered = {"__metadata__": dict(sorted(metadata.items())), **header} if metadata else header
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise RuntimeError(f"a sorted header of {path} takes {len(text)} bytes, not {size}")
        file.seek(8)
        file.write(text.ljust(size))


def digest_of_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> str:
    """Returns a SHA-256, in hexadecimal, that identifies a model.

    It depends on the names, dtypes, shapes and values of the tensors and on the config, but not on
    the layout of a file, nor on its metadata.

    Args:
        config: what JSON can hold. Leave out what has its default, so that new fields of a config
            do not change the digest.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    # One after the other, because the tensors of a file are read when they are asked for.
    for name in sorted(tensors):
        tensor = tensors[name]
        values = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {describe(tensor)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_pickle(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], wrapper: str | None = None
) -> None:
    """Writes a dict of tensors as ``torch.save`` does, complete or not at all.

    The same tensors give the same bytes.

    Args:
        wrapper: the key of another dict around the tensors; None writes no other dict.

    Raises:
        FileError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            content = standalone(tensors)
            # Given a path, PyTorch writes its name, which is random here, into the file.
            with temporary.open("wb") as file:
                torch.save(content if wrapper is None else {wrapper: content}, file)
        except RuntimeError as error:
            raise unwritable(path, error) from error


def standalone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` on the CPU, each contiguous and in its own memory; copied only if needed."""
    result: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | os.PathLike[str]
) -> None:
    """Makes copies of ``tensors`` the parameters and buffers of ``module``.

    The memory of ``tensors`` may be a file: without copies the model would change, or crash, with
    the file. ``module`` may be on the meta device.

    Args:
        source: where the tensors come from, for the error.

    Raises:
        CheckpointError: as ``check_tensors``.
    """
    check_tensors(module, tensors, source)
    shared = not isinstance(tensors, StoredTensors) or tensors.shared
    copies = {name: tensor.clone() if shared else tensor for name, tensor in tensors.items()}
    module.load_state_dict(copies, assign=True)


def load_in_place(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copies the tensors of a file into the parameters and buffers of ``module``.

    Raises:
        CheckpointError: as ``read_tensors`` and ``check_tensors``.
    """
    tensors = read_tensors(path).tensors
    check_tensors(module, tensors, path)
    module.load_state_dict(tensors)


def check_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | os.PathLike[str]
) -> None:
    """Checks that ``tensors`` have the names, shapes and kinds that ``module`` needs.

    Raises:
        CheckpointError: tensors are missing or unexpected, have another shape, or are whole numbers
            where the module has floating point. The message names the first few of each.
    """
    expected = module.state_dict()
    tensors = tensors.outline if isinstance(tensors, StoredTensors) else tensors
    unfit = [
        f"{name} is {describe(tensor)}, not {describe(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and not fits(tensor, expected[name])
    ]
    problems = [
        *summarize("missing", [name for name in expected if name not in tensors]),
        *summarize("unexpected", [name for name in tensors if name not in expected]),
        *summarize("of another shape or kind", unfit),
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the model; {'; '.join(problems)}")


def fits(tensor: Tensor, expected: Tensor) -> bool:
    same_kind = tensor.is_floating_point() == expected.is_floating_point()
    return tensor.shape == expected.shape and same_kind


def describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def summarize(problem: str, entries: Sequence[str]) -> list[str]:
    return [f"{len(entries)} {problem}: {first_few(entries)}"] if entries else []
