"""An object store like S3 on this machine, which can be stopped and started again.

    python tools/object_store.py 9000
    python tools/object_store.py 9000 --keep objects

It has the bucket ``bucket``, and keeps what is in it while it is stopped, but not after it ends.
With ``--keep`` each object is in a folder before the answer to its upload is sent, so that the
process can be killed at any moment and started again. It reads words from its standard input:
"stop" breaks all connections and refuses new ones, "start" accepts them again. It answers each word
with a line. It ends with its input. It needs ``moto[server]``.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from wanvae.engine.files import atomic_path, remove_temporaries

BLOCK = 2**16
BUCKET = "bucket"


class Relay:
    """Passes connections on to a server, while it is on.

    Args:
        port: where it listens.
        target: the port of the server.
    """

    def __init__(self, port: int, target: int) -> None:
        self._port = port
        self._target = target
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Accepts connections."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Breaks all connections, and refuses new ones."""
        assert self._listener is not None
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._open |= {client, server}
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(BLOCK):
                target.sendall(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()


class Shelf:
    """A folder with the objects of the bucket: a file for each of them.

    Args:
        folder: the folder, which is made if it is not there. The bucket gets what is in it.
        store: the objects in memory.
    """

    def __init__(self, folder: Path, store: Any) -> None:
        self._folder = folder
        self._store = store
        self._lock = threading.Lock()
        folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
        self._kept = {unquote(path.name): self._load(path) for path in folder.iterdir()}

    def _load(self, path: Path) -> object:
        """Puts a file into the bucket, and returns its object."""
        found = self._store.put_object(BUCKET, unquote(path.name), path.read_bytes())
        # The store has times in UTC, without saying so.
        found.last_modified = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        found.last_modified = found.last_modified.replace(tzinfo=None)
        return found

    def keeping(self, application: Callable[..., Iterable[bytes]]) -> Callable[..., Any]:
        """Returns a WSGI application whose changes are in the folder before its answer is sent."""

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
                return application(environ, start_response)
            with self._lock:
                body = application(environ, start_response)
                self._update()
            return body

        return answer

    def _update(self) -> None:
        """Writes the objects that are new, and deletes the files of those that are gone."""
        objects = dict(self._store.buckets[BUCKET].keys.items())
        for name, found in objects.items():
            if self._kept.get(name) is not found:
                self._write(self._path(name), found)
        for name in self._kept.keys() - objects.keys():
            self._path(name).unlink()
        self._kept = objects

    def _write(self, path: Path, found: Any) -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(found.value)
            time = found.last_modified.replace(tzinfo=timezone.utc).timestamp()
            os.utime(temporary, (time, time))

    def _path(self, name: str) -> Path:
        return self._folder / quote(name, safe="")


def serve(folder: Path | None) -> int:
    """Starts the store in a thread, and returns its port."""
    # Imported here, because only the server needs them.
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    store.create_bucket(BUCKET, "us-east-1")
    application = DomainDispatcherApplication(create_backend_app)
    if folder is not None:
        application = Shelf(folder, store).keeping(application)
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options of this program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("port", type=int)
    parser.add_argument("--keep", type=Path, help="a folder that keeps the objects")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    relay = Relay(options.port, serve(options.keep))
    actions = {"start": relay.start, "stop": relay.stop}
    relay.start()
    print("started", flush=True)
    for line in sys.stdin:
        actions[line.strip()]()
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main()
