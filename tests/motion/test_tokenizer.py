"""The motion model as people use it: against the published code, lengths, errors."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from motion import RVQVAE, RVQVAEConfig
from motion.config import QuantizerConfig, ResnetConfig, WanConfig
from motion.features.statistics import FeatureStatistics
from tests.helpers import randomize
from tests.motion import golden
from wanvae.engine.finite import NotFiniteError
from wanvae.nn import CausalConv
from wanvae.nn.kernels import precision
from wanvae.nn.norm import BatchNorm


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")

    def load(name: str) -> tuple[RVQVAE, golden.Reference]:
        reference = golden.read(name)
        path = golden.save_published(reference, folder / f"{name}.tar")
        return RVQVAE.from_pretrained(path, **golden.untold(reference)), reference

    return load


@pytest.mark.filterwarnings("ignore:.* has no mean and standard deviation")
@pytest.mark.parametrize(("name", "shape"), list(golden.all_cases()))
def test_it_equals_the_published_code(load, name, shape):
    model, reference = load(name)
    case = reference.cases[shape]
    latents = model.encoder(case["motion"].mT)
    torch.testing.assert_close(latents, case["encoded"], atol=1e-4, rtol=0)
    indices = model.encode(case["motion"])
    expected = case["indices"]
    assert torch.equal(indices, expected if expected.dim() == 3 else expected[:, :, None])
    torch.testing.assert_close(model.decode(indices), case["decoded"], atol=1e-4, rtol=0)
    output = model(case["motion"])
    torch.testing.assert_close(output.output, case["decoded"], atol=1e-4, rtol=0)
    if "quantized" in case:
        quantized = model.quantizer(latents).latents
        torch.testing.assert_close(quantized, case["quantized"], atol=1e-4, rtol=0)
        some = model.decode(indices, layers=2)
        torch.testing.assert_close(some, case["decoded_first_2_layers"], atol=1e-4, rtol=0)
        assert torch.equal(model.decode(indices[:, :, :2]), some)


CHANNELS = 5
QUANTIZER = QuantizerConfig(num_quantizers=3, codebook_size=16, dropout=0.0, revive_below=0.0)
RESNET = ResnetConfig(width=8, depth=2, dropout=0.0)
WAN = WanConfig(dim=4, num_res_blocks=1)


def resnet(**changes: object) -> RVQVAEConfig:
    resnet = replace(RESNET, **changes)
    return RVQVAEConfig(channels=CHANNELS, code_dim=6, resnet=resnet, quantizer=QUANTIZER)


def wan(**changes: object) -> RVQVAEConfig:
    return replace(resnet(), network="wan", wan=replace(WAN, **changes))


CONFIGS = {
    "published": resnet(),
    "layer norm": resnet(norm="LN", activation="silu"),
    "group norm": resnet(norm="GN", width=64),
    "batch norm": resnet(norm="BN", activation="gelu"),
    "causal": resnet(causal=True),
    "attention": resnet(attention=True),
    "causal attention": resnet(attention=True, causal=True, attention_window=3),
    "three stages": resnet(dilation_growth_rate=(2, 1, 3)),
    "wan": wan(),
    "wan with group norm": wan(norm="group", dim=128, dim_mult=(1, 1)),
    "wan of dense blocks": wan(block="dense", norm="layer", attention_window=3),
    "wan of bottlenecks": wan(block="bottleneck", norm="batch"),
}


def make(config: RVQVAEConfig) -> RVQVAE:
    """A model in float64 with weights, statistics and a normalizer that matter."""
    torch.manual_seed(0)
    model = RVQVAE(config)
    randomize(model)
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    model.normalizer.set(FeatureStatistics(torch.randn(CHANNELS), torch.rand(CHANNELS) + 0.5))
    model.eval().quantizer.train()
    model(example(8, 32))
    return model.double().eval()


def example(batch: int, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch + frames)
    return torch.randn(batch, frames, CHANNELS, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request) -> RVQVAE:
    return make(CONFIGS[request.param])


def test_a_padded_batch_gives_each_clip_what_it_gets_alone(model):
    lengths = torch.tensor([9, 1, 32, 16, 27])
    motion = example(5, 32)
    for clip, length in zip(motion, lengths, strict=True):
        clip[length:] = 1e6
    indices = model.encode(motion, lengths)
    assert torch.equal(model.encode(motion, lengths.tolist()), indices)
    decoded = model.decode(indices, lengths)
    output = model(motion, lengths)
    for number, length in enumerate(lengths.tolist()):
        alone = model.encode(motion[number : number + 1, :length])
        tokens = alone.shape[1]
        assert tokens == model.config.tokens_of(length)
        assert torch.equal(indices[number, :tokens], alone[0])
        assert (indices[number, tokens:] == -1).all()
        of_alone = model.decode(alone, length)
        assert of_alone.shape == (1, length, CHANNELS)
        torch.testing.assert_close(decoded[number, :length], of_alone[0])
        assert not decoded[number, length:].any()
        trained = model(motion[number : number + 1, :length])
        torch.testing.assert_close(output.output[number, :length], trained.output[0])
        torch.testing.assert_close(output.target[number, :length], trained.target[0])
        assert not output.output[number, length:].any()


def test_no_frame_is_dropped(model):
    factor = model.config.factor
    for frames in (1, 2, factor, factor + 1, 3 * factor - 1):
        motion = example(2, frames)
        indices = model.encode(motion)
        assert indices.shape == (2, model.config.tokens_of(frames), 3)
        assert model.decode(indices, frames).shape == motion.shape
        whole = model.config.frames_of(indices.shape[1])
        repeated = torch.cat([motion, motion[:, -1:].expand(-1, whole - frames, -1)], 1)
        assert torch.equal(model.encode(repeated), indices)
        if model.config.network == "resnet":
            assert indices.shape[1] == -(-frames // factor)
        everything = model.decode(indices)
        assert everything.shape[1] == whole
        assert torch.equal(everything[:, :frames], model.decode(indices, frames))


def test_it_trains(model):
    model = make(model.config).train()
    lengths = None if any(isinstance(m, BatchNorm) for m in model.modules()) else [16, 9]
    output = model(example(2, 16), None if lengths is None else torch.tensor(lengths))
    loss = (output.output - output.target).abs().mean() + output.quantized.commitment_loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or parameter.dim() == 1, name


def test_features_are_normalized_inside():
    model = make(resnet())
    motion = example(2, 16)
    plain = make(resnet())
    plain.normalizer.set(FeatureStatistics(torch.zeros(CHANNELS), torch.ones(CHANNELS)))
    mean, std = model.normalizer.mean, model.normalizer.std
    indices = model.encode(motion)
    assert torch.equal(plain.encode((motion - mean) / std), indices)
    torch.testing.assert_close(model.decode(indices), plain.decode(indices) * std + mean)


def test_batch_norm_cannot_leave_out_padding_while_training():
    model = make(resnet(norm="BN")).train()
    with pytest.raises(ValueError, match="train on clips of one length"):
        model(example(2, 16), torch.tensor([9, 16]))
    model(example(2, 16), torch.tensor([16, 16]))


def test_half_precision_encodes_and_decodes():
    model = make(resnet()).bfloat16()
    indices = model.encode(example(2, 16))
    assert model.decode(indices).dtype == torch.bfloat16
    exact = make(resnet())
    error = (model.decode(indices).double() - exact.decode(indices)).abs().max()
    assert error < 0.02 * exact.decode(indices).abs().max()


def overflowing():
    """A model whose activations overflow in float16, and in float32 do not."""
    model = make(resnet(causal=True)).float()
    for network in (model.encoder, model.decoder):
        layers = (layer for layer in network.modules() if isinstance(layer, CausalConv))
        for layer in islice(layers, 2):
            layer.weight.data.mul_(1e3)
    return model


def test_a_model_that_overflows_names_the_dtype_that_would_do():
    motion = example(2, 16).float()
    indices = overflowing().encode(motion)
    assert overflowing().decode(indices).isfinite().all()
    model = overflowing()
    for network in (model.encoder, model.decoder):
        network.half()
    lengths = torch.tensor([9, 16])
    for encode in (
        lambda: model.encode(motion),
        lambda: model.encode(motion, lengths),
        lambda: model.stream_encode().push(motion),
        lambda: model.encode_step(motion, None),
    ):
        with pytest.raises(NotFiniteError, match=r"in float16: encode in bfloat16.* or in float32"):
            encode()
    for decode in (
        lambda: model.decode(indices),
        lambda: model.decode(indices, lengths),
        lambda: model.stream_decode().push(indices),
        lambda: model.decode_step(indices, None),
    ):
        with pytest.raises(NotFiniteError, match=r"in float16: decode in bfloat16.* or in float32"):
            decode()
    for network in (model.encoder, model.decoder):
        network.bfloat16()
    assert model.decode(model.encode(motion)).isfinite().all()


def test_codebooks_are_not_made_of_what_is_not_finite():
    model = overflowing()
    model.encoder.half()
    model.quantizer.books.initialized.fill_(False)
    before = model.quantizer.books.codes.clone()
    with pytest.raises(NotFiniteError, match="in float16: encode in bfloat16"):
        model.initialize_codebooks([example(2, 16).float()])
    assert torch.equal(model.quantizer.books.codes, before)


def test_encoding_learns_nothing():
    model = make(resnet()).train()
    before = model.quantizer.books.codes.clone()
    model.encode(example(2, 16))
    assert torch.equal(model.quantizer.books.codes, before)


def test_bad_input_is_refused():
    model = make(resnet())
    motion = example(2, 16)
    broken = motion.clone()
    broken[1, 3, 2] = torch.nan
    for wrong, message in (
        (motion[0], r"must be \(B, T, 5\)"),
        (motion[:, :, :4], r"must be \(B, T, 5\)"),
        (motion[:, :0], "none of them 0"),
        (motion.long(), "floating point"),
        (broken, "nan in clip 1, frame 3, channel 2"),
    ):
        for function in (model.encode, model):
            with pytest.raises(ValueError, match=message):
                function(wrong)
    for lengths, message in (
        (torch.tensor([3]), "2 whole numbers"),
        (torch.tensor([3.0, 4.0]), "2 whole numbers"),
        (torch.tensor([0, 4]), "from 1 to 16"),
        (torch.tensor([4, 17]), "from 1 to 16"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(motion, lengths)
    indices = model.encode(motion)
    for length in (0, 17, torch.tensor([1, 17]), torch.tensor([1])):
        with pytest.raises(ValueError, match=r"from 1 to 16|2 whole numbers"):
            model.decode(indices, length)
    with pytest.raises(ValueError, match="from 0 to 15"):
        model.decode(indices + 16)
    with pytest.raises(ValueError, match="from 1 to 3, not 4"):
        model.decode(indices, layers=4)


def test_normalizers_are_checked():
    normalizer = RVQVAE(resnet()).normalizer
    with pytest.raises(ValueError, match="of 3 channels, not of the 5"):
        normalizer.set(FeatureStatistics(torch.ones(3), torch.ones(3)))
    assert not normalizer.mean.any()


@pytest.mark.parametrize(
    "change",
    [
        lambda: resnet(norm="RMS"),
        lambda: resnet(dilation_growth_rate=()),
        lambda: resnet(attention_window=3),
        lambda: resnet(dropout=1.0),
        lambda: wan(dim_mult=(1,)),
        lambda: wan(dim=1, dim_mult=(1, 1)),
        lambda: replace(resnet(), network="unet"),
        lambda: replace(resnet(), channels=0),
    ],
)
def test_impossible_configs_are_refused(change):
    with pytest.raises(ValueError, match="must be"):
        change()


def test_the_model_of_the_paper_has_its_size():
    with torch.device("meta"):
        model = RVQVAE(RVQVAEConfig())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert round(total / 1e6, 2) == 19.44


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_the_dtype_is_of_the_networks(tmp_path, dtype):
    model, path = make(resnet()).float(), tmp_path / "model.safetensors"
    model.save_pretrained(path)
    loaded = RVQVAE.from_pretrained(path, dtype, "cpu")
    exact = torch.promote_types(dtype or torch.float32, torch.float32)
    assert loaded.dtype == (dtype or torch.float32)
    assert loaded.normalizer.mean.dtype == loaded.quantizer.books.codes.dtype == exact
    motion = example(2, 16).float()
    indices = loaded.encode(motion)
    decoded = loaded.decode(indices)
    assert decoded.dtype == exact
    assert loaded(motion).output.shape == motion.shape
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-4
    expected = model.decode(indices).to(exact)
    assert (decoded - expected).norm() < tolerance * expected.norm()


def test_a_cpu_loads_half_types_that_it_emulates_in_float32(tmp_path, monkeypatch, caplog):
    path = tmp_path / "half.safetensors"
    make(resnet()).half().save_pretrained(path)
    monkeypatch.setattr(precision, "EMULATED_DTYPES", frozenset({torch.float16}))
    assert RVQVAE.from_pretrained(path).dtype == torch.float32
    (record,) = caplog.records
    assert "holds float16, which this CPU only emulates" in record.getMessage()
    assert RVQVAE.from_pretrained(path, torch.float16).dtype == torch.float16
    assert len(caplog.records) == 1


def test_features_are_normalized_as_the_networks_see_them():
    model = make(resnet())
    motion = example(2, 16)
    features = model.normalize(motion)
    assert torch.equal(features, (motion - model.normalizer.mean) / model.normalizer.std)
    torch.testing.assert_close(model.denormalize(features), motion)
    assert torch.equal(model(motion).target, features)


def test_encode_and_decode_have_no_dropout_in_training_mode():
    model = make(resnet(dropout=0.5))
    motion = example(2, 32)
    indices = model.encode(motion)
    decoded = model.decode(indices)
    model.train()
    model.encoder.model[0].eval()
    assert torch.equal(model.encode(motion), indices)
    assert torch.equal(model.decode(indices), decoded)
    modes = [module.training for module in model.encoder.modules()]
    assert modes.count(False) == 1 and not model.encoder.model[0].training


def test_tokens_of_minus_one_end_a_clip(model):
    lengths = torch.tensor([9, 32])
    motion = example(2, 32)
    indices = model.encode(motion, lengths)
    whole = [model.config.frames_of(model.config.tokens_of(length)) for length in (9, 32)]
    decoded = model.decode(indices)
    torch.testing.assert_close(decoded, model.decode(indices, whole))
    alone = model.decode(indices[:1])
    assert alone.shape == (1, whole[0], CHANNELS)
    torch.testing.assert_close(alone, decoded[:1, : whole[0]])
    indices[0] = -1
    with pytest.raises(ValueError, match="clip 0 has no tokens"):
        model.decode(indices)
