"""What a distillation ends with: a report of the student beside its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from wanvae.checkpoints.formats import identify, weights_file
from wanvae.config import Half, encodes_alpha
from wanvae.engine.digest import digest_of_file
from wanvae.engine.json_files import write_value
from wanvae.errors import UserError
from wanvae.evaluate.evaluation import Networks, evaluate
from wanvae.evaluate.models import Judged, facts_of_model, judge_stream
from wanvae.evaluate.page import PAGE
from wanvae.evaluate.settings import EvaluationOptions
from wanvae.evaluate.summary import Evaluation
from wanvae.metrics.lpips import Lpips, LpipsNetwork
from wanvae.model import AnyVAE, WanVAE
from wanvae.tiny import TinyVAE
from wanvae.train.crops import DataConfig
from wanvae.train.held_out import EvaluationConfig

# Names of the models in tables.
STUDENT, TEACHER = "student", "teacher"
FIGURES = "student.json"
NO_REPORT = "no report of the student beside its teacher"


@dataclass(frozen=True, kw_only=True)
class StudentFigures:
    """How good and how fast a student is, beside its teacher.

    Attributes:
        half: the half that was trained.
        parameters, teacher_parameters: of this half.
        psnr, teacher_psnr: in dB, the mean over clips.
        ssim, teacher_ssim: likewise.
        speed: how many times as fast as the teacher's half the student's is, the median over clips,
            both measured in turn in the same run.
    """

    half: Half
    parameters: int
    teacher_parameters: int
    psnr: float | None
    teacher_psnr: float | None
    ssim: float | None
    teacher_ssim: float | None
    speed: float

    def describe(self) -> str:
        """One line for people."""
        verb = "decodes" if self.half == "decoder" else "encodes"
        psnr = ""
        if self.psnr is not None and self.teacher_psnr is not None:
            change = self.psnr - self.teacher_psnr
            psnr = f" reaches {self.psnr:.2f} dB, the teacher {self.teacher_psnr:.2f} dB"
            psnr += f" ({change:+.2f} dB); it"
        share = self.parameters / self.teacher_parameters
        return (
            f"the student{psnr} {verb} {self.speed:.2f} times as fast with {share:.0%} of the "
            f"parameters of the {self.half}"
        )


def report_student(
    teacher: str,
    student: Path,
    half: Half,
    config: EvaluationConfig,
    output: Path,
    data: DataConfig,
    accelerator: Accelerator,
    lpips: tuple[Lpips, LpipsNetwork] | None = None,
) -> str:
    """Judges a student and its teacher as ``wanvae evaluate`` does; returns a line for people.

    The clips are as long as ``config`` says, scaled and cropped to its size.

    Args:
        teacher: its checkpoint.
        student: its file.
        output: the folder of the report, new or of the same models.
        data: how pictures come out of the files, as for crops.
        lpips: the network of LPIPS, and which one it is.
    """
    device = accelerator.device
    vaes = [WanVAE.from_pretrained(path, torch.float32, device) for path in (teacher, student)]
    reason = why_not(vaes, config)
    if reason is not None:
        return f"{NO_REPORT}: {reason}"
    options = EvaluationOptions(
        frames=(config.frames,),
        resize=(f"{config.size}x{config.size}",),
        clips=config.clips,
        lpips="alex" if lpips is None else lpips[1],
        deinterlace=data.deinterlace,
        background=data.background,
    )
    networks = Networks("left out: loss.lpips is 0" if lpips is None else lpips[0].eval(), None)
    encoding = vaes[0] if isinstance(vaes[1], TinyVAE) else vaes[1]
    models = [
        judged(vaes[0], vaes[0], TEACHER, teacher),
        judged(encoding, vaes[1], STUDENT, student),
    ]
    folder = str(config.folder)
    try:
        evaluation = evaluate(
            models, networks, folder, output, options, PartialState(), hwaccel=data.hwaccel
        )
    except UserError as error:  # the student is there already
        return f"{NO_REPORT}: {error}"
    except SystemExit:  # so it is for the first process, which says why
        evaluation = None
    if evaluation is None:
        return ""
    figures = figures_of(evaluation, vaes, half)
    write_value(output / FIGURES, figures, indent=1)
    return f"{output / PAGE}: {figures.describe()}"


def why_not(vaes: Sequence[AnyVAE], config: EvaluationConfig) -> str | None:
    """Returns why there is nothing to judge, if so."""
    if config.folder is None:
        return "there is no evaluation.folder"
    if any(encodes_alpha(vae.config) for vae in vaes):
        return "it compares RGB, and these models encode RGBA"
    if any(vae.config.decoded_spatial_factor != vae.config.spatial_factor for vae in vaes):
        return "it compares videos of one size, and the decoder upscales"
    return None


def judged(vae: AnyVAE, decoder: AnyVAE, name: str, path: str | Path) -> Judged:
    """Returns a model to judge.

    Args:
        vae: encodes.
        decoder: decodes, and has the weights of ``path``.
    """
    digests = digest_of_file(weights_file(path)), identify(path)
    facts = facts_of_model(decoder, name, digests, "wanvae")
    return judge_stream(vae, facts, decoded_by=decoder)


def figures_of(evaluation: Evaluation, vaes: list[AnyVAE], half: Half) -> StudentFigures:
    """Returns the figures of both models."""
    teacher, student = evaluation.overall
    seconds = "decode_seconds" if half == "decoder" else "encode_seconds"
    ratios = [
        getattr(record.models[0], seconds) / getattr(record.models[1], seconds)
        for record in evaluation.records
    ]
    theirs, ours = (count_parameters(vae, half) for vae in vaes)
    return StudentFigures(
        half=half,
        parameters=ours,
        teacher_parameters=theirs,
        psnr=student.psnr,
        teacher_psnr=teacher.psnr,
        ssim=student.ssim,
        teacher_ssim=teacher.ssim,
        speed=median(ratios),
    )


def count_parameters(vae: AnyVAE, half: Half) -> int:
    """Returns how many parameters a half of a model has."""
    modules = vae.decoding_modules() if half == "decoder" else vae.encoding_modules()
    return sum(p.numel() for p in nn.ModuleList(modules).parameters())
