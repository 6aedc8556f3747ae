"""Motion tokenizers in repositories of the Hugging Face Hub."""

import pytest
import torch

from motion import RVQVAE
from tests.motion.small_tokenizers import tiny_tokenizer
from wanvae.engine.checkpoint import CheckpointError

FILE = "wanvae-motion.safetensors"


def assert_same(model, other):
    expected = model.state_dict()
    assert expected.keys() == other.state_dict().keys()
    assert all(torch.equal(expected[name], x) for name, x in other.state_dict().items())


def test_what_is_pushed_is_loaded(hub, tmp_path):
    model = tiny_tokenizer()
    model.save_pretrained(tmp_path / "model.safetensors")
    assert not hub.root.exists()
    model.save_pretrained(tmp_path / "model.safetensors", push_to_hub="org/name")
    assert [path.name for path in hub.repository("org/name").iterdir()] == [FILE]
    assert_same(model, RVQVAE.from_pretrained("org/name"))


def test_subfolders(hub, tmp_path):
    model = tiny_tokenizer()
    model.save_pretrained(hub.repository("org/name/tokenizers") / FILE)
    assert_same(model, RVQVAE.from_pretrained("org/name", subfolder="tokenizers"))
    assert_same(model, RVQVAE.from_pretrained(f"org/name/tokenizers/{FILE}"))
    with pytest.raises(CheckpointError, match=r"^org/name has no motion tokenizer in its root;"):
        RVQVAE.from_pretrained("org/name")


def test_a_subfolder_of_a_local_path(tmp_path):
    model = tiny_tokenizer()
    model.save_pretrained(tmp_path / "model.safetensors")
    assert_same(model, RVQVAE.from_pretrained(tmp_path, subfolder="model.safetensors"))
