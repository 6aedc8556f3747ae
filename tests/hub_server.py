"""A small server that speaks the HTTP interface of the Hugging Face Hub, over a folder."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api


@dataclass
class HubServer:
    """A Hub whose repositories are folders.

    Attributes:
        root: ``root/org/name`` holds the main branch of a repository, ``root/org/name@v2`` the
            revision v2.
        address: the address of the server.
        asked: the files that were asked for, such as "org/name/vae.safetensors".
        broken: whether downloads and uploads end in an error of the server.
    """

    root: Path
    address: str = ""
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def repository(self, name: str) -> Path:
        """Returns the folder of a new or old repository."""
        (self.root / name).mkdir(parents=True, exist_ok=True)
        return self.root / name

    def folder(self, name: str, revision: str) -> Path:
        return self.root / (name if revision == "main" else f"{name}@{revision}")


@contextmanager
def serve(root: Path) -> Iterator[HubServer]:
    """Gives a server of the repositories in ``root``. It runs to the end of the block."""
    hub = HubServer(root)

    class Handler(HubHandler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes huggingface_hub ask another server. It reads HF_ENDPOINT once, when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", address)


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the Hub does."""

    served: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        if not path:
            self.answer(b"")
        elif path.startswith("api/models/"):
            name, _, revision = path.removeprefix("api/models/").partition("/tree/")
            self.list_files(name, unquote(revision.partition("/")[0]) or "main")
        else:
            name, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            self.send_file(name, unquote(revision), unquote(file))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = urlsplit(self.path).path
        if self.served.broken:
            self.answer(b"The disk is full", 403)
        elif path == "/api/repos/create":
            content = json.loads(body)
            name = f"{content['organization']}/{content['name']}"
            self.served.repository(name)
            self.answer_json({"url": f"{self.served.address}/{name}"})
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer_json({"files": files})
        else:
            self.commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)

    def commit(self, name: str, body: str) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                target = self.served.repository(name) / line["value"]["path"]
                target.write_bytes(base64.b64decode(line["value"]["content"]))
        url = f"{self.served.address}/{name}/commit/{commit_of(name, 'main')}"
        self.answer_json({"commitOid": commit_of(name, "main"), "commitUrl": url})

    def list_files(self, name: str, revision: str) -> None:
        folder = self.served.folder(name, revision)
        if not folder.is_dir():
            self.refuse("RepoNotFound")
            return
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        entries = [
            {"type": "file", "path": str(file.relative_to(folder)), "size": 0, "oid": "0"}
            for file in files
        ]
        self.answer_json(entries)

    def send_file(self, name: str, revision: str, file: str) -> None:
        if self.command == "HEAD":
            self.served.asked.append(f"{name}/{file}")
        folder = self.served.folder(name, revision)
        if not folder.is_dir():
            known = self.served.folder(name, "main").is_dir()
            self.refuse("RevisionNotFound" if known else "RepoNotFound")
        elif self.served.broken and self.command == "GET":
            self.answer(b"", 418)
        elif not (folder / file).is_file():
            self.refuse("EntryNotFound", {"X-Repo-Commit": commit_of(name, revision)})
        else:
            content = (folder / file).read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit_of(name, revision)}
            self.answer(content, headers=headers)

    def refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        self.answer(b"", 404, {"X-Error-Code": code, **(headers or {})})

    def answer_json(self, content: Any) -> None:
        self.answer(json.dumps(content).encode(), headers={"Content-Type": "application/json"})

    def answer(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def commit_of(name: str, revision: str) -> str:
    """Returns the commit of a revision. It has the form of a commit, and differs for each."""
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()
