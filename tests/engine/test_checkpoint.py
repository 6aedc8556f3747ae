from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wanvae.engine import checkpoint
from wanvae.engine.checkpoint import (
    CheckpointError,
    digest_of_tensors,
    load_tensors,
    read_tensors,
    write_pickle,
    write_tensors,
)
from wanvae.engine.files import FileError
from wanvae.engine.stored_tensors import StoredTensors

Write = Callable[[Path, dict[str, Tensor]], None]


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    write_tensors(path, tensors, {})


def write_legacy(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


WRITERS = [write_safetensors, write_pickle, write_legacy]


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def some_tensors() -> dict[str, Tensor]:
    whole = torch.arange(24.0).reshape(4, 6)
    return {
        "plain": torch.randn(2, 3),
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": whole.t(),
        "shared": whole,
        "row": whole[1],
        "column": whole[:, 2],
        "expanded": torch.ones(1).expand(3),
        "learned": nn.Parameter(torch.ones(2)),
    }


def assert_equal(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        assert result[name].dtype == tensor.dtype
        assert not result[name].requires_grad
        assert torch.equal(result[name], tensor)


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("write", WRITERS)
def test_round_trip_is_exact_whatever_the_suffix(tmp_path: Path, write: Write) -> None:
    tensors = some_tensors()
    for suffix in (".safetensors", ".pth", ".bin", ""):
        path = tmp_path / f"model{suffix}"
        write(path, tensors)
        assert_equal(read_tensors(path).tensors, tensors)


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_what_was_read_can_be_written_over_its_own_file(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "model"
    write(path, some_tensors())
    write(path, read_tensors(path).tensors)
    assert_equal(read_tensors(path).tensors, some_tensors() | read_tensors(path).tensors)


def test_views_are_written_without_what_they_are_views_of(tmp_path: Path) -> None:
    write_pickle(tmp_path / "a.pth", {"row": torch.zeros(1000, 1000)[0]})
    assert (tmp_path / "a.pth").stat().st_size < 10_000


def test_metadata_is_kept(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(1)}, {"format": "é", "config": "{}"})
    assert read_tensors(tmp_path / "a").metadata == {"format": "é", "config": "{}"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_same_tensors_become_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    """Also under another name, and in spite of the random order that safetensors gives texts."""
    tensors = some_tensors()
    metadata = {name: 'a\n\u00e4 \\ "quoted" \x7f\U0001f600' for name in "fedcbaghijkl"}
    found = set()
    for number in range(8):
        path = tmp_path / f"{number}{suffix}"
        if suffix == ".pth":
            write_pickle(path, tensors)
        else:
            write_tensors(path, tensors, metadata)
            assert read_tensors(path).metadata == metadata
        found.add(path.read_bytes())
        assert_equal(read_tensors(path).tensors, tensors)
    assert len(found) == 1


def test_a_digest_is_of_tensors_and_config_only(tmp_path: Path) -> None:
    tensors = some_tensors()
    digest = digest_of_tensors(tensors, {"depth": 2, "width": 1})
    write_tensors(tmp_path / "a.safetensors", tensors, {"written": "today"})
    write_pickle(tmp_path / "a.pth", dict(reversed(tensors.items())))
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        assert digest_of_tensors(read_tensors(path).tensors, {"width": 1, "depth": 2}) == digest
    changed = [
        {**tensors, "plain": tensors["plain"] + 1},
        {**tensors, "half": tensors["half"].float()},
        {**tensors, "whole": tensors["plain"]},
        {**tensors, "plain": tensors["plain"].reshape(3, 2)},
    ]
    digests = {digest_of_tensors(each, {"depth": 2, "width": 1}) for each in changed}
    assert len(digests) == 4 and digest not in digests
    assert digest_of_tensors(tensors, {"depth": 3, "width": 1}) != digest


def test_a_digest_holds_one_tensor_at_a_time() -> None:
    """The tensors of a file are read when they are asked for, and a file may be large."""
    tensors = {f"layer.{number}": torch.rand(5) for number in range(20)}
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    counts = []

    def read(name: str) -> Tensor:
        tensor = tensors[name].clone()
        alive.add(tensor)
        counts.append(len(alive))
        return tensor

    assert digest_of_tensors(StoredTensors(tensors, read), {}) == digest_of_tensors(tensors, {})
    # The next tensor is read before the name of the last one is given to it.
    assert max(counts) <= 2 and len(counts) == 20


def test_a_state_dict_may_be_nested(tmp_path: Path) -> None:
    tensors = {"x": torch.ones(2)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pth")
    assert_equal(read_tensors(tmp_path / "a.pth").tensors, tensors)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.99])
def test_truncated(tmp_path: Path, write: Write, kept: float) -> None:
    path = tmp_path / "model"
    write(path, {f"tensor{i}": torch.randn(50) for i in range(20)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "damaged or incomplete" in error_of(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_no_file_directory_empty_and_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    assert "does not exist" in error_of(path)
    path.write_bytes(b"")
    assert "is empty" in error_of(path)
    path.write_text("version https://git-lfs.github.com/spec/v1")
    assert "no checkpoint" in error_of(path) and "a pointer of Git LFS" in error_of(path)
    path.write_text("{}")
    assert "no checkpoint" in error_of(path)
    path.unlink()
    path.mkdir()
    assert "is a directory" in error_of(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_and_unwritable(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_pickle(path, {"x": torch.ones(1)})
    path.chmod(0)
    assert "Permission denied" in error_of(path)
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="Permission denied"):
        write_pickle(path, {"x": torch.ones(1)})


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_in_a_pickle_are_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    content = {"x": torch.ones(1), "y": Touch(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = error_of(path)
    assert "not tensors" in message and "nothing of it was run" in message
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the test would not have noticed"


def test_a_pickle_that_torch_did_not_write_is_never_opened(tmp_path: Path) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "marker"
    path.write_bytes(pickle.dumps({"x": Touch(marker)}))
    assert "no checkpoint" in error_of(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": torch.ones(1), "epoch": 3}, "holds int under 'epoch'"),
        ({1: torch.ones(1)}, "holds Tensor under 1"),
        ([torch.ones(1)], "holds list, not named tensors"),
        (torch.ones(1), "holds Tensor, not named tensors"),
        ({}, "holds no tensors"),
    ],
)
def test_anything_but_named_tensors_is_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    assert message in error_of(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("write", "owner", "function"),
    [(write_safetensors, checkpoint, "save_file"), (write_pickle, torch, "save")],
)
def test_an_interrupted_checkpoint_leaves_the_old_one(
    tmp_path: Path, write: Write, owner: object, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old = tmp_path / "model", {"x": torch.ones(3)}
    write(path, old)

    def interrupt(_: object, target: Any, *rest: object) -> None:
        # A path has a name, too, but only the last part.
        Path(target if isinstance(target, str | Path) else target.name).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(path, {"x": torch.zeros(3)})
    assert_equal(read_tensors(path).tensors, old)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_impossible_targets(tmp_path: Path, write: Write) -> None:
    tensors = {"x": torch.ones(1)}
    with pytest.raises(FileError, match="make the directory"):
        write(tmp_path / "no" / "model", tensors)
    with pytest.raises(FileError, match="is a directory"):
        write(tmp_path, tensors)
    with pytest.raises(FileError, match="cannot be written"):
        write(tmp_path / ("long" * 100), tensors)


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path, write: Write) -> None:
    (tmp_path / "plain").touch()
    write(tmp_path / "model", {"x": torch.ones(1)})
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def model() -> nn.Module:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    module[0].weight.requires_grad_(False)
    return module


def weights() -> dict[str, Tensor]:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_loading_fills_a_model_on_meta_and_keeps_what_is_trained() -> None:
    module, tensors = model(), weights()
    load_tensors(module, tensors, "somewhere")
    assert_equal(module.state_dict(), tensors)
    assert [p.requires_grad for p in module.parameters()] == [False] + [True] * 5


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_a_loaded_model_outlives_its_file(tmp_path: Path, write: Write) -> None:
    module, tensors = model(), weights()
    path = tmp_path / "model"
    write(path, tensors)
    load_tensors(module, read_tensors(path).tensors, path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert_equal(module.state_dict(), tensors)


def test_everything_that_does_not_fit_is_named_at_once() -> None:
    tensors = weights()
    del tensors["0.bias"]
    tensors |= {f"extra{i}": torch.ones(1) for i in range(5)}
    tensors["2.weight"] = torch.ones(4, 3)
    tensors["2.bias"] = torch.ones(1, dtype=torch.int64)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(model(), tensors, "some/file")
    message = str(caught.value)
    assert message.startswith("some/file does not fit the model; 1 missing: 0.bias;")
    assert "5 unexpected: extra0, extra1, extra2 and 2 more" in message
    assert "2.weight is float32 (4, 3), not float32 (1, 3)" in message
    assert "2.bias is int64 (1,), not float32 (1,)" in message


def test_pickles_may_be_wrapped_under_names_that_are_given(tmp_path):
    path = tmp_path / "model.pth"
    write_pickle(path, {"x": torch.ones(2)}, wrapper="net")
    assert torch.equal(read_tensors(path, ("vq_model", "net")).tensors["x"], torch.ones(2))
    with pytest.raises(CheckpointError, match="holds dict under 'net'"):
        read_tensors(path)
