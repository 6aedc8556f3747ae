"""The architecture of a published motion tokenizer, read from its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from motion.config import FeatureSpec, MotionNorm, QuantizerConfig, ResnetConfig, RVQVAEConfig
from motion.features.kinds import PUBLISHED_KINDS
from wanvae.errors import UserError
from wanvae.nn.residual import ActivationKind

PUBLISHED_GROWTH = 3
BEAT2 = FeatureSpec(rot6d="rows", root=False)
# The features with so many channels, and frames per second: of joints, and of BEAT2.
PUBLISHED_FEATURES = {
    **{channels: (None, published.fps) for channels, published in PUBLISHED_KINDS.items()},
    330: (BEAT2, 30.0),
}
INFERRED = "architecture: read from the names and shapes of the tensors"


@dataclass(frozen=True, kw_only=True)
class Untold:
    """What the tensors of a checkpoint do not tell. None stands for the published default.

    Attributes:
        activation: activation of the residual blocks; the default is "relu".
        norm: norm of the residual blocks; the default is "BN" if there are running statistics.
            "LN" and "GN" have the same tensors, so one of them must be given.
        dilation_growth_rate: growth of the dilations of all stages, or of each stage of the
            encoder; the default is 3.
        reverse_dilation: whether the largest dilation comes first; the default is True.
    """

    activation: ActivationKind | None = None
    norm: MotionNorm | None = None
    dilation_growth_rate: int | Sequence[int] | None = None
    reverse_dilation: bool | None = None

    @property
    def given(self) -> dict[str, object]:
        """The values that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def infer_config(
    tensors: Mapping[str, Tensor], books: Tensor, untold: Untold, dropout: float
) -> tuple[RVQVAEConfig, tuple[str, ...]]:
    """Reads the architecture from the tensors of encoder and decoder, with the names of MoMask.

    Only the tensors that tell the architecture are read. ``check_tensors`` checks all the others.

    Args:
        books: the codebooks ``(Q or 1, K, code_dim)``.
        untold: what the tensors do not tell.
        dropout: dropout of the residual blocks and of the quantizer, for further training.

    Returns:
        The config, and notes for people on what was assumed, one sentence each.

    Raises:
        UserError: a tensor that tells the architecture is missing or has an impossible shape, or
            ``untold`` does not fit. The message names it.
    """
    width, channels, _ = read_conv_shape(tensors, "encoder.model.0.weight")
    stages = next(i for i in count() if f"encoder.model.{i + 2}.0.weight" not in tensors)
    if stages == 0:
        raise UserError(
            "encoder.model.2.0.weight is missing, and the architecture cannot be read without it"
        )
    for stage in range(stages):
        name = f"encoder.model.{stage + 2}.0.weight"
        kernel = read_conv_shape(tensors, name)[2]
        if kernel != 4:
            raise UserError(
                f"{name} has a kernel of {kernel}: only stages that halve time, by a kernel of 4, "
                "are supported"
            )
    blocks = {
        int(match[1])
        for name in tensors
        if (match := re.match(r"encoder\.model\.2\.1\.model\.(\d+)\.conv1\.weight$", name))
    }
    code_dim, _, _ = read_conv_shape(tensors, f"encoder.model.{stages + 2}.weight")
    norm, norm_note = infer_norm(tensors, untold)
    growth = PUBLISHED_GROWTH
    if untold.dilation_growth_rate is not None:
        growth = untold.dilation_growth_rate
    growth = (growth,) * stages if isinstance(growth, int) else tuple(growth)
    if len(growth) != stages:
        raise UserError(f"dilation_growth_rate must be of {stages} stages, not {growth}")
    resnet = ResnetConfig(
        width=width,
        depth=len(blocks),
        dilation_growth_rate=growth,
        reverse_dilation=untold.reverse_dilation is not False,
        activation=untold.activation or "relu",
        norm=norm,
        dropout=dropout,
    )
    quantizer = QuantizerConfig(
        num_quantizers=len(books),
        codebook_size=books.shape[1],
        dropout=dropout if len(books) > 1 else 0.0,
    )
    features, fps = PUBLISHED_FEATURES.get(channels, (None, 20.0))
    config = RVQVAEConfig(
        channels=channels,
        code_dim=code_dim,
        resnet=resnet,
        quantizer=quantizer,
        features=features,
        fps=fps,
    )
    assumed = {
        "activation": resnet.activation,
        "dilation_growth_rate": ", ".join(map(str, growth)),
        "reverse_dilation": resnet.reverse_dilation,
    }
    notes = [
        f"{name}: {value}, {'as given' if name in untold.given else 'as published models have it'}"
        for name, value in assumed.items()
    ]
    return config, (INFERRED, *notes, norm_note, describe_features(channels))


def describe_features(channels: int) -> str:
    """Returns a note for people on what so many channels are assumed to be."""
    kinds = {channels: published.title for channels, published in PUBLISHED_KINDS.items()}
    kinds[330] = "BEAT2: rot6d (rows) of 55 joints"
    if channels not in kinds:
        return (
            f"features: {channels} channels of no known kind, so .npy files of features alone are "
            "read"
        )
    fps = PUBLISHED_FEATURES[channels][1]
    return f"features: {kinds[channels]}, {fps:g} frames per second, by their number"


def infer_norm(tensors: Mapping[str, Tensor], untold: Untold) -> tuple[MotionNorm | None, str]:
    """Returns the norm of the residual blocks, and a note on it."""
    block = "encoder.model.2.1.model.0.norm1"
    has_norm, has_statistics = (f"{block}.{name}" in tensors for name in ("weight", "running_mean"))
    if untold.norm is not None:
        if not has_norm or has_statistics != (untold.norm == "BN"):
            kind = "BN" if has_statistics else "LN or GN" if has_norm else "none"
            raise UserError(f"norm is {untold.norm} as given, but the tensors have {kind}")
        return untold.norm, f"norm: {untold.norm}, as given"
    if has_norm and not has_statistics:
        raise UserError(
            "its residual blocks have the norm LN or GN, and both have the same tensors: give the "
            "one it was trained with, norm='LN' or norm='GN'"
        )
    norm = "BN" if has_norm else None
    return norm, f"norm: {norm or 'none'}, read from the tensors"


def read_conv_shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int, int]:
    """Returns output channels, input channels and kernel size of a 1D convolution."""
    if name not in tensors:
        raise UserError(f"{name} is missing, and the architecture cannot be read without it")
    shape = tuple(tensors[name].shape)
    if len(shape) != 3 or 0 in shape:
        raise UserError(f"{name} is {shape}, not the weight of a 1D convolution")
    return shape
