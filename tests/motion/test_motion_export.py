"""Encoders and decoders as programs: they compute what the model computes, for all lengths."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from motion import RVQVAE, QuantizerConfig, ResnetConfig, RVQVAEConfig
from motion.cli import main
from motion.config import SmoothingConfig, WanConfig
from motion.export import as_onnx, export_part, least_frames, least_tokens, write_part
from motion.features.statistics import FeatureStatistics
from motion.models import MotionModel, make_model
from motion.quantizer_config import FSQConfig, ImplicitConfig
from wanvae.engine.config import from_json_dict
from wanvae.errors import UserError

CHANNELS, LAYERS = 9, 3
CONFIGS = {
    "resnet": {"resnet": ResnetConfig(width=16, depth=2, norm="LN", dropout=0.5)},
    "causal": {
        "resnet": ResnetConfig(
            width=16, depth=1, causal=True, attention=True, attention_window=4, activation="silu"
        )
    },
    "wan": {
        "network": "wan",
        "wan": WanConfig(dim=8, dim_mult=(1, 2), num_res_blocks=1),
        "smoothing": SmoothingConfig(before=2, after=1),
    },
}
# Quantizers other than the default, by what differs from it.
QUANTIZERS = {
    "ema": {"codebook_dim": 3, "metric": "cosine", "groups": 3},
    "learned": {"kind": "learned", "shared_codebook": True},
    "simvq": {"kind": "simvq", "estimator": "rotation"},
    "implicit": {"kind": "implicit", "codebook_dim": 4, "implicit": ImplicitConfig(hidden=6)},
    "fsq": {"kind": "fsq", "fsq": FSQConfig(levels=(4, 2, 2))},
    "lfq": {"kind": "lfq", "groups": 3},
}


def make(kind: str, bottleneck: str = "quantizer") -> MotionModel:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(num_quantizers=LAYERS, codebook_size=16)
    config = RVQVAEConfig(
        channels=CHANNELS, code_dim=8, quantizer=quantizer, bottleneck=bottleneck, **CONFIGS[kind]
    )
    return prepare(make_model(config))


def prepare(model: MotionModel) -> MotionModel:
    """Returns a model with a normalizer, in evaluation mode."""
    model.normalizer.set(FeatureStatistics.fit([3 + 2 * torch.randn(50, CHANNELS)]))
    return model.eval()


def make_with(kind: str) -> RVQVAE:
    """Returns a model with another quantizer, all of whose tensors have values of their own."""
    torch.manual_seed(0)
    given = {"num_quantizers": LAYERS, "codebook_size": 16, "dropout": 0.0, **QUANTIZERS[kind]}
    config = RVQVAEConfig(
        channels=CHANNELS,
        code_dim=9,
        resnet=ResnetConfig(width=8, depth=1, dropout=0.0),
        quantizer=QuantizerConfig(**given),
    )
    model = RVQVAE(config)
    prepare(model.train())
    model.train()(3 + 2 * torch.randn(4, 40, CHANNELS))  # makes the codebooks
    for parameter in model.quantizer.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def load_onnx(program: ExportedProgram, *outputs: str) -> Callable[..., dict[str, torch.Tensor]]:
    """Returns a function that runs a program in onnxruntime, which does so without a loop."""
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    content = as_onnx(program, {}, outputs)
    operations = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert not operations & {"Loop", "Scan", "If", "SequenceAt"}
    session = runtime.InferenceSession(content)

    def run(**given: torch.Tensor) -> dict[str, torch.Tensor]:
        found = session.run(outputs, {name: value.numpy() for name, value in given.items()})
        return dict(zip(outputs, map(torch.from_numpy, found), strict=True))

    return run


def motions(config: RVQVAEConfig) -> list[torch.Tensor]:
    """Clips of several numbers and lengths: the shortest, whole tokens, parts of tokens."""
    least = least_frames(config)
    shapes = [*((1 + more % 2, least + more) for more in range(6)), (3, 200)]
    return [3 + 2 * torch.randn(clips, frames, CHANNELS) for clips, frames in shapes]


def all_indices(config: RVQVAEConfig) -> list[torch.Tensor]:
    """Indices of several numbers and lengths; some say that there is no code."""
    shapes = [(1, least_tokens(config)), (3, 5), (2, 50)]
    return [torch.randint(-1, 16, (*shape, LAYERS)) for shape in shapes]


def check_encoder(model: RVQVAE) -> None:
    """Checks the programs of the encoder of a tokenizer against the model."""
    program = export_part(model, "encoder")
    encoder, in_onnx = program.module(), load_onnx(program, "indices")
    for motion in motions(model.config):
        expected = model.encode(motion)
        assert torch.equal(encoder(motion=motion), expected)
        assert torch.equal(in_onnx(motion=motion)["indices"], expected)


def check_decoder(model: MotionModel, name: str, codes: Sequence[torch.Tensor]) -> None:
    """Checks the programs of a decoder, which takes ``codes`` by a name, against the model."""
    program = export_part(model, "decoder")
    decoder, in_onnx = program.module(), load_onnx(program, "motion")
    for each in codes:
        expected = model.decode(each, model.config.frames_of(each.shape[1]))
        for found in (decoder(**{name: each}), in_onnx(**{name: each})["motion"]):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_programs_of_the_encoder_compute_what_the_model_does(kind):
    check_encoder(make(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_programs_of_the_decoder_compute_what_the_model_does(kind):
    model = make(kind)
    check_decoder(model, "indices", all_indices(model.config))


def test_tracing_leaves_a_model_in_training_as_it_is():
    model = make("resnet").train()
    motion = motions(model.config)[0]
    encoder = export_part(model, "encoder").module()
    assert model.training and model.encoder.training  # but traced as for inference
    assert torch.equal(encoder(motion=motion), model.eval().encode(motion))


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_all_quantizers_can_be_exported(kind):
    model = make_with(kind)
    check_encoder(model)
    check_decoder(model, "indices", all_indices(model.config))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_programs_of_a_vae_compute_what_it_does(kind):
    model = make(kind, "gaussian")
    program = export_part(model, "encoder")
    encoder, in_onnx = program.module(), load_onnx(program, "mean", "logvar")
    for motion in motions(model.config):
        expected = model.encode(motion)
        mean, logvar = encoder(motion=motion)
        of_onnx = in_onnx(motion=motion)
        for found in ((mean, logvar), (of_onnx["mean"], of_onnx["logvar"])):
            torch.testing.assert_close(found, (expected.mean, expected.logvar), atol=1e-5, rtol=0)
    shapes = [(1, least_tokens(model.config)), (3, 5), (2, 50)]
    check_decoder(model, "latents", [torch.randn(*shape, 8) for shape in shapes])


@pytest.mark.slow
def test_the_command_writes_programs_of_a_checkpoint(tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    model = make("resnet")
    checkpoint = str(tmp_path / "model.safetensors")
    model.save_pretrained(checkpoint)
    for name in ("encoder.pt2", "decoder.onnx"):
        part = name.partition(".")[0]
        assert main(["export", checkpoint, str(tmp_path / name), "--part", part]) == 0
    printed = capsys.readouterr().out
    assert "encoder.pt2: motion (clips, frames, 9) to indices (clips, tokens, 3)" in printed
    assert "decoder.onnx: indices (clips, tokens, 3) to motion (clips, frames, 9)" in printed
    assert printed.count("at least 5 frames or 2 tokens") == 2
    assert len(list(tmp_path.iterdir())) == 3
    facts = {"config": "", "part": ""}
    encoder = torch.export.load(tmp_path / "encoder.pt2", extra_files=facts).module()
    decoder = runtime.InferenceSession(tmp_path / "decoder.onnx")
    metadata = decoder.get_modelmeta().custom_metadata_map
    for config in (facts["config"], metadata["config"]):
        assert from_json_dict(RVQVAEConfig, json.loads(config)) == model.config
    motion = motions(model.config)[-1]
    indices = encoder(motion=motion)
    assert torch.equal(indices, model.encode(motion))
    (decoded,) = decoder.run(None, {"indices": indices.numpy()})
    torch.testing.assert_close(torch.from_numpy(decoded), model.decode(indices, 200))


@pytest.mark.slow
def test_the_command_writes_programs_of_a_vae(tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    model = make("causal", "gaussian")
    checkpoint = str(tmp_path / "vae.safetensors")
    model.save_pretrained(checkpoint)
    for part in ("encoder", "decoder"):
        assert main(["export", checkpoint, str(tmp_path / f"{part}.onnx"), "--part", part]) == 0
    printed = capsys.readouterr().out
    assert "motion (clips, frames, 9) to mean and logvar (clips, tokens, 8)" in printed
    assert "latents (clips, tokens, 8) to motion (clips, frames, 9)" in printed
    encoder, decoder = (
        runtime.InferenceSession(tmp_path / f"{part}.onnx") for part in ("encoder", "decoder")
    )
    motion = motions(model.config)[-1]
    (mean,) = encoder.run(["mean"], {"motion": motion.numpy()})
    (decoded,) = decoder.run(["motion"], {"latents": mean})
    expected = model.decode(model.encode(motion).mode(), 200)
    torch.testing.assert_close(torch.from_numpy(decoded), expected, atol=1e-5, rtol=0)


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    model = make("resnet")
    with pytest.raises(UserError, match=r"must end in \.onnx or \.pt2"):
        write_part(tmp_path / "encoder.pth", model, "encoder")
    with pytest.raises(UserError, match="part must be encoder or decoder, not 'both'"):
        write_part(tmp_path / "both.pt2", model, "both")
    monkeypatch.setattr("motion.export.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript.*wanvae\[onnx\]"):
        write_part(tmp_path / "encoder.onnx", model, "encoder")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys):
    missing = str(tmp_path / "missing.safetensors")
    assert main(["export", missing, str(tmp_path / "x.onnx"), "--part", "encoder"]) == 1
    assert "missing.safetensors" in capsys.readouterr().err
