"""Checkpoints of the Hugging Face Hub, whose calls are replaced by ones that know a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from tests.helpers import tiny
from wanvae import WanVAE
from wanvae.checkpoints import formats
from wanvae.checkpoints.formats import Layout, weights_file
from wanvae.checkpoints.hub import NATIVE_FILE
from wanvae.cli import main
from wanvae.commands.convert import convert
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.hub import is_repository


@dataclass
class FakeHub:
    """One repository, ``org/name``; ``cached`` names files that are there without a network."""

    root: Path
    offline: bool = False
    cached: tuple[str, ...] = ()
    failure: Exception | None = None
    asked: list[str] = field(default_factory=list)

    def head(self, url: str, *, timeout: float) -> None:
        """Of the client that asks whether the Hub is there."""
        assert url.startswith("https://") and timeout <= 10
        if self.offline:
            raise OSError("Name or service not known. And more")

    def download(
        self, repository: str, name: str, *, subfolder: str | None, local_files_only: bool
    ) -> str:
        name = f"{subfolder}/{name}" if subfolder else name
        self.asked.append(f"{name} (cached)" if local_files_only else name)
        if self.failure is not None:
            raise self.failure
        if repository != "org/name":
            raise FakeMissing("404 Client Error. (Request ID: x)\n\nRepository Not Found")
        if (self.offline or local_files_only) and name not in self.cached:
            raise LocalEntryNotFoundError("no connection")
        if not (self.root / name).exists():
            raise EntryNotFoundError("404")
        return str(self.root / name)

    def create(self, repository: str, *, exist_ok: bool) -> None:
        assert exist_ok
        if self.failure is not None:
            raise self.failure

    def upload(self, *, path_or_fileobj: Path, path_in_repo: str, repo_id: str) -> None:
        assert repo_id == "org/name"
        (self.root / path_in_repo).write_bytes(path_or_fileobj.read_bytes())


class FakeMissing(RepositoryNotFoundError):
    """One without the response of a server."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    fake.root.mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    monkeypatch.setattr(huggingface_hub, "create_repo", fake.create)
    monkeypatch.setattr(huggingface_hub, "upload_file", fake.upload)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: fake)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def vae() -> WanVAE:
    return tiny()


def assert_same(vae: WanVAE, other: WanVAE) -> None:
    expected = vae.state_dict()
    assert expected.keys() == other.state_dict().keys()
    assert all(torch.equal(expected[n], tensor) for n, tensor in other.state_dict().items())


def test_what_is_pushed_is_loaded(hub: FakeHub, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae.safetensors", push_to_hub="org/name")
    assert [path.name for path in hub.root.iterdir()] == [NATIVE_FILE]
    assert_same(vae, WanVAE.from_pretrained("org/name"))
    assert hub.asked == [NATIVE_FILE]
    assert weights_file("org/name") == hub.root / NATIVE_FILE


def test_nothing_is_pushed_unless_asked(hub: FakeHub, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae.safetensors")
    assert list(hub.root.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "subfolder"), [("", None), ("vae", None), ("vae", "vae"), ("a/b", "a/b")]
)
def test_diffusers_models(
    hub: FakeHub, vae: WanVAE, tmp_path: Path, folder: str, subfolder: str | None
) -> None:
    (hub.root / folder).parent.mkdir(exist_ok=True)
    vae.save_pretrained(tmp_path / "vae.safetensors")
    convert(tmp_path / "vae.safetensors", hub.root / folder, Layout.DIFFUSERS)
    assert_same(vae, WanVAE.from_pretrained("org/name", subfolder=subfolder))
    expected = f"{folder}/config.json" if folder else "config.json"
    assert expected in hub.asked


def test_official_files(hub: FakeHub, vae: WanVAE) -> None:
    formats.save_wan(hub.root / "Wan2.1_VAE.pth", vae.config, vae.state_dict())
    (hub.root / "config.json").write_text("{}")  # of the transformer beside it
    assert_same(vae, WanVAE.from_pretrained("org/name"))
    assert "config.json" not in hub.asked


def test_subfolders_of_local_directories(hub: FakeHub, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae.safetensors")
    (tmp_path / "org" / "name").mkdir(parents=True)
    convert(tmp_path / "vae.safetensors", tmp_path / "org" / "name" / "other", Layout.DIFFUSERS)
    for path in ("org/name", tmp_path / "org" / "name"):
        assert_same(vae, WanVAE.from_pretrained(path, subfolder="other"))
    assert hub.asked == []


def test_what_was_downloaded_is_used_offline(hub: FakeHub, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae.safetensors")
    convert(tmp_path / "vae.safetensors", hub.root / "vae", Layout.DIFFUSERS)
    hub.offline = True
    hub.cached = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
    assert_same(vae, WanVAE.from_pretrained("org/name"))
    # A download would try again for half a minute before it says so.
    assert [name for name in hub.asked if "cached" not in name] == []


def test_offline_with_nothing_downloaded(hub: FakeHub) -> None:
    hub.offline = True
    with pytest.raises(CheckpointError, match=r"^the path org/name does not exist, ") as caught:
        WanVAE.from_pretrained("org/name")
    assert "could not be asked for one (Name or service not known); check" in str(caught.value)
    assert [name for name in hub.asked if "cached" not in name] == []


def test_a_connection_that_is_lost_between_two_files(hub: FakeHub, vae: WanVAE) -> None:
    vae.save_pretrained(hub.root / NATIVE_FILE)
    hub.failure = LocalEntryNotFoundError("no connection")
    with pytest.raises(CheckpointError, match=r"could not be asked for one \(the connection was l"):
        WanVAE.from_pretrained("org/name")


def test_an_unknown_repository(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=r"^org/other is neither a local path nor a repos"):
        WanVAE.from_pretrained("org/other")
    assert len(hub.asked) == 1


def test_a_repository_without_a_vae(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=r"^org/name has no Wan VAE in its root or vae \("):
        WanVAE.from_pretrained("org/name")
    with pytest.raises(CheckpointError, match=r"^org/name has no Wan VAE in other \("):
        WanVAE.from_pretrained("org/name", subfolder="other")


def test_failures_are_one_line(hub: FakeHub, vae: WanVAE, tmp_path: Path) -> None:
    hub.failure = RuntimeError("The disk is full. And more\nabout it")
    with pytest.raises(CheckpointError, match=r"org/name cannot be downloaded \(The disk is full"):
        WanVAE.from_pretrained("org/name")
    with pytest.raises(CheckpointError, match=r"cannot be uploaded to org/name \(The disk") as it:
        vae.save_pretrained(tmp_path / "vae.safetensors", push_to_hub="org/name")
    assert "\n" not in str(it.value) and (tmp_path / "vae.safetensors").exists()


@pytest.mark.parametrize(
    "path",
    [
        *("vae", "a/b/c", "./vae", "../vae", "/vae", "~/vae", "org\\vae", "", "a/"),
        *("org/vae.safetensors", "org/vae.pth", Path("org/name")),
    ],
)
def test_local_paths_ask_nobody(hub: FakeHub, path: str | Path) -> None:
    assert not is_repository(path)
    with pytest.raises(CheckpointError):
        WanVAE.from_pretrained(path)
    assert hub.asked == []


def test_the_command_line_takes_names(
    hub: FakeHub, vae: WanVAE, capsys: pytest.CaptureFixture[str]
) -> None:
    vae.save_pretrained(hub.root / NATIVE_FILE)
    assert main(["info", "org/name"]) == 0
    assert capsys.readouterr().out.startswith("org/name: native layout")
    assert main(["info", "org/other"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
