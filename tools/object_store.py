"""An object store like S3 on this machine, which can be stopped and started again.

    python tools/object_store.py 9000

It has the bucket ``bucket``, and keeps what is in it while it is stopped, but not after it ends.
It reads words from its standard input: "stop" breaks all connections and refuses new ones, "start"
accepts them again. It answers each word with a line. It ends with its input. It needs
``moto[server]``.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from urllib.request import Request, urlopen

BLOCK = 2**16


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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options of this program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("port", type=int)
    return parser.parse_args(arguments)


def main() -> None:
    port = parse(sys.argv[1:]).port
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # Imported here, because only the server needs it.
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, target = server.get_host_and_port()
    urlopen(Request(f"http://127.0.0.1:{target}/bucket", method="PUT")).close()
    relay = Relay(port, target)
    actions = {"start": relay.start, "stop": relay.stop}
    relay.start()
    print("started", flush=True)
    for line in sys.stdin:
        actions[line.strip()]()
        print(line.strip(), flush=True)
    server.stop()


if __name__ == "__main__":
    main()
