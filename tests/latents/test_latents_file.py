"""Latents files: pieces or whole make the same file, failures leave nothing behind, and what is no
latents file is refused in one line."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from wanvae import Posterior
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.files import FileError
from wanvae.latents.file import VideoShape, read_latents, write_latents
from wanvae.video.rate import parse_rate

SHAPE = VideoShape(width=30, height=21, fps="30000/1001", source="a.mp4")
LENGTH = 5
TIMES = [0.04 * index for index in range(1 + 4 * (LENGTH - 1))]


def posterior(length: int = LENGTH) -> Posterior:
    generator = torch.Generator().manual_seed(0)
    return Posterior.from_moments(torch.randn(1, 4, length, 3, 4, generator=generator))


def write(path: Path, lengths: Sequence[int] = (LENGTH,), times: Sequence[float] = TIMES) -> Path:
    """Write ``posterior()`` in pieces of these lengths."""
    whole = posterior(sum(lengths))
    means, logvars = (x.split(list(lengths), dim=2) for x in (whole.mean, whole.logvar))
    with write_latents(path, SHAPE) as writer:
        for time in times:
            writer.write_time(time)
        for mean, logvar in zip(means, logvars, strict=True):
            writer.write(Posterior(mean, logvar))
    return path


def read(path: Path) -> Tensor:
    with read_latents(path) as latents:
        return latents.piece(0, latents.length)


# Writing and reading back


@pytest.mark.parametrize("lengths", [[5], [1, 4], [1, 1, 1, 1, 1], [2, 3]])
def test_pieces_make_the_file_of_the_whole(tmp_path: Path, lengths: list[int]) -> None:
    path = write(tmp_path / "a.safetensors", lengths)
    assert path.read_bytes() == write(tmp_path / "whole.safetensors").read_bytes()
    assert torch.equal(read(path), posterior().mean)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_any_safetensors_reader_understands_it(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.safetensors", [1] * length)
    tensors, expected = load_file(path), posterior(length)
    assert tensors.keys() == {"mean", "logvar", "times"}
    assert torch.equal(tensors["mean"], expected.mean[0])
    assert torch.equal(tensors["logvar"], expected.logvar[0])
    assert torch.equal(tensors["times"], torch.tensor(TIMES, dtype=torch.float64))
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = posterior()
    with write_latents(tmp_path / "a.safetensors", SHAPE) as writer:
        writer.write(Posterior(whole.mean.to(dtype), whole.logvar.to(dtype)))
        writer.write_time(0)
        assert writer.shape == (2, LENGTH, 3, 4)
    back = read(tmp_path / "a.safetensors")
    assert back.dtype == torch.float32
    assert torch.equal(back, whole.mean.to(dtype).float())


def test_what_is_known_of_the_video_comes_back(tmp_path: Path) -> None:
    with read_latents(write(tmp_path / "a.safetensors")) as latents:
        assert (latents.channels, latents.length, latents.height, latents.width) == (2, 5, 3, 4)
        assert latents.video == SHAPE
        assert latents.video.rate == parse_rate("30000/1001")
        assert latents.times == tuple(TIMES)
        for start, end in ((0, 1), (1, 4), (4, 5)):
            assert torch.equal(latents.piece(start, end), posterior().mean[:, :, start:end])


# Failures while writing


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, b"precious"])
def test_an_exception_leaves_what_was_there(
    tmp_path: Path, failure: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "a.safetensors"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(failure), write_latents(path, SHAPE) as writer:
        writer.write(posterior())
        raise failure
    assert os.listdir(tmp_path) == ([] if before is None else ["a.safetensors"])
    assert before is None or path.read_bytes() == before


def test_the_name_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with write_latents(path, SHAPE) as writer:
        writer.write(posterior())
        assert not path.exists()
    assert path.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.pt", r"must end in \.safetensors"),
        ("a", r"must end in \.safetensors"),
        ("missing/a.safetensors", "make the directory .*missing first"),
        ("directory.safetensors", "it is a directory"),
    ],
)
def test_unwritable_targets(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "directory.safetensors").mkdir()
    with pytest.raises(FileError, match=reason):
        write(tmp_path / name)
    assert os.listdir(tmp_path) == ["directory.safetensors"]


def test_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # a file size limit stands in for a full disk
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(FileError, match=r"a\.safetensors cannot be written .*too large"):
            write(tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_no_latents_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no latents to write"):
        write(tmp_path / "a.safetensors", [])
    assert os.listdir(tmp_path) == []


# What is no latents file


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught, read_latents(path):
        pass
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("missing", lambda path: None, "does not exist; check the path"),
        ("directory", lambda path: path.mkdir(), "cannot be read as latents"),
        ("empty", lambda path: path.write_bytes(b""), "cannot be read as latents"),
        ("text", lambda path: path.write_text("no latents\n" * 99), "cannot be read as latents"),
        (
            "truncated",
            lambda path: path.write_bytes(write(path).read_bytes()[:-1]),
            "cannot be read as latents",
        ),
    ],
)
def test_unreadable_files(
    tmp_path: Path, name: str, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / f"{name}.safetensors"
    make(path)
    assert_refused(path, reason)


def changed(path: Path, tensors: dict[str, Tensor | None], metadata: dict[str, str | None]) -> Path:
    """A latents file of ours with some tensors and metadata replaced, or removed if None."""
    whole = load_file(write(path)) | tensors
    with safe_open(path, framework="pt") as file:
        texts = file.metadata() | metadata
    save_file(
        {name: tensor for name, tensor in whole.items() if tensor is not None},
        path,
        {name: text for name, text in texts.items() if text is not None},
    )
    return path


VIDEO = {"width": 30, "height": 21, "fps": "25", "source": "a.mp4"}


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (None, "its metadata is no JSON"),
        ("{", "its metadata is no JSON"),
        ("[" * 200_000, "its metadata is no JSON"),
        ("[1]", "VideoShape must be an object"),
        (json.dumps({**VIDEO, "depth": 1}), "unknown keys: depth"),
        ('{"width": 30}', "missing keys: fps, height, source"),
        (json.dumps({**VIDEO, "width": "30"}), "width must be int, not '30'"),
        (json.dumps({**VIDEO, "width": 0}), "0x21 pixels"),
        (json.dumps({**VIDEO, "height": -21}), "30x-21 pixels"),
        (json.dumps({**VIDEO, "fps": 25}), "fps must be str"),
        (json.dumps({**VIDEO, "fps": "1/0"}), "fps must be a rate .* not '1/0'"),
        (json.dumps({**VIDEO, "fps": "1e999999999"}), "fps must be a rate"),
    ],
)
def test_hostile_metadata(tmp_path: Path, video: str | None, reason: str) -> None:
    assert_refused(changed(tmp_path / "a.safetensors", {}, {"video": video}), reason)


@pytest.mark.parametrize(
    "times",
    [
        torch.tensor([]),
        torch.tensor(0.0),
        torch.tensor([[0.0], [1.0]]),
        torch.tensor([0, 1]),
        torch.tensor([0.0, 0.0]),
        torch.tensor([0.0, 2.0, 1.0]),
        torch.tensor([-1.0, 0.0]),
        torch.tensor([0.0, float("nan"), 1.0]),
        torch.tensor([float("nan")]),
        torch.tensor([0.0, float("inf")]),
        torch.tensor([0.0, 1e30]),
    ],
)
def test_hostile_times(tmp_path: Path, times: Tensor) -> None:
    path = changed(tmp_path / "a.safetensors", {"times": times}, {})
    assert_refused(path, "times are not increasing seconds")


@pytest.mark.parametrize("name", ["mean", "times"])
def test_missing_tensors(tmp_path: Path, name: str) -> None:
    assert_refused(changed(tmp_path / "a.safetensors", {name: None}, {}), name)


@pytest.mark.parametrize("failure", [OSError, KeyError, ValueError])
def test_failures_of_the_reader_are_not_blamed_on_the_file(
    tmp_path: Path, failure: type[Exception]
) -> None:
    path = write(tmp_path / "a.safetensors")
    with pytest.raises(failure, match="mine") as caught, read_latents(path):
        raise failure("mine")
    assert caught.type is failure


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_no_handle_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")

    def opened() -> set[str]:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        mapped = Path("/proc/self/maps").read_text().split()
        return {os.readlink(link) for link in links if link.is_symlink()} | set(mapped)

    with read_latents(path) as latents:
        latents.piece(0, 2)
        assert str(path) in opened()
    del latents
    assert str(path) not in opened()


@pytest.mark.parametrize(
    ("text", "value"), [("25", 25), ("29.97", 29.97), ("30000/1001", 30000 / 1001), ("0.5", 0.5)]
)
def test_rates(text: str, value: float) -> None:
    assert float(parse_rate(text)) == value


@pytest.mark.parametrize(
    "text", ["", "0", "0/1", "1/0", "-25", "nan", "inf", "1e3", "25 fps", "10001", "1/1001"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=f"fps must be a rate .*, not {text!r}"):
        parse_rate(text)


def test_a_bug_in_reading_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    with write_latents(path, SHAPE) as writer:
        writer.write(posterior())
        writer.write_time(0.0)

    def stumble(file: object) -> None:
        raise ValueError("zip() argument 2 is longer than argument 1")

    monkeypatch.setattr("wanvae.latents.file.describe_latents", stumble)
    with pytest.raises(ValueError, match="zip") as error, read_latents(path):
        pass
    assert not isinstance(error.value, CheckpointError)


# When the last frame ends


def test_the_end_of_the_last_frame_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with write_latents(path, SHAPE) as writer:
        writer.write(posterior())
        writer.write_time(0.0)
        writer.end_at(0.75)
    with read_latents(path) as latents:
        assert latents.end == 0.75
    with read_latents(write(path)) as latents:  # as earlier versions
        assert latents.end is None


@pytest.mark.parametrize("end", ["0.25", "-1", "nan", "inf", "1e30", "soon", ""])
def test_an_end_that_is_none_is_refused(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "a.safetensors", [1], [0.25])
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "end": end}
    save_file(load_file(path), path, metadata)
    with (
        pytest.raises(CheckpointError, match=r"its end, .* is no time in seconds after"),
        read_latents(path),
    ):
        pass
