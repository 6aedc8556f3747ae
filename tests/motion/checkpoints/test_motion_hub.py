"""Motion tokenizers in repositories of the Hugging Face Hub, whose calls know a folder instead."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError

from motion import RVQVAE
from tests.motion.small_tokenizers import tiny_tokenizer
from wanvae.engine.checkpoint import CheckpointError

FILE = "wanvae-motion.safetensors"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder of the repository org/name."""
    root = tmp_path / "hub"
    root.mkdir()

    def download(repository, name, *, subfolder, local_files_only):
        assert repository == "org/name"
        path = root / (subfolder or "") / name
        if not path.exists():
            raise EntryNotFoundError("404")
        return str(path)

    def upload(*, path_or_fileobj, path_in_repo, repo_id):
        assert repo_id == "org/name"
        (root / path_in_repo).write_bytes(path_or_fileobj.read_bytes())

    monkeypatch.setattr("wanvae.engine.hub.find_obstacle", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, exist_ok: None)
    monkeypatch.setattr(huggingface_hub, "upload_file", upload)
    monkeypatch.chdir(tmp_path)
    return root


def assert_same(model, other):
    expected = model.state_dict()
    assert expected.keys() == other.state_dict().keys()
    assert all(torch.equal(expected[name], x) for name, x in other.state_dict().items())


def test_what_is_pushed_is_loaded(hub, tmp_path):
    model = tiny_tokenizer()
    model.save_pretrained(tmp_path / "model.safetensors")
    assert not list(hub.iterdir())
    model.save_pretrained(tmp_path / "model.safetensors", push_to_hub="org/name")
    assert [path.name for path in hub.iterdir()] == [FILE]
    assert_same(model, RVQVAE.from_pretrained("org/name"))


def test_subfolders(hub, tmp_path):
    model = tiny_tokenizer()
    (hub / "tokenizers").mkdir()
    model.save_pretrained(hub / "tokenizers" / FILE)
    assert_same(model, RVQVAE.from_pretrained("org/name", subfolder="tokenizers"))
    with pytest.raises(CheckpointError, match=r"^org/name has no motion tokenizer in its root \("):
        RVQVAE.from_pretrained("org/name")


def test_a_subfolder_of_a_local_path(tmp_path):
    model = tiny_tokenizer()
    model.save_pretrained(tmp_path / "model.safetensors")
    assert_same(model, RVQVAE.from_pretrained(tmp_path, subfolder="model.safetensors"))
