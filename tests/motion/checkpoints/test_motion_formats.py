"""Checkpoints of motion tokenizers: read, written, and refused with one clear message."""

import json
import os
import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from motion import RVQVAE, RVQVAEConfig
from motion.checkpoints import formats
from motion.config import QuantizerConfig, ResnetConfig, WanConfig
from motion.features.statistics import FeatureStatistics
from tests.motion import golden
from wanvae.engine.checkpoint import CheckpointError, read_tensors

# Published files do not hold the mean and standard deviation of features.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no mean and standard deviation")

SMALL = RVQVAEConfig(
    channels=5,
    code_dim=4,
    resnet=ResnetConfig(width=6, depth=2, dilation_growth_rate=(2, 3), norm="GN"),
    quantizer=QuantizerConfig(num_quantizers=3, codebook_size=7),
)
WAN = replace(SMALL, network="wan", wan=WanConfig(dim=4, dim_mult=(1, 2), num_res_blocks=1))


def make(config: RVQVAEConfig = SMALL) -> RVQVAE:
    torch.manual_seed(0)
    model = RVQVAE(config)
    model.normalizer.set(FeatureStatistics(torch.randn(5), torch.rand(5) + 0.5))
    model(torch.randn(4, 16, 5))
    return model.eval()


def assert_same(model: RVQVAE, other: RVQVAE) -> None:
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("config", [SMALL, WAN], ids=["resnet", "wan"])
def test_native_files_say_everything(tmp_path, config):
    model, path = make(config), tmp_path / "model.safetensors"
    model.save_pretrained(path)
    loaded = RVQVAE.from_pretrained(path)
    assert loaded.config == config
    assert_same(loaded, model)
    motion = torch.randn(1, 9, 5)
    assert torch.equal(loaded.encode(motion), model.encode(motion))
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "wanvae-motion"


@pytest.mark.parametrize("name", golden.NAMES)
def test_published_files_become_native_ones_and_momask_files_again(tmp_path, name):
    reference = golden.read(name)
    published = golden.save_published(reference, tmp_path / "published.tar")
    model = RVQVAE.from_pretrained(published, **golden.untold(reference))
    model.save_pretrained(tmp_path / "native.safetensors")
    assert_same(RVQVAE.from_pretrained(tmp_path / "native.safetensors"), model)
    again = tmp_path / "again.tar"
    formats.save_momask(again, model.config, model.state_dict())
    assert_same(RVQVAE.from_pretrained(again, **golden.untold(reference)), model)
    content = torch.load(again, weights_only=True)
    assert list(content) == ["vq_model"]
    if name.startswith("momask"):
        assert content["vq_model"].keys() == reference.weights.keys()
        for key, value in reference.weights.items():
            assert torch.equal(content["vq_model"][key], value), key


def test_what_tensors_tell_is_read_off_them(tmp_path):
    for name in golden.NAMES:
        reference = golden.read(name)
        options = reference.options
        path = golden.save_published(reference, tmp_path / f"{name}.pth")
        checkpoint = formats.load(path, formats.Untold(**golden.untold(reference)))
        config = checkpoint.config
        assert config.resnet.width == options["width"]
        assert config.resnet.depth == options["depth"]
        assert config.resnet.down_t == options["down_t"]
        assert config.resnet.norm == options["norm"]
        assert config.channels == options.get("input_width", 263)
        assert config.code_dim == options["code_dim"]
        assert config.quantizer.codebook_size == options["nb_code"]
        assert config.quantizer.num_quantizers == options.get("num_quantizers", 1)
        assert config.quantizer.shared_codebook == options.get("shared_codebook", False)
        layout = {"momask": "momask", "t2mgpt": "t2m-gpt", "gesturelsm": "gesturelsm"}
        assert checkpoint.layout.value == layout[name.split("_")[0]]
        assert any(note.startswith("activation: ") for note in checkpoint.notes)


@pytest.mark.parametrize("wrapper", [*formats.WRAPPERS, None])
@pytest.mark.parametrize("prefix", ["", "vqvae.", "module.", "vae."])
def test_wrappers_and_prefixes_are_found(tmp_path, wrapper, prefix):
    weights = {prefix + k: v for k, v in golden.read("momask_tiny_relu_None").weights.items()}
    path = tmp_path / "model.pth"
    torch.save(OrderedDict(weights) if wrapper is None else {wrapper: weights, "ep": 1}, path)
    checkpoint = formats.load(path)
    assert checkpoint.config.quantizer.num_quantizers == 4
    assert "encoder.model.0.weight" in checkpoint.tensors


