"""Encoders and decoders as programs: they compute what the model computes, for all lengths."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from motion import RVQVAE, QuantizerConfig, ResnetConfig, RVQVAEConfig
from motion.cli import main
from motion.config import SmoothingConfig, WanConfig
from motion.export import as_onnx, export_part, least_frames, least_tokens, write_part
from motion.features.statistics import FeatureStatistics
from wanvae.engine.config import from_json_dict
from wanvae.errors import UserError

CHANNELS, LAYERS = 9, 3
CONFIGS = {
    "resnet": {"resnet": ResnetConfig(width=16, depth=2, norm="LN", dropout=0.5)},
    "causal": {
        "resnet": ResnetConfig(
            width=16, depth=3, causal=True, attention=True, attention_window=4, activation="silu"
        )
    },
    "wan": {
        "network": "wan",
        "wan": WanConfig(dim=8, num_res_blocks=1),
        "smoothing": SmoothingConfig(before=2, after=1),
    },
}


def make(kind: str) -> RVQVAE:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(num_quantizers=LAYERS, codebook_size=16)
    config = RVQVAEConfig(channels=CHANNELS, code_dim=8, quantizer=quantizer, **CONFIGS[kind])
    model = RVQVAE(config)
    model.normalizer.set(FeatureStatistics.fit([3 + 2 * torch.randn(50, CHANNELS)]))
    return model.eval()


def motions(config: RVQVAEConfig) -> list[torch.Tensor]:
    """Clips of several numbers and lengths: the shortest, whole tokens, parts of tokens."""
    least = least_frames(config)
    shapes = [*((1 + more % 2, least + more) for more in range(6)), (3, 200)]
    return [3 + 2 * torch.randn(clips, frames, CHANNELS) for clips, frames in shapes]


def all_indices(config: RVQVAEConfig) -> list[torch.Tensor]:
    """Indices of several numbers and lengths; some say that there is no code."""
    shapes = [(1, least_tokens(config)), (3, 5), (2, 50)]
    return [torch.randint(-1, 16, (*shape, LAYERS)) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_programs_of_the_encoder_compute_what_the_model_does(kind):
    runtime = pytest.importorskip("onnxruntime")
    model = make(kind).train()
    program = export_part(model, "encoder")
    assert model.training and model.encoder.training  # but traced as for inference
    model.eval()
    encoder = program.module()
    session = runtime.InferenceSession(as_onnx(program, {}))
    for motion in motions(model.config):
        expected = model.encode(motion)
        assert torch.equal(encoder(motion=motion), expected)
        (indices,) = session.run(None, {"motion": motion.numpy()})
        assert np.array_equal(indices, expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_programs_of_the_decoder_compute_what_the_model_does(kind):
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    model = make(kind)
    program = export_part(model, "decoder")
    decoder, content = program.module(), as_onnx(program, {})
    # One pass over all tokens, without a loop.
    operations = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert "Gather" in operations and not operations & {"Loop", "Scan", "If", "SequenceAt"}
    session = runtime.InferenceSession(content)
    for indices in all_indices(model.config):
        expected = model.decode(indices, model.config.frames_of(indices.shape[1]))
        torch.testing.assert_close(decoder(indices=indices), expected, atol=1e-5, rtol=0)
        (decoded,) = session.run(None, {"indices": indices.numpy()})
        torch.testing.assert_close(torch.from_numpy(decoded), expected, atol=1e-5, rtol=0)


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
