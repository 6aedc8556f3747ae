"""Checkpoints on the Hugging Face Hub: a small server on this machine answers as the Hub does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from tests.helpers import tiny
from tests.hub_server import HubServer, point_at
from wanvae import WanVAE
from wanvae.checkpoints import formats
from wanvae.checkpoints.formats import Layout, weights_file
from wanvae.checkpoints.hub import NATIVE_FILE
from wanvae.cli import main
from wanvae.commands.convert import convert
from wanvae.engine.checkpoint import CheckpointError
from wanvae.engine.hub import HubAddress, parse_address

# A port that nobody listens to.
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def vae() -> WanVAE:
    return tiny()


def assert_same(vae: WanVAE, other: WanVAE) -> None:
    expected = vae.state_dict()
    assert expected.keys() == other.state_dict().keys()
    assert all(torch.equal(expected[n], tensor) for n, tensor in other.state_dict().items())


def write_diffusers(vae: WanVAE, folder: Path) -> None:
    native = folder.parent / "vae.safetensors"
    vae.save_pretrained(native)
    convert(native, folder, Layout.DIFFUSERS)
    native.unlink()


def test_what_is_pushed_is_loaded(hub: HubServer, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae.safetensors", push_to_hub="org/name")
    assert [path.name for path in hub.repository("org/name").iterdir()] == [NATIVE_FILE]
    assert_same(vae, WanVAE.from_pretrained("org/name"))
    assert set(hub.asked) == {f"org/name/{NATIVE_FILE}"}
    assert weights_file("org/name").read_bytes() == (tmp_path / "vae.safetensors").read_bytes()


def test_nothing_is_pushed_unless_asked(hub: HubServer, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae.safetensors")
    assert not hub.root.exists()


@pytest.mark.parametrize(
    ("folder", "subfolder"), [("", None), ("vae", None), ("vae", "vae"), ("a/b", "a/b")]
)
def test_diffusers_models(hub: HubServer, vae: WanVAE, folder: str, subfolder: str | None) -> None:
    place = hub.root / "org" / "name" / folder
    place.parent.mkdir(parents=True)
    write_diffusers(vae, place)
    assert_same(vae, WanVAE.from_pretrained("org/name", subfolder=subfolder))
    if folder:
        assert_same(vae, WanVAE.from_pretrained(f"org/name/{folder}"))


def test_official_files(hub: HubServer, vae: WanVAE) -> None:
    folder = hub.repository("org/name")
    formats.save_wan(folder / "Wan2.1_VAE.pth", vae.config, vae.state_dict())
    (folder / "config.json").write_text("{}")  # the config of the transformer beside it
    assert_same(vae, WanVAE.from_pretrained("org/name"))
    assert "org/name/config.json" not in hub.asked


PLACES = (
    "org/name@v2/split_files/vae/some vae.safetensors",
    "hf://org/name@v2/split_files/vae/some vae.safetensors",
    "{address}/org/name/blob/v2/split_files/vae/some%20vae.safetensors",
    "{address}/org/name/resolve/v2/split_files/vae/some%20vae.safetensors?download=true",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_of_any_name_in_a_revision(hub: HubServer, vae: WanVAE, place: str) -> None:
    hub.repository("org/name")
    folder = hub.repository("org/name@v2") / "split_files" / "vae"
    folder.mkdir(parents=True)
    formats.save_wan(folder / "some vae.safetensors", vae.config, vae.state_dict())
    assert_same(vae, WanVAE.from_pretrained(place.format(address=hub.address)))
    assert set(hub.asked) == {"org/name/split_files/vae/some vae.safetensors"}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("org/name", HubAddress("org/name")),
        ("org/name/", HubAddress("org/name")),
        ("org/name.v1-x@v1.0", HubAddress("org/name.v1-x", "v1.0")),
        ("org/name/vae", HubAddress("org/name", None, "vae")),
        ("org/name@refs/pr/1/vae", HubAddress("org/name", "refs/pr/1", "vae")),
        ("org/name@refs%2Fpr%2F1/vae", HubAddress("org/name", "refs/pr/1", "vae")),
        ("org/vae.safetensors", HubAddress("org/vae.safetensors")),
        ("https://huggingface.co/org/name", HubAddress("org/name")),
        ("https://hf.co/org/name/", HubAddress("org/name")),
        ("huggingface.co/org/name/blob/main/a.pth", HubAddress("org/name", None, "a.pth")),
        ("https://huggingface.co/org/name/tree/main/vae", HubAddress("org/name", None, "vae")),
        ("https://huggingface.co/org/name/tree/v2", HubAddress("org/name", "v2")),
        (
            "https://huggingface.co/org/name/blob/refs%2Fpr%2F1/a/b.pth",
            HubAddress("org/name", "refs/pr/1", "a/b.pth"),
        ),
    ],
)
def test_addresses(text: str, address: HubAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("https://example.com/org/name/blob/main/vae.pth", "https://huggingface.co/name"),
        *("https://huggingface.co/org/name/discussions/1", "http://org"),
    ],
)
def test_web_addresses_of_something_else(hub: HubServer, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"is no address of a model on the Hugging Face Hub"):
        WanVAE.from_pretrained(text)
    assert hub.asked == []


def test_local_paths_win(hub: HubServer, vae: WanVAE, tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    write_diffusers(vae, tmp_path / "org" / "name" / "other")
    vae.save_pretrained(tmp_path / "org" / "vae.safetensors")
    for path in ("org/name", tmp_path / "org" / "name"):
        assert_same(vae, WanVAE.from_pretrained(path, subfolder="other"))
    for path in ("org/name/other", "org/vae.safetensors"):
        assert_same(vae, WanVAE.from_pretrained(path))
    assert hub.asked == []


def test_what_was_downloaded_is_used_offline(
    hub: HubServer, vae: WanVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_diffusers(vae, hub.repository("org/name") / "vae")
    places = ("org/name", "org/name/vae", "org/name/vae/diffusion_pytorch_model.safetensors")
    for place in places:
        assert_same(vae, WanVAE.from_pretrained(place))
    point_at(UNREACHABLE, monkeypatch)
    asked = list(hub.asked)
    for place in places:
        assert_same(vae, WanVAE.from_pretrained(place))
    assert hub.asked == asked


@pytest.mark.parametrize("place", ["org/name", "org/name/vae.safetensors", "org/name@v2/vae"])
def test_offline_with_nothing_downloaded(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    point_at(UNREACHABLE, monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        WanVAE.from_pretrained(place)
    assert str(caught.value).startswith(f"the path {place} does not exist, no repository")
    assert str(caught.value).endswith("Connection refused); check the path or the network")


def test_a_connection_that_is_lost_between_two_files(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection") from OSError("the line is cut. Try again")

    (hub.repository("org/name") / NATIVE_FILE).write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lose)
    with pytest.raises(CheckpointError, match=r"could not be asked for one \(the line is cut\);"):
        WanVAE.from_pretrained("org/name")


@pytest.mark.parametrize("place", ["org/other", "org/other/vae.pth", "runs/vae.safetensors"])
def test_an_unknown_repository(hub: HubServer, place: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        WanVAE.from_pretrained(place)
    assert str(caught.value).startswith(f"{place} is neither a local path nor a place in a repos")
    assert len(set(hub.asked)) <= 1


def test_an_unknown_revision(hub: HubServer) -> None:
    hub.repository("org/name")
    with pytest.raises(CheckpointError, match=r"^org/name has no revision v3; name one"):
        WanVAE.from_pretrained("org/name@v3/vae.safetensors")


def test_a_repository_without_a_vae(hub: HubServer) -> None:
    folder = hub.repository("org/name")
    for path, subfolder, missing in (
        ("org/name", None, "Wan VAE in its root or vae"),
        ("org/name", "other", "Wan VAE in other"),
        ("org/name/a.pth", None, "file a.pth"),
    ):
        with pytest.raises(CheckpointError) as caught:
            WanVAE.from_pretrained(path, subfolder=subfolder)
        assert str(caught.value) == (
            f"org/name has no {missing}; it has no weight files that this program reads"
        )
    (folder / "vae").mkdir()
    (folder / "vae" / "some.safetensors").write_bytes(b"")
    (folder / "readme.md").write_bytes(b"")
    for path in ("org/name", "org/name/vae/same.safetensors"):
        with pytest.raises(CheckpointError, match=r"; it has org/name/vae/some.safetensors; name "):
            WanVAE.from_pretrained(path)


def test_failures_are_one_line(hub: HubServer, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(hub.repository("org/name") / NATIVE_FILE)
    hub.broken = True
    with pytest.raises(CheckpointError, match=r"org/name cannot be downloaded \(") as caught:
        WanVAE.from_pretrained("org/name")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"cannot be uploaded to org/name \(") as caught:
        vae.save_pretrained(tmp_path / "vae.safetensors", push_to_hub="org/name")
    assert "\n" not in str(caught.value) and (tmp_path / "vae.safetensors").exists()


@pytest.mark.parametrize(
    "path",
    [
        *("vae", "vae.safetensors", "./vae", "../vae", "a/../b/c", "/vae", "~/vae", "org\\vae", ""),
        *("a/", "a//b", Path("org/name")),
    ],
)
def test_local_paths_ask_nobody(hub: HubServer, path: str | Path) -> None:
    assert parse_address(path) is None
    with pytest.raises(CheckpointError):
        WanVAE.from_pretrained(path)
    assert hub.asked == []


def test_the_command_line_takes_addresses(
    hub: HubServer, vae: WanVAE, capsys: pytest.CaptureFixture[str]
) -> None:
    vae.save_pretrained(hub.repository("org/name") / "some.safetensors")
    assert main(["info", "org/name/some.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("org/name/some.safetensors: native layout")
    assert main(["info", "org/other"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_server_that_the_environment_names(hub: HubServer, vae: WanVAE, tmp_path: Path) -> None:
    vae.save_pretrained(hub.repository("org/name") / "some.safetensors")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "wanvae",
            "info",
            f"{hub.address}/org/name/blob/main/some.safetensors",
        ],
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "native layout" in done.stdout
