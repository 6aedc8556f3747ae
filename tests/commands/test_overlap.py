"""Reading and writing beside the model: the same bytes, errors in place, nothing left behind."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from tests.helpers import tiny
from wanvae import WanVAE
from wanvae.commands import overlap
from wanvae.commands.pipeline import decode_file, encode_file, reconstruct_file
from wanvae.execution.sessions import StreamDecoder
from wanvae.video import VideoError, VideoReader, VideoWriter, write_video

T = TypeVar("T")
FRAMES = 14


def threads() -> set[threading.Thread]:
    """The threads that run, except the one of all progress bars."""
    return {thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threads()
    yield
    assert threads() <= before


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return tiny().float()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = torch.rand(3, FRAMES, 22, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(tmp_path / "a.mp4", frames, Fraction(25))
    return tmp_path / "a.mp4"


@contextmanager
def at_once(work: Callable[[T], Any], depth: int) -> Iterator[Callable[[T], Any]]:
    yield work


def write_all(vae: WanVAE, video: Path, folder: Path) -> dict[str, bytes]:
    """The bytes of what the three commands write. The bytes of H.264 differ from run to run."""
    folder.mkdir()
    reconstruct_file(vae, video, folder / "b.apng", side_by_side=True)
    encode_file(vae, video, folder / "l.safetensors")
    decode_file(vae, folder / "l.safetensors", folder / "c.apng")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_threads_do_not_change_a_byte(
    video: Path, vae: WanVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_threads = write_all(vae, video, video.parent / "with")
    monkeypatch.setattr(overlap, "behind", at_once)
    monkeypatch.setattr(overlap, "ahead", lambda items, depth: items)
    without = write_all(vae, video, video.parent / "without")
    assert [name for name in without if without[name] != with_threads[name]] == []


def fail_at(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, error: BaseException) -> None:
    """Lets the third call of a method fail."""
    method, calls = getattr(kind, name), []

    def call(self: object, *arguments: object) -> object:
        calls.append(name)
        if len(calls) == 3:
            raise error
        return method(self, *arguments)

    monkeypatch.setattr(kind, name, call)


@pytest.mark.parametrize(
    ("kind", "name", "error"),
    [
        (VideoReader, "_image", VideoError("cannot read it")),
        (VideoWriter, "_encode", VideoError("the disk is full")),
        (overlap.Comparison, "add", MemoryError()),
        (StreamDecoder, "push", KeyboardInterrupt()),
    ],
)
def test_what_fails_is_raised_and_leaves_no_file(
    video: Path,
    vae: WanVAE,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    error: BaseException,
) -> None:
    fail_at(monkeypatch, kind, name, error)
    with pytest.raises(type(error)) as raised:
        reconstruct_file(vae, video, video.parent / "b.mp4")
    assert raised.value is error
    assert [path.name for path in video.parent.iterdir()] == ["a.mp4"]


def test_frames_are_read_beside_the_model_except_from_pipes(video: Path) -> None:
    assert isinstance(overlap.read_ahead((_ for _ in ()), video), closing)
    assert isinstance(overlap.read_ahead((_ for _ in ()), "-"), nullcontext)