def test_tensors_of_other_models_are_left_and_told(tmp_path):
    weights = golden.read("t2mgpt_tiny").weights
    path = tmp_path / "model.safetensors"
    save_file({**weights, "lm.head.weight": torch.zeros(2)}, path)
    assert any("lm.head.weight" in note for note in formats.load(path).notes)


def test_a_norm_that_tensors_do_not_tell_is_asked_for(tmp_path):
    def load(name: str, **options: object) -> RVQVAE:
        path = golden.save_published(golden.read(name), tmp_path / f"{name}.pth")
        return RVQVAE.from_pretrained(path, **options)

    with pytest.raises(CheckpointError, match="norm='LN' or norm='GN'"):
        load("momask_tiny_gelu_GN")
    assert load("momask_tiny_relu_BN").config.resnet.norm == "BN"
    for name, norm in (
        ("momask_tiny_relu_None", "GN"),
        ("momask_tiny_relu_BN", "LN"),
        ("momask_tiny_gelu_GN", "BN"),
    ):
        with pytest.raises(CheckpointError, match=f"norm is {norm} as given"):
            load(name, norm=norm)


def test_dilations_can_be_given(tmp_path):
    path = golden.save_published(golden.read("momask_tiny_relu_None"), tmp_path / "model.pth")
    model = RVQVAE.from_pretrained(path, dilation_growth_rate=(2, 5), reverse_dilation=False)
    dilations = [block.conv1.dilation[0] for block in model.encoder.model[3][1].model]
    assert dilations == [1, 5, 25]
    with pytest.raises(CheckpointError, match="2 stages"):
        RVQVAE.from_pretrained(path, dilation_growth_rate=(1, 2, 3))
    native = tmp_path / "model.safetensors"
    model.save_pretrained(native)
    with pytest.raises(CheckpointError, match="says its architecture itself; do not give activ"):
        RVQVAE.from_pretrained(native, activation="gelu")


def test_the_normalizer_goes_beside_a_momask_file(tmp_path):
    model = make(replace(SMALL, resnet=replace(SMALL.resnet, dilation_growth_rate=(3, 3))))
    formats.save_momask(tmp_path / "model.tar", model.config, model.state_dict())
    for name, values in (("mean", model.normalizer.mean), ("std", model.normalizer.std)):
        written = np.load(tmp_path / f"model_{name}.npy", allow_pickle=False)
        assert np.array_equal(written, values.numpy())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (SMALL, "growth that differs"),
        (WAN, "network wan"),
        (replace(SMALL, resnet=ResnetConfig(width=6, causal=True)), "causal"),
        (replace(SMALL, resnet=ResnetConfig(width=6, attention=True)), "attention"),
        (replace(SMALL, resnet=ResnetConfig(width=6, reverse_dilation=False)), "order"),
    ],
)
def test_what_momask_has_not_is_not_written_for_it(tmp_path, config, reason):
    model = make(config)
    with pytest.raises(CheckpointError, match=reason):
        formats.save_momask(tmp_path / "model.tar", config, model.state_dict())
    assert not list(tmp_path.iterdir())


def without(name: str):
    return lambda weights: weights.pop(name)


