"""Files of tokens keep all that is in them, and anything else is one clear error."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from motion.errors import MotionError
from motion.skeleton.packaged import SMPLX
from motion.tokens import (
    FORMAT,
    Actor,
    Origin,
    Tokens,
    check_tokens,
    digest_of,
    find_smallest_type,
    holds_tokens,
    parse_origin,
    read_tokens,
    write_origin,
    write_tokens,
)
from tests.motion.helpers import random_skeleton
from tests.motion.small_tokenizers import tiny_tokenizer
from wanvae.engine.files import FileError

SUFFIXES = (".npz", ".safetensors")
ORIGIN = Origin(
    frames=12,
    fps=30.0,
    codes=16,
    books="0123",
    actor=Actor(
        skeleton=replace(random_skeleton(5), up="z"),
        start=(0.1, -1 / 3),
        betas=(0.5, 1e-9),
        gender="female",
    ),
)
TOKENS = Tokens(torch.tensor([[0, 15], [3, -1], [7, 8]]), ORIGIN)


@given(
    codes=st.integers(1, 2**40),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    codes: int,
    shape: tuple[int, int],
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("tokens") / f"a{suffix}"
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, codes, shape, generator=generator)
    indices[0, 0] = codes - 1
    written = Tokens(indices, replace(ORIGIN, codes=codes))
    write_tokens(path, written)
    read = read_tokens(path)
    assert torch.equal(read.indices, indices) and read.indices.dtype == torch.int64
    assert read.origin == written.origin
    assert holds_tokens(path)


@pytest.mark.parametrize(
    ("codes", "dtype"),
    [(1, "int8"), (128, "int8"), (129, "int16"), (512, "int16"), (2**15 + 1, "int32")],
)
def test_indices_take_little_room(tmp_path: Path, codes: int, dtype: str) -> None:
    assert str(find_smallest_type(codes)) == f"torch.{dtype}"
    tokens = Tokens(torch.zeros(3, 2, dtype=torch.long), replace(ORIGIN, codes=codes))
    write_tokens(tmp_path / "a.npz", tokens)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["indices"].dtype == dtype and str(file["format"]) == FORMAT


def test_the_same_tokens_make_the_same_npz(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_tokens(tmp_path / name, TOKENS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int8])
def test_indices_alone(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]], dtype))
    read = read_tokens(tmp_path / "a.npy")
    assert read.indices.tolist() == [[1, 2], [3, 4]] and read.origin is None
    with pytest.raises(ValueError, match="only with their origin"):
        write_tokens(tmp_path / "b.npz", read)


@pytest.mark.parametrize(
    ("shape", "found"),
    [((10,), (10, 1)), ((1, 10), (10, 1)), ((1, 10, 6), (10, 6)), ((1, 1, 6), (1, 6))],
)
def test_indices_of_other_programs(
    tmp_path: Path, shape: tuple[int, ...], found: tuple[int, int]
) -> None:
    indices = np.arange(np.prod(shape)).reshape(shape)
    np.save(tmp_path / "a.npy", indices)
    read = read_tokens(tmp_path / "a.npy").indices
    assert read.shape == found and read.flatten().tolist() == indices.flatten().tolist()


def test_the_keys_of_a_file_stay() -> None:
    """Files that people have are read, and programs that people have read new files."""
    written = json.loads(write_origin(ORIGIN))
    assert list(written) == ["frames", "fps", "codes", "books", "body"]
    assert list(written["body"]) == ["skeleton", "start", "betas", "gender"]
    assert parse_origin(json.dumps(written)) == ORIGIN


# What is refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"indices": np.zeros((3, 2, 1), np.int8)},
            r"indices must be \(T, Q\), .* not \(3, 2, 1\)",
        ),
        ({"indices": np.zeros((0, 2), np.int8)}, r"none of them 0, not \(0, 2\)"),
        ({"indices": np.zeros((3, 2), np.float32)}, "must be whole numbers, not float32"),
        ({"indices": np.zeros((3, 2), bool)}, "must be whole numbers, not bool"),
        ({"indices": np.full((3, 2), 16, np.int8)}, "from 0 to 15, or -1 for none, not 16 to 16"),
        ({"indices": np.full((3, 2), -2, np.int8)}, "not -2 to -2"),
        ({"indices": None}, "its keys are format, motion, state, and not indices"),
        ({"indices": np.array([[{}]], object)}, "no complete .npz file of plain arrays"),
        ({"format": None}, f"its format is not said, not {FORMAT}"),
        ({"format": np.array("latents")}, f"its format is latents, not {FORMAT}"),
        ({"motion": None}, "its metadata is no JSON"),
        ({"motion": np.array("{")}, "its metadata is no JSON"),
        ({"motion": np.array("[]")}, "Origin must be an object of named values"),
        ({"motion": np.array("{}")}, "Origin has missing keys: books, codes, fps, frames"),
        (
            {"motion": np.array('{"frames": 0, "fps": 1, "codes": 16, "books": ""}')},
            "frames must be at least 1, not 0",
        ),
        (
            {"motion": np.array('{"frames": 9, "fps": NaN, "codes": 16, "books": ""}')},
            "fps must be above 0, not nan",
        ),
        (
            {"motion": np.array(f'{{"frames": 9, "fps": 1{"0" * 400}, "codes": 1, "books": ""}}')},
            "fps must be float",
        ),
        ({"motion": np.array(f'{{"frames": 1{"0" * 5000}}}')}, "its metadata is no JSON"),
    ],
)
def test_files_that_are_no_tokens(
    tmp_path: Path, changes: dict[str, np.ndarray | None], reason: str
) -> None:
    path = tmp_path / "a.npz"
    write_tokens(path, TOKENS)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(MotionError, match=reason) as caught:
        read_tokens(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_tokens(path, TOKENS)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 9])
    with pytest.raises(MotionError, match=rf"a\{suffix} is .*incomplete|no complete"):
        read_tokens(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(MotionError, match=r"a\.npz does not exist"):
        read_tokens(tmp_path / "a.npz")
    with pytest.raises(MotionError, match=r"a\.txt must end in \.npz or \.safetensors or \.npy"):
        read_tokens(tmp_path / "a.txt")
    save_file({"latents": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert not holds_tokens(tmp_path / "a.safetensors")
    with pytest.raises(MotionError, match=r"a\.safetensors .*no tensor indices"):
        read_tokens(tmp_path / "a.safetensors")
    save_file({"indices": torch.zeros(2, 2)}, tmp_path / "a.safetensors", {"format": FORMAT})
    with pytest.raises(MotionError, match="its metadata is no JSON"):
        read_tokens(tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", np.zeros((3, 263), np.float32))
    assert not holds_tokens(tmp_path / "a.npy")
    with pytest.raises(MotionError, match=r"whole numbers, not float32 \(3, 263\)"):
        read_tokens(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["missing/a.npz", "a.txt", "directory.npz"])
def test_unwritable_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory.npz").mkdir()
    with pytest.raises(FileError, match=name):
        write_tokens(tmp_path / name, TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["directory.npz"]


def test_indices_of_several_motions(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 10, 6), np.int64))
    with pytest.raises(
        MotionError, match=r"\(3, 10, 6\) are of 3 motions; write one file for each"
    ):
        read_tokens(tmp_path / "a.npy")


def test_places_are_numbers() -> None:
    for start in ((0.0,), (0.0, float("nan"))):
        with pytest.raises(ValueError, match=r"start must be \(x, z\) in metres"):
            Actor(skeleton=SMPLX, start=start)


# Whether tokens are of a model


def tokens_of(**changes: object) -> Callable[[Origin], Tokens]:
    return lambda origin: Tokens(torch.zeros(3, 2, dtype=torch.long), replace(origin, **changes))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda o: Tokens(torch.zeros(3, 3, dtype=torch.long), o), "of 3 layers of 16 codes"),
        (tokens_of(codes=32), "of 2 layers of 32 codes, but the model has 2 of 16"),
        (tokens_of(codes=8), "of 2 layers of 8 codes"),
        (lambda _: Tokens(torch.full((3, 2), 16), None), "of 2 layers of at least 17 codes"),
        (tokens_of(frames=13), "3 tokens for 13 frames, but the model writes 4"),
    ],
)
def test_tokens_of_another_model(make: Callable[[Origin], Tokens], reason: str) -> None:
    model = tiny_tokenizer()
    origin = Origin(frames=12, fps=30.0, codes=16, books=digest_of(model))
    check_tokens(tokens_of()(origin), model, "a.npz")
    with pytest.raises(MotionError, match=rf"a\.npz has .*{reason}.*; give the checkpoint that"):
        check_tokens(make(origin), model, "a.npz")


def test_one_token_or_several() -> None:
    """(1, Q) may be one token of Q layers or Q tokens of one layer, so it is said."""
    model = tiny_tokenizer(layers=3)
    check_tokens(Tokens(torch.zeros(4, 1, dtype=torch.long), None), model, "a.npy")
    check_tokens(Tokens(torch.zeros(1, 3, dtype=torch.long), None), model, "a.npy")
    with pytest.warns(UserWarning, match=r"a\.npy is read as 3 tokens .* as \(1, 1, 3\)"):
        check_tokens(Tokens(torch.zeros(3, 1, dtype=torch.long), None), model, "a.npy")


def test_other_codebooks_are_told_apart() -> None:
    model, other = tiny_tokenizer(), tiny_tokenizer(seed=1)
    assert digest_of(model) == digest_of(tiny_tokenizer()) != digest_of(other)
    origin = Origin(frames=12, fps=30.0, codes=16, books=digest_of(other))
    with pytest.warns(UserWarning, match=r"a\.npz was written with other codebooks"):
        check_tokens(tokens_of()(origin), model, "a.npz")
