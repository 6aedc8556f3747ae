"""Files at addresses: found, read in any order, written as a whole, through failing servers."""

import os
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path
from tempfile import gettempdir

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.storage_servers import bucket, s3_server, web_server
from wanvae.engine.files import atomic_path, is_nested
from wanvae.engine.storage import retries
from wanvae.engine.storage.remote_file import FIRST_PIECE
from wanvae.engine.storage.remote_path import RemotePath, location
from wanvae.engine.storage.retries import RemoteError, retry

__all__ = ["bucket", "s3_server"]

CONTENT = os.urandom(3 * FIRST_PIECE + 17)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers here fail for a moment only."""
    monkeypatch.setattr(retries, "PAUSES", (0.001,) * 5)


@pytest.fixture
def memory() -> Iterator[RemotePath]:
    """An empty folder in the memory of this process."""
    import fsspec

    yield RemotePath("memory://folder")
    fsspec.filesystem("memory").store.clear()


def test_addresses_and_paths() -> None:
    assert location("videos/a.mp4") == Path("videos/a.mp4")
    assert location("C:/videos") == Path("C:/videos")
    assert location("file:///videos") == Path("/videos")
    folder = location("s3://bucket/videos/")
    assert folder == RemotePath("s3://bucket/videos") == location(folder)
    video = folder / "b/a.mp4"
    assert (str(video), video.name, video.suffix) == ("s3://bucket/videos/b/a.mp4", "a.mp4", ".mp4")
    assert video.parent == folder / "b"
    assert location("https://host/a.mp4?key=a.b").suffix == ".mp4"
    assert is_nested(video, folder) and is_nested(folder, video)
    assert not is_nested(folder, location("s3://bucket/videos2"))
    assert not is_nested(folder, Path("/videos")) and not is_nested(Path("/videos"), folder)


def test_files_in_memory(memory: RemotePath) -> None:
    check_files(memory)


def test_files_in_an_object_store(bucket: str) -> None:
    check_files(location(f"{bucket}/folder"))


def check_files(folder: RemotePath) -> None:
    """Files are there once they are written, and gone once they are deleted."""
    path = folder / "inside/a.bin"
    assert folder.files() == {} and not path.exists()
    path.write_bytes(CONTENT)
    (folder / "b.txt").write_bytes(b"one\ntwo\n")
    files = folder.files()
    assert files.keys() == {"inside/a.bin", "b.txt"} and path.files() == {}
    assert files["inside/a.bin"] == path.status() and path.status().size == len(CONTENT)
    assert path.exists() and not folder.exists() and path.read_bytes() == CONTENT
    with (folder / "b.txt").open(encoding="utf-8") as lines:
        assert list(lines) == ["one\n", "two\n"]
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == CONTENT
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new" and path.status().size == 3
    path.unlink()
    path.unlink(missing_ok=True)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.open("rb")


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) + 5), st.integers(0, 3 * FIRST_PIECE))))
@settings(deadline=None, max_examples=50)
def test_reading_in_any_order(wanted: list[tuple[int, int]]) -> None:
    path = RemotePath("memory://reading/a.bin")
    path.write_bytes(CONTENT)
    part = CONTENT[100:-100]
    with path.open_part() as whole, path.open_part(100, len(part)) as middle:
        for start, size in wanted:
            assert whole.seek(start) == start and whole.read(size) == CONTENT[start : start + size]
            assert whole.tell() == start + len(CONTENT[start : start + size])
            middle.seek(start - len(part) if start <= len(part) else 0, 2)
            start = start if start <= len(part) else len(part)
            assert middle.read(size) == part[start : start + size]


def test_reading_on_asks_for_longer_pieces(memory: RemotePath) -> None:
    path = memory / "a.bin"
    path.write_bytes(CONTENT * 20)
    asked = []
    with path.open_part() as file:
        load = file._load
        file._load = lambda start, length: asked.append(length) or load(start, length)
        while file.read(10_000):
            pass
    assert asked[:3] == [FIRST_PIECE, 2 * FIRST_PIECE, 4 * FIRST_PIECE] and len(asked) < 8


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_that_fails_at_times(tmp_path: Path, ranges: bool) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a b.mp4").write_bytes(CONTENT)
    (tmp_path / "b.txt").write_text("text")
    with web_server(tmp_path, every=3, ranges=ranges) as server:
        folder = location(server.address)
        for _ in range(5):
            path = folder / "inside/a%20b.mp4"
            assert folder.files().keys() == {"inside/a%20b.mp4", "b.txt"}
            assert path.status().size == len(CONTENT) and not (folder / "c.mp4").exists()
            with path.open("rb") as file:
                assert file.read() == CONTENT
                file.seek(FIRST_PIECE)
                assert file.read(100) == CONTENT[FIRST_PIECE : FIRST_PIECE + 100]
            assert (folder / "b.txt").read_bytes() == b"text"
        assert server.failures > 10


def test_a_server_that_always_fails(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CONTENT)
    with web_server(tmp_path, every=1) as server:
        path = location(f"{server.address}/a.mp4")
        for use in (path.exists, path.read_bytes, lambda: path.open("rb")):
            with pytest.raises(RemoteError, match="also after 5 further tries"):
                use()
    with pytest.raises(RemoteError, match="also after 5 further tries"):
        path.exists()


def test_a_full_disk_is_not_the_fault_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(CONTENT)
    tries = []

    def fill_up(*arguments: object) -> None:
        tries.append(1)
        raise OSError(ENOSPC, "No space left on device")

    told = f"temporary files, {gettempdir()}, is full; make room there, or set TMPDIR"
    with web_server(tmp_path, ranges=False) as server:
        path = location(f"{server.address}/a.mp4")
        monkeypatch.setattr(path.file_system()[0], "get_file", fill_up)
        with pytest.raises(RemoteError, match=told), path.open("rb") as file:
            file.seek(FIRST_PIECE)
            file.read(1)
    assert len(tries) == 1


def test_what_no_further_try_changes() -> None:
    tries = []

    def forbidden() -> None:
        tries.append(1)
        raise PermissionError("no")

    with pytest.raises(RemoteError, match=r"^cannot read it: no$"):
        retry(forbidden, "read it")
    assert len(tries) == 1


def test_what_cannot_be_opened(bucket: str) -> None:
    with pytest.raises(RemoteError, match="pip install"):
        location("gs://bucket/a").exists()
    with pytest.raises(RemoteError, match="Protocol not known"):
        location("nothing://bucket/a").exists()
    with pytest.raises(RemoteError, match="does not exist"):
        location("s3://no-such-bucket/a").write_bytes(b"")
    with pytest.raises(RemoteError, match="web servers only give files"):
        location("https://host/folder").check_writable()