def replaced(name: str, value: torch.Tensor):
    return lambda weights: weights.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder.model.0.weight"), "no layout of a motion tokenizer"),
        (without("encoder.model.2.0.weight"), "encoder.model.2.0.weight is missing"),
        (without("encoder.model.3.1.model.1.conv2.bias"), "1 missing: encoder.model.3.1.model.1."),
        (without("decoder.model.6.bias"), "1 missing: decoder.model.6.bias"),
        (without("quantizer.layers.1.codebook"), "without a gap"),
        (replaced("quantizer.layers.1.codebook", torch.zeros(3, 3)), r"must all be \(codes"),
        (replaced("quantizer.layers.0.embedding_proj.bias", torch.zeros(32)), "missing: quantizer"),
        (replaced("quantizer.extra", torch.zeros(1)), "unexpected: quantizer.extra"),
        (replaced("decoder.extra", torch.zeros(1)), "1 unexpected: decoder.extra"),
        (replaced("encoder.model.0.weight", torch.zeros(3)), "not the weight of a 1D convolution"),
        (replaced("encoder.model.2.0.weight", torch.zeros(32, 32, 8)), "kernel of 8"),
        (replaced("decoder.model.6.weight", torch.zeros(9, 32, 3)), "of another shape or kind"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    weights = golden.read("momask_tiny_relu_None").weights
    change(weights)
    torch.save({"vq_model": weights}, tmp_path / "model.tar")
    with pytest.raises(CheckpointError, match=message):
        RVQVAE.from_pretrained(tmp_path / "model.tar")


def test_native_configs_are_checked(tmp_path):
    path = tmp_path / "model.safetensors"
    make().save_pretrained(path)
    file = read_tensors(path)
    for change, message in (
        ({"depth": 3}, "unknown keys: depth"),
        ({"channels": "5"}, "channels must be int"),
        ({"network": "transformer"}, "network must be"),
        ({"quantizer": {"codebook_size": 8}}, "of another shape"),
        ({"resnet": {"depth": 10**9}}, "larger model"),
        ({"code_dim": 10**30}, "larger model"),
        ({"fps": 10**400}, "fps must be float"),
        ({"network": "wan", "wan": {"dim": 10**12}}, "larger model"),
    ):
        config = json.loads(file.metadata["config"]) | change
        save_file(file.tensors, path, {**file.metadata, "config": json.dumps(config)})
        with pytest.raises(CheckpointError, match=message):
            RVQVAE.from_pretrained(path)


OLD_FIELDS = {
    "num_quantizers": "layers",
    "codebook_size": "codes",
    "shared_codebook": "shared",
    "initialization": "initialisation",
}


def test_files_with_the_names_of_before_load(tmp_path):
    model, path = make(), tmp_path / "model.safetensors"
    model.save_pretrained(path)
    file = read_tensors(path)
    config = json.loads(file.metadata["config"])
    quantizer = config["quantizer"]
    config["quantizer"] = {OLD_FIELDS.get(name, name): x for name, x in quantizer.items()}
    assert config["quantizer"].keys() > set(OLD_FIELDS.values())
    tensors = {
        name.replace("normalizer", "normaliser").replace("initialized", "initialised"): tensor
        for name, tensor in file.tensors.items()
    }
    assert {"normaliser.mean", "quantizer.books.initialised"} < tensors.keys()
    save_file(tensors, path, {**file.metadata, "config": json.dumps(config)})
    with pytest.warns(UserWarning, match="QuantizerConfig: layers is called num_quantizers") as it:
        loaded = RVQVAE.from_pretrained(path)
    assert len(it) == 1 and "\n" not in str(it[0].message)
    assert loaded.config == SMALL
    assert_same(loaded, model)
    again = make(SMALL).requires_grad_(False)
    again.normalizer.mean.zero_()
    with pytest.warns(UserWarning, match="initialisation is called initialization now"):
        formats.load_weights(again, path)
    assert_same(again, model)


class Hostile:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_hostile_and_damaged_files_are_refused(tmp_path):
    path, trap = tmp_path / "model.tar", tmp_path / "trap"
    torch.save({"vq_model": golden.read("t2mgpt_tiny").weights, "x": Hostile(str(trap))}, path)
    with pytest.raises(CheckpointError, match="objects that are not tensors"):
        RVQVAE.from_pretrained(path)
    assert not trap.exists()
    golden.save_published(golden.read("t2mgpt_tiny"), path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        RVQVAE.from_pretrained(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        RVQVAE.from_pretrained(tmp_path / "none.tar")
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        make().save_pretrained(tmp_path / "model.bin")


def test_a_bug_is_not_taken_for_a_bad_checkpoint(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    path = tmp_path / "model.safetensors"
    make().save_pretrained(path)
    monkeypatch.setattr(formats, "read_native", broken)
    with pytest.raises(ValueError, match="a bug") as caught:
        formats.load(path)
    assert not isinstance(caught.value, CheckpointError)


def test_a_model_without_a_normalizer_says_so(tmp_path):
    """Published files once, when they are loaded; ``info`` says it of native files too."""
    reference = golden.read("momask_tiny_relu_BN")
    published = golden.save_published(reference, tmp_path / "a.tar")
    convert = re.escape(f"motion convert {published} model.safetensors --to native --mean")
    with pytest.warns(UserWarning, match=rf"takes and gives normalized .*{convert}") as caught:
        model = RVQVAE.from_pretrained(published, **golden.untold(reference))
    assert len(caught) == 1
    native = tmp_path / "native.safetensors"
    for statistics, notes in ((None, (formats.WITHOUT_NORMALIZER,)), (True, ())):
        if statistics:
            channels = model.config.channels
            model.normalizer.set(FeatureStatistics(torch.ones(channels), torch.ones(channels)))
        model.save_pretrained(native)
        assert formats.load(native).notes == notes
        RVQVAE.from_pretrained(native)
