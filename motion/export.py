"""Encoders and decoders as programs that need none of this code: for torch.export and for ONNX.

The programs compute what ``encode`` and ``decode`` of a tokenizer or of a VAE compute, for any
number of clips and frames. They do not look at values: motion must be finite, and indices must be
of the model. They encode once, whatever ``config.path_rounds`` is.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from motion.autoencoder import complete, decode_latents
from motion.checkpoints.formats import FORMAT, require_suffix
from motion.config import RVQVAEConfig
from motion.model import RVQVAE
from motion.models import MotionModel
from motion.vae import MotionVAE, make_posterior
from wanvae.engine.config import check_option, to_json_dict
from wanvae.engine.evaluating import evaluating
from wanvae.engine.files import atomic_path
from wanvae.errors import UserError

Part: TypeAlias = Literal["encoder", "decoder"]
SUFFIXES = (".onnx", ".pt2")
# Of the example that is traced: more tokens than the smallest number.
CLIPS, MORE_TOKENS = 2, 9
# The operations of this version are in all runtimes of the last years.
OPSET = 18


class EncoderPart(nn.Module):
    """The way from motion ``(B, T, D)`` to what the encoder finds ``(B, C, n)``, without checks."""

    def __init__(self, model: MotionModel) -> None:
        super().__init__()
        self.config = model.config
        self.normalizer, self.encoder = model.normalizer, model.encoder

    def find(self, motion: Tensor) -> Tensor:
        """Returns latents of a tokenizer, or moments of a VAE."""
        features = complete(self.normalizer.normalize(motion), None, self.config)
        dtype = next(self.encoder.parameters()).dtype
        return self.encoder(features.to(dtype).mT)


class TokenEncoder(EncoderPart):
    """The way from motion ``(B, T, D)`` to indices ``(B, tokens, Q)``, without checks."""

    def __init__(self, model: RVQVAE) -> None:
        super().__init__(model)
        self.quantizer = model.quantizer

    def forward(self, motion: Tensor) -> Tensor:
        return self.quantizer.encode(self.find(motion))


class LatentEncoder(EncoderPart):
    """The way from motion ``(B, T, D)`` to mean and logvar ``(B, n, C)``, without checks."""

    def forward(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        posterior = make_posterior(self.find(motion), None)
        return posterior.mean, posterior.logvar


class DecoderPart(nn.Module):
    """The way from latents ``(B, C, n)`` to motion ``(B, T, D)``, without checks.

    T is the number of frames of so many tokens or latents.
    """

    def __init__(self, model: MotionModel) -> None:
        super().__init__()
        self.normalizer, self.decoder, self.smoother = (
            model.normalizer,
            model.decoder,
            model.smoother,
        )

    def restore(self, latents: Tensor) -> Tensor:
        """Returns motion of latents."""
        latents = latents.to(next(self.decoder.parameters()).dtype)
        features = decode_latents(self.decoder, self.smoother, latents, None)
        return self.normalizer.denormalize(features.to(self.normalizer.mean))


class TokenDecoder(DecoderPart):
    """The way from indices ``(B, tokens, Q)`` to motion; -1 stands for no code."""

    def __init__(self, model: RVQVAE) -> None:
        super().__init__(model)
        self.quantizer = model.quantizer

    def forward(self, indices: Tensor) -> Tensor:
        return self.restore(self.quantizer.look_up(indices))


class LatentDecoder(DecoderPart):
    """The way from latents ``(B, n, C)`` to motion."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.restore(latents.mT)


def make_encoder(model: MotionModel) -> EncoderPart:
    """Returns the encoder of a model as a module to trace."""
    return LatentEncoder(model) if isinstance(model, MotionVAE) else TokenEncoder(model)


def make_decoder(model: MotionModel) -> DecoderPart:
    """Returns the decoder of a model as a module to trace."""
    return LatentDecoder(model) if isinstance(model, MotionVAE) else TokenDecoder(model)


@dataclass(frozen=True)
class Signature:
    """What the two programs of a model take and give, by names and last axes.

    Attributes:
        code: the name of what the decoder takes.
        found: the names of what the encoder gives.
        size: the last axis of both.
    """

    code: str
    found: tuple[str, ...]
    size: int

    @classmethod
    def of(cls, config: RVQVAEConfig) -> Signature:
        """The names and the size for models of a config."""
        if config.bottleneck == "quantizer":
            return cls("indices", ("indices",), config.quantizer.num_quantizers)
        return cls("latents", ("mean", "logvar"), config.code_dim)


