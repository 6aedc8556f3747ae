"""Distillation: a small encoder or decoder learns from the half of a teacher; latents stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from wanvae.config import Half, WanVAEConfig
from wanvae.engine.config import check, check_option
from wanvae.errors import UserError
from wanvae.model import WanVAE
from wanvae.nn import CausalConv, Decoder, Encoder, Resample, ResidualStage
from wanvae.nn.sequential import step_through
from wanvae.posterior import Posterior
from wanvae.tiny import TinyVAE
from wanvae.tiny_config import TinyVAEConfig
from wanvae.train.initialize import start_as_image_model
from wanvae.train.pruning import prune
from wanvae.train.tiny_student import WithTinyDecoder

Start = Literal["fitted", "pruned", "new"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A small half of a model, which learns from the half of a teacher. Latents stay as they are.

    Attributes:
        half: the half that learns: "decoder" decodes the latents of the teacher's encoder,
            "encoder" learns to give the latents that the teacher's decoder decodes. Without a half
            there is no distillation.
        dim: channels of the student at full resolution; by default half of the teacher's channels.
        res_blocks: residual blocks of each stage of the student; by default as many as the teacher
            has.
        tiny_dims: channels of each stage of a tiny autoencoder, and after its last stage, like
            [256, 128, 64, 64] for the latents of Wan2.1. Then the student is the decoder of such a
            model. It has as many stages as the teacher has steps between its stages.
        start: "pruned" starts as the teacher's blocks and channels of the largest weights, "new"
            from nothing. "fitted" chooses channels by what they are on crops of the training data,
            and solves the convolutions of the student by least squares to give what the teacher's
            give there. This takes a minute or more, and starts many dB better.
        features: weight of the error of what the student's stages compute, projected to what the
            teacher's stages compute: its square, relative to the teacher's, the mean over stages.
        posterior: weight of the KL divergence of the student's latents from the teacher's, the mean
            over C, T, H and W and clips; for an encoder.
    """

    half: Half | None = None
    dim: int | None = None
    res_blocks: int | None = None
    tiny_dims: tuple[int, ...] = ()
    start: Start = "pruned"
    features: float = 0.0
    posterior: float = 0.0

    def __post_init__(self) -> None:
        halves = "encoder or decoder"
        check(self.half in (None, "encoder", "decoder"), "distill.half", self.half, halves)
        for name in ("dim", "res_blocks"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"distill.{name}", value, "at least 1")
        check_option("distill.start", self.start, Start)
        for name in ("features", "posterior"):
            check(getattr(self, name) >= 0, f"distill.{name}", getattr(self, name), "at least 0")
        if self.half is None:
            for option in fields(self):
                expected = "left out without distill.half, which says what is distilled"
                value = getattr(self, option.name)
                check(value == option.default, f"distill.{option.name}", value, expected)
        if self.half == "decoder":
            expected = "0 without an encoder to train"
            check(self.posterior == 0, "distill.posterior", self.posterior, expected)
        if not self.tiny_dims:
            return
        name, expected = "distill.tiny_dims", "left out unless distill.half is decoder"
        check(self.half == "decoder", name, self.tiny_dims, expected)
        check(min(self.tiny_dims) >= 1, name, self.tiny_dims, "positive")
        check(self.dim is None, "distill.dim", self.dim, f"left out with {name}")
        check(self.start == "new", "distill.start", self.start, f"new with {name}")
        expected = f"0 with {name}: its stages differ"
        check(self.features == 0, "distill.features", self.features, expected)

    def student_of(self, teacher: WanVAEConfig) -> WanVAEConfig:
        """Returns the config of the student's half beside the other half of the teacher."""
        width = teacher.decoder_dim or teacher.dim
        if self.half == "decoder":
            student = replace(
                teacher,
                decoder_dim=self.dim or max(1, width // 2),
                decoder_res_blocks=self.res_blocks or teacher.decoder_res_blocks,
            )
        else:
            student = replace(
                teacher,
                dim=self.dim or max(1, teacher.dim // 2),
                num_res_blocks=self.res_blocks or teacher.num_res_blocks,
                decoder_dim=width,
                decoder_res_blocks=teacher.blocks_of_decoder,
            )
        return student.simplest()

    def tiny_student_of(self, teacher: WanVAEConfig) -> TinyVAEConfig:
        """Returns the config of the decoder of a tiny autoencoder with the teacher's latents.

        Raises:
            UserError: such a model cannot have them.
        """
        if teacher.ndim == 2 or teacher.upscale_factor > 1:
            raise UserError(
                "a tiny autoencoder decodes videos of the size that was encoded, but the teacher "
                "is an image model or upscales: leave distill.tiny_dims out"
            )
        doubled = sorted(teacher.temporal_downsample)
        count = len(doubled) + 1
        expected = f"{count} numbers, because the teacher halves the size {count - 1} times"
        check(len(self.tiny_dims) == count, "distill.tiny_dims", self.tiny_dims, expected)
        return TinyVAEConfig(
            z_dim=teacher.z_dim,
            encoder_dim=None,
            decoder_dims=self.tiny_dims,
            blocks=self.res_blocks or TinyVAEConfig.blocks,
            pools=tuple(1 + doubles for doubles in doubled[::-1]),
            grows=tuple(1 + doubles for doubles in doubled),
            channels=teacher.out_channels,
            patch_size=teacher.patch_size,
            latents_mean=teacher.latents_mean,
            latents_std=teacher.latents_std,
        )


def make_student(teacher: WanVAE, config: DistillConfig) -> WanVAE | WithTinyDecoder:
    """Returns a model of the student's half and the other half of ``teacher``, which is frozen.

    A student that starts fitted is pruned here, and ``wanvae.train.fitting`` does the rest.

    Raises:
        UserError: the teacher lacks a half, or the student cannot start as ``config`` says.
    """
    half = config.half
    if half is None:
        raise RuntimeError("a distillation without a half")
    if config.tiny_dims:
        return WithTinyDecoder(teacher, TinyVAE(config.tiny_student_of(teacher.config)))
    student = WanVAE(config.student_of(teacher.config))
    start_as_image_model(student)
    if config.start != "new":
        prune(teacher, student, half)
    frozen = {"decoder": student.encoding_modules, "encoder": student.decoding_modules}[half]()
    theirs = {"decoder": teacher.encoding_modules, "encoder": teacher.decoding_modules}[half]()
    for ours, source in zip(frozen, theirs, strict=True):
        ours.load_state_dict(source.state_dict())
        ours.requires_grad_(False)
    return student.train()


# Features


def rows_between_taps(coder: Encoder | Decoder) -> list[list[nn.Module]]:
    """Returns the layers of a coder in rows. Each row but the last ends with features.

    These are what each stage, the layers at the smallest resolution, and all layers before the
    head return. So models with as many stages have features of the same sizes.
    """
    boundary = coder.core() if isinstance(coder, Decoder) else coder.shell()
    rows: list[list[nn.Module]] = [[]]
    for layer in coder.layers():
        if layer is coder.head and rows[-1]:
            rows.append([])
        rows[-1].append(layer)
        if isinstance(layer, (Resample, ResidualStage)) or layer is boundary[-1]:
            rows.append([])
    return [row for row in rows if row]


def step_with_features(
    coder: Encoder | Decoder, x: Tensor, *, recompute: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Returns the output of a coder for whole clips, and its features, ``(B, C, T, H, W)`` each."""
    features = []
    for row in rows_between_taps(coder):
        x, _ = step_through(row, x, None, recompute=recompute)
        features.append(x)
    return x, features[:-1]


def features_of(vae: WanVAE, half: Half, x: Tensor, *, recompute: bool = False) -> Features:
    """Runs a half on whole clips.

    Args:
        x: videos to encode, or latents to decode.
    """
    if half == "decoder":
        return Features(*step_with_features(vae.decoder, vae.conv2(x), recompute=recompute))
    moments, features = step_with_features(vae.encoder, x, recompute=recompute)
    return Features(vae.conv1(moments), features)


@dataclass(frozen=True)
class Features:
    """What a half computes.

    Attributes:
        output: the video, or the moments of the latents.
        stages: the features of its stages, ``(B, C, T, H, W)`` each.
    """

    output: Tensor
    stages: list[Tensor]


@torch.no_grad()
def widths_of_features(vae: WanVAE, half: Half) -> list[int]:
    """Returns how many channels the features of a half have."""
    config, like = vae.config, next(vae.parameters())
    side = config.spatial_factor if half == "encoder" else 1
    channels = config.in_channels if half == "encoder" else config.z_dim
    x = like.new_zeros(1, channels, 1, side, side)
    return [features.shape[1] for features in features_of(vae, half, x).stages]


class Projections(nn.ModuleList):
    """A linear projection of each of the student's features to the teacher's channels."""

    def __init__(self, widths: Sequence[int], wanted: Sequence[int]) -> None:
        pairs = zip(widths, wanted, strict=True)
        super().__init__(CausalConv(3, width, target, 1) for width, target in pairs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self, features, strict=True)]


class Teacher:
    """The teacher of a distillation, which never changes.

    Args:
        vae: the whole teacher, on the device where it computes.

    Attributes:
        widths: channels of the features that the student learns to compute.
    """

    def __init__(self, vae: WanVAE, config: DistillConfig) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.half: Half = config.half or "decoder"
        self.config = config
        self.widths = widths_of_features(vae, self.half) if config.features > 0 else []

    @torch.no_grad()
    def teach(self, video: Tensor, latents: Tensor) -> Features:
        """Returns what the teacher computes where the student computes something.

        Args:
            video: what the student encodes, if it does.
            latents: what the student decodes, if it does.
        """
        x = video if self.half == "encoder" else latents
        like = self.vae.encode_dtype
        with torch.autocast(x.device.type, enabled=False):
            return features_of(self.vae, self.half, x.to(self.vae.device, like))

    def terms(
        self, lesson: Features, projected: Sequence[Tensor], posterior: Posterior
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the weighted terms of the student by name, and figures to report.

        The terms are "features" and "posterior", each if it has a weight. The figure of an encoder
        is "latent_error": the root mean square of the error of its latents, relative to the latents
        of the teacher.

        Args:
            lesson: of this batch.
            projected: the features of the student, projected.
            posterior: of the latents that were decoded.
        """
        terms, figures = {}, {}
        if self.config.features > 0:
            terms["features"] = self.config.features * feature_error(projected, lesson.stages)
        if self.half == "encoder":
            theirs = Posterior.from_moments(lesson.output.float())
            if self.config.posterior > 0:
                divergence = theirs.kl_from(posterior).mean() / theirs.mean[0].numel()
                terms["posterior"] = self.config.posterior * divergence
            error = (posterior.mean.detach().float() - theirs.mean).square().mean()
            figures["latent_error"] = (error / theirs.mean.square().mean()).sqrt()
        return terms, figures


def feature_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Returns the squared error of features relative to the square of the teacher's features.

    It is the mean over stages of the means over clips, a float32 scalar.
    """
    errors = []
    for some, others in zip(ours, theirs, strict=True):
        others = others.float()
        error = (some.float() - others).square().flatten(1).mean(1)
        errors.append((error / others.square().flatten(1).mean(1).clamp(min=1e-12)).mean())
    return torch.stack(errors).mean()
