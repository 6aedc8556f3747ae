"""Servers of files: an object store like S3, and a web server that fails at times."""

import http.server
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

NUMBERS = count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an object store like S3, which libraries find by the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_environment(address).items():
            environment.setenv(name, value)
        yield address
    server.stop()


def s3_environment(address: str) -> dict[str, str]:
    """The environment that lets libraries find an object store."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The address of a new bucket of the object store."""
    import fsspec

    name = f"bucket-{os.getpid()}-{next(NUMBERS)}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


class WebServer(http.server.ThreadingHTTPServer):
    """Serves a folder. Some requests fail: with an error, a closed connection, or half a body.

    Attributes:
        every: each request of such a number fails; 0 is none.
        ranges: whether parts of files are sent.
        requests: the number of requests so far.
        failures: how many of them failed.
    """

    daemon_threads = True

    def __init__(self, folder: Path, every: int, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.every, self.ranges = every, ranges
        self.requests = self.failures = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_failure(self) -> str:
        """How the next request fails; empty if it does not."""
        with self.lock:
            self.requests += 1
            if not self.every or self.requests % self.every:
                return ""
            self.failures += 1
            return ("error", "closed", "short")[self.failures % 3]

    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps quiet about connections that the client closes."""


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        failure = self.server.next_failure()
        if failure == "error" or (failure == "short" and not with_body):
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif failure == "closed":
            self.close_connection = True
        else:
            self.send_file(with_body, half=failure == "short")

    def send_file(self, with_body: bool, half: bool) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            names = sorted(f"{p.name}/" if p.is_dir() else p.name for p in path.iterdir())
            content = "".join(f'<a href="{quote(name)}">{name}</a>\n' for name in names).encode()
        elif path.is_file():
            content = path.read_bytes()
        else:
            self.send_error(404)
            return
        wanted = self.server.ranges and re.fullmatch(
            r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")
        )
        self.send_response(206 if wanted else 200)
        if wanted:
            total = len(content)
            first, last = int(wanted[1]), min(int(wanted[2] or total), total - 1)
            content = content[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Type", "text/html" if path.is_dir() else "video/mp4")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body and half:
            self.close_connection = True
            content = content[: len(content) // 2]
        if with_body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keeps quiet."""


@contextmanager
def web_server(folder: Path, *, every: int = 0, ranges: bool = True) -> Iterator[WebServer]:
    """Serves a folder in a thread."""
    with WebServer(folder, every, ranges) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