def least_tokens(config: RVQVAEConfig) -> int:
    """Returns the smallest number of tokens that a program takes.

    PyTorch takes sizes of 0 and 1 for constants, Wan's network treats the first token apart, and
    attention with a window takes the tokens before the window is full apart.
    """
    network = config.resnet if config.network == "resnet" else config.wan
    return max(2 if config.network == "resnet" else 3, (network.attention_window or 0) + 1)


def least_frames(config: RVQVAEConfig) -> int:
    """Returns the smallest number of frames that a program takes."""
    return config.frames_of(least_tokens(config) - 1) + 1


def export_part(model: MotionModel, part: Part) -> ExportedProgram:
    """Traces the encoder or the decoder of a model.

    Args:
        part: "encoder" takes ``motion``, ``(B, T, D)`` in the dtype of the normalizer, and returns
            indices ``(B, tokens, Q)``, int64, or mean and logvar ``(B, n, C)`` if the model is a
            VAE; if the last token is not full, the last frame is repeated. "decoder" takes
            ``indices`` ``(B, tokens, Q)``, int64, or ``latents`` ``(B, n, C)``, and returns motion.

    Returns:
        A program for any B and for any T from ``least_frames``, or any number of tokens from
        ``least_tokens``. It has a copy of the weights.

    Raises:
        UserError: ``part`` is something else.
    """
    check_option("part", part, Part)
    config = model.config
    tokens = least_tokens(config) + MORE_TOKENS
    if part == "encoder":
        module, name = make_encoder(model), "motion"
        axis, least = "frames", least_frames(config)
        shape = CLIPS, config.frames_of(tokens), config.channels
    else:
        signature = Signature.of(config)
        module, name = make_decoder(model), signature.code
        axis, least = "tokens", least_tokens(config)
        shape = CLIPS, tokens, signature.size
    example = model.normalizer.mean.new_zeros(shape)
    if name == "indices":
        example = example.long()
    module = copy.deepcopy(module).requires_grad_(False)
    for tensor in chain(module.parameters(), module.buffers()):
        tensor.data = tensor.data.contiguous()  # in the order that other programs expect
    with evaluating(module):
        return torch.export.export(
            module,
            (),
            {name: example},
            dynamic_shapes={name: {0: Dim("clips", min=1), 1: Dim(axis, min=least)}},
            # What cannot be known of all lengths is checked when the program runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def write_part(path: str | os.PathLike[str], model: MotionModel, part: Part) -> None:
    """Writes the encoder or the decoder of a model as a program, with the config of the model.

    Args:
        path: ``.onnx`` for ONNX, or ``.pt2`` for ``torch.export.load``.
        part: see ``export_part``.

    Raises:
        CheckpointError: the file has another suffix.
        UserError: ONNX needs a library that is not installed.
        FileError: the file cannot be written.
    """
    require_suffix(path, *SUFFIXES)
    onnx = Path(path).suffix == ".onnx"
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if onnx and missing:
        raise UserError(
            f"writing ONNX needs {' and '.join(missing)}: run pip install 'wanvae[onnx]', or "
            "write a .pt2 file"
        )
    with atomic_path(path) as temporary:
        program = export_part(model, part)
        facts = {
            "format": FORMAT,
            "part": part,
            "config": json.dumps(to_json_dict(model.config)),
            "least_frames": str(least_frames(model.config)),
            "least_tokens": str(least_tokens(model.config)),
        }
        outputs = Signature.of(model.config).found if part == "encoder" else ("motion",)
        content = as_onnx(program, facts, outputs) if onnx else as_pt2(program, facts)
        temporary.write_bytes(content)


def as_pt2(program: ExportedProgram, facts: Mapping[str, str]) -> bytes:
    """Returns the content of a .pt2 file; ``facts`` are files in it."""
    content = BytesIO()
    torch.export.save(program, content, extra_files=dict(facts))
    return content.getvalue()


def as_onnx(program: ExportedProgram, facts: Mapping[str, str], outputs: Sequence[str]) -> bytes:
    """Returns the content of an .onnx file; ``facts`` are its metadata.

    Args:
        outputs: the names of what the program gives.
    """
    converted = torch.onnx.export(
        program, dynamo=True, verbose=False, opset_version=OPSET, output_names=outputs
    )
    assert converted is not None  # it is only None if the function writes the file itself
    proto = converted.model_proto
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()
