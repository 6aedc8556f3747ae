"""Parameters of Resnet1D under the names of Jukebox: against a small network that has them."""

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from motion import RVQVAE, Resnet1D, ResnetConfig, RVQVAEConfig
from motion.quantizer.residual_vq import QuantizerConfig
from wanvae.engine.checkpoint import CheckpointError, write_pickle


class Block(nn.Module):
    """A residual block: the layers 1 and 3 of a list named ``model`` are convolutions."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        wide = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.model = nn.Sequential(nn.ReLU(), wide, nn.ReLU(), nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.model(x)


class Blocks(nn.Module):
    """Blocks in a list, whose name is ``model`` or ``blocks``."""

    def __init__(self, name: str, dilations: list[int], channels: int = 8) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*(Block(channels, each) for each in dilations)))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


@pytest.mark.parametrize("name", ["model", "blocks"])
@pytest.mark.parametrize(
    ("reverse", "dilations"), [(False, [1, 3, 9]), (True, [9, 3, 1])], ids=["growing", "reversed"]
)
def test_the_names_of_jukebox_are_read(name, reverse, dilations):
    torch.manual_seed(0)
    published = Blocks(name, dilations)
    assert f"{name}.2.model.3.weight" in published.state_dict()
    resnet = Resnet1D(8, 3, 3, reverse_dilation=reverse)
    tensors = published.state_dict()
    resnet.load_state_dict(tensors)
    assert f"{name}.2.model.3.weight" in tensors  # the tensors of the caller stay as they are
    x = torch.randn(2, 8, 40)
    torch.testing.assert_close(resnet(x), published(x), atol=1e-5, rtol=0)


def test_they_are_read_inside_of_other_models_and_by_copies():
    published = nn.ModuleDict({"a": Blocks("model", [1, 3]), "b": Blocks("blocks", [1, 3])})
    ours = nn.ModuleDict({name: Resnet1D(8, 2, 3, False) for name in "ab"})
    x = torch.randn(1, 8, 9)
    for model in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        model.load_state_dict(published.state_dict())
        for name in "ab":
            torch.testing.assert_close(model[name](x), published[name](x), atol=1e-5, rtol=0)


def test_our_names_are_read_as_before_and_wrong_ones_refused():
    first, second = Resnet1D(8, 2, 3), Resnet1D(8, 2, 3)
    second.load_state_dict(first.state_dict())
    tensors = Blocks("model", [3, 1]).state_dict()
    tensors["model.0.model.2.weight"] = tensors.pop("model.0.model.1.weight")
    with pytest.raises(RuntimeError, match=r"model\.0\.conv1\.weight") as raised:
        second.load_state_dict(tensors)
    assert "model.0.model.2.weight" in str(raised.value)


def test_a_tokenizer_with_these_names_is_loaded(tmp_path):
    """A file of T2M-GPT's layout whose residual blocks have the names of Jukebox."""
    config = RVQVAEConfig(
        channels=5,
        code_dim=4,
        resnet=ResnetConfig(width=8, depth=2),
        quantizer=QuantizerConfig(num_quantizers=1, codebook_size=6),
    )
    model = RVQVAE(config).eval()
    named = {
        re.sub(r"conv([12])", lambda found: f"model.{2 * int(found[1]) - 1}", name): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("encoder.", "decoder."))
    }
    assert "encoder.model.2.1.model.0.model.3.bias" in named
    books = {"quantizer.codebook": model.quantizer.books.codes[0]}
    write_pickle(tmp_path / "jukebox.pth", named | books, wrapper="net")
    with pytest.warns(UserWarning, match="no mean and standard deviation"):
        loaded = RVQVAE.from_pretrained(tmp_path / "jukebox.pth")
    motion = torch.randn(1, 17, 5)
    assert torch.equal(loaded.encode(motion), model.encode(motion))


@pytest.mark.parametrize("prefix", ["", "module.vqvae_up."])
def test_whole_networks_of_jukebox_are_refused_by_their_name(tmp_path, prefix):
    """Jukebox and Bailando hold their tensors under "model", among other things."""
    block = Blocks("model", [1, 3]).state_dict()
    level = f"{prefix}encoders.0.level_blocks.0.model"
    named = {f"{level}.0.1.{name}": tensor for name, tensor in block.items()}
    named[f"{level}.0.0.weight"] = torch.zeros(8, 5, 4)
    path = tmp_path / "vqvae.pth.tar"
    torch.save({"model": named, "step": 3}, path)
    with pytest.raises(CheckpointError, match=r"networks are of Jukebox, as in Bailando.*Resnet1D"):
        RVQVAE.from_pretrained(path)
    own = {name.removeprefix(f"{level}.0.1."): tensor for name, tensor in named.items()}
    del own[f"{level}.0.0.weight"]
    Resnet1D(8, 2, 3, reverse_dilation=False).load_state_dict(own)
