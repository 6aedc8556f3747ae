"""Files that claim to be larger than they are end in one line, within little memory."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wanvae.engine.checkpoint import CheckpointError, open_tensors

LARGE = 10 * 2**30
NAMES = ["encoder.downsamples.0.residual.2.weight", "decoder.head.2.weight", "conv2.weight"]


def safetensors(header: bytes, length: int | None = None, size: int = 0) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(size)


def header_of(**entries: object) -> bytes:
    return json.dumps(entries).encode()


def entry(shape: list[int], first: int = 0, last: int = 4, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def write_zeros_in_zip(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w", force_zip64=True) as file,
    ):
        for _ in range(64):
            file.write(bytes(2**20))


def write_claim_of_zip(path: Path) -> None:
    """An archive whose entries are all the same bytes."""
    torch.save({"x": torch.zeros(4096)}, path)
    with zipfile.ZipFile(path) as archive:
        records = [archive.read(name) for name in archive.namelist()]
        names = archive.namelist()
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in zip(names, records, strict=True):
            archive.writestr(name, record)
        (large,) = (e for e in archive.infolist() if e.filename.endswith("data/0"))
        for number in range(1, 50):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.header_offset, copy.CRC = large.header_offset, large.CRC
            copy.compress_size = copy.file_size = large.file_size
            archive.filelist.append(copy)
            archive._didModify = True


def write_nested_dicts(path: Path) -> None:
    content: dict[str, object] = {"x": torch.zeros(1)}
    for _ in range(400):
        content = {"a": content}
    torch.save(content, path)


def write_deep_pickle(path: Path) -> None:
    """A pickle of a list in a list, a million times; Python could not write it."""
    deep = b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", deep)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def write_laughs(path: Path) -> None:
    """Dicts that hold another dict twice, which holds another dict twice, ..."""
    content: dict[str, object] = {"x": torch.zeros(1)}
    for _ in range(19):
        content = {key: content for key in "abcd"}
    torch.save(content, path)


def write_a_dict_in_itself(path: Path) -> None:
    content: dict[str, object] = {}
    content["a"] = content
    torch.save(content, path)


def write_sparse(path: Path, head: bytes) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(LARGE)


def write_long_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"0" * 60_000_000)
        archive.writestr("archive/version", "3\n")


def gguf(tensors: int = 0, values: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + rest


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def bytes_writer(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def sparse_writer(content: bytes) -> Callable[[Path], object]:
    return lambda path: write_sparse(path, content)


BOMBS: dict[str, Callable[[Path], object]] = {
    "a zip of zeros": write_zeros_in_zip,
    "a zip of one entry many times": write_claim_of_zip,
    "nested dicts": write_nested_dicts,
    "a deep pickle": write_deep_pickle,
    "doubling dicts": write_laughs,
    "a dict in itself": write_a_dict_in_itself,
    "a long pickle": write_long_pickle,
    "a long header": bytes_writer(safetensors(b"{}", 10**11)),
    "a long header that is there": sparse_writer(safetensors(b"{", 10**9)),
    "a header of many tensors": bytes_writer(safetensors(header_of(x=entry([10**9])), size=4)),
    "tensors over each other": bytes_writer(
        safetensors(header_of(**{str(n): entry([1]) for n in range(50)}), size=4)
    ),
    "a huge shape of nothing": bytes_writer(
        safetensors(header_of(x=entry([0, 2**62, 2**62], 0, 0)), size=4)
    ),
    "a negative shape": bytes_writer(safetensors(header_of(x=entry([-1, -1])), size=4)),
    "a nested header": bytes_writer(safetensors(b'{"a":' + b"[" * 100_000, size=4)),
    "a dtype that is a list": bytes_writer(
        safetensors(json.dumps({"x": {**entry([1]), "dtype": []}}).encode(), size=4)
    ),
    "a header of a list": bytes_writer(safetensors(b'{"a":[1]}', size=4)),
    "gguf of many tensors": bytes_writer(gguf(10**9)),
    "gguf of many values": bytes_writer(gguf(0, 10**9)),
    "gguf of a long text": bytes_writer(gguf(0, 1, struct.pack("<Q", 10**12))),
    "gguf of a long array": bytes_writer(
        gguf(0, 1, text(b"a") + struct.pack("<IIQ", 9, 0, 10**12))
    ),
    "gguf of a long array that is there": sparse_writer(
        gguf(2, 1, text(b"a") + struct.pack("<IIQ", 9, 0, 9 * 2**30) + bytes(8))
    ),
    "gguf of a large tensor": bytes_writer(
        gguf(1, 0, text(b"x") + struct.pack("<IQQIQ", 2, 10**6, 10**6, 0, 0) + bytes(64))
    ),
    "gguf of many axes": bytes_writer(gguf(1, 0, text(b"x") + struct.pack("<I", 10**9))),
    "gguf of an unknown type": bytes_writer(
        gguf(1, 0, text(b"x") + struct.pack("<IQIQ", 1, 4, 999, 0) + bytes(64))
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model"
    BOMBS[name](path)
    with pytest.raises(CheckpointError) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


MEASURE = """
import resource, sys
from wanvae.engine.checkpoint import CheckpointError, open_tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_tensors(path)
    except CheckpointError:
        continue
    raise SystemExit(f"{path} was opened")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_bombs_take_little_memory(tmp_path: Path) -> None:
    paths = []
    for number, write in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{number}")
        write(paths[-1])
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 300e6


def test_a_repeated_number_is_no_large_tensor(tmp_path: Path) -> None:
    """A tensor of one number, repeated by its strides, claims a terabyte."""
    from wanvae.checkpoints import formats

    tensors = {name: torch.zeros(1).expand(2**12, 2**12, 3, 3, 3) for name in NAMES}
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"its tensors would take \d+ bytes, but"):
        formats.load(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"num_res_blocks": 10**9},
        {"dim": 10**15},
        {"in_channels": 10**15},
        {"dim_mult": [10**12, 1, 1, 1]},
        {"dim_mult": [1] * 10**5, "temporal_downsample": [True] * (10**5 - 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_of_a_huge_model_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    from wanvae import WanVAE
    from wanvae.engine.checkpoint import write_tensors

    path = tmp_path / "a.safetensors"
    metadata = {"format": "wanvae", "config": json.dumps(change)}
    write_tensors(path, {"x": torch.ones(2)}, metadata)
    with pytest.raises(CheckpointError, match="but it holds 1 tensors of 2 values"):
        WanVAE.from_pretrained(path)


def test_pickles_that_torch_did_not_write_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps([[1]]))
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        open_tensors(tmp_path / "a.pth")
