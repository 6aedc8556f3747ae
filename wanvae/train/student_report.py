"""What a distillation ends with: a report of the student beside its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from wanvae.checkpoints.formats import identify, weights_file
from wanvae.config import Half
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
from wanvae.train.upscaling import Downscaling, scale_down

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
        alpha, teacher_alpha: mean absolute error of alpha, in 8-bit levels; None without alpha.
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
    alpha: float | None
    teacher_alpha: float | None
    speed: float

    def describe(self) -> str:
        """One line for people."""
        verb = "decodes" if self.half == "decoder" else "encodes"
        psnr = ""
        if self.psnr is not None and self.teacher_psnr is not None:
            change = self.psnr - self.teacher_psnr
            psnr = f" reaches {self.psnr:.2f} dB, the teacher {self.teacher_psnr:.2f} dB"
            psnr += f" ({change:+.2f} dB){self._describe_alpha()}; it"
        share = self.parameters / self.teacher_parameters
        return (
            f"the student{psnr} {verb} {self.speed:.2f} times as fast with {share:.0%} of the "
            f"parameters of the {self.half}"
        )

    def _describe_alpha(self) -> str:
        if self.alpha is None or self.teacher_alpha is None:
            return ""
        errors = f"{self.alpha:.2f} levels, the teacher by {self.teacher_alpha:.2f}"
        return f", and errs in alpha by {errors}"


def report_student(
    teacher: WanVAE,
    weights: str,
    student: Path,
    half: Half,
    config: EvaluationConfig,
    output: Path,
    data: DataConfig,
    accelerator: Accelerator,
    lpips: tuple[Lpips, LpipsNetwork] | None = None,
    downscaling: Downscaling = "area",
) -> str:
    """Judges a student and its teacher as ``wanvae evaluate`` does; returns a line for people.

    The clips are as long as ``config`` says, scaled and cropped to its size. Models that upscale
    encode them scaled down, and are judged at that size.

    Args:
        teacher: as the student learned from it.
        weights: the checkpoint that it comes from.
        student: its file.
        output: the folder of the report, new or of the same models.
        data: how pictures come out of the files, as for crops.
        lpips: the network of LPIPS, and which one it is.
        downscaling: how clips are scaled down for models that upscale.
    """
    if config.folder is None:
        return f"{NO_REPORT}: there is no evaluation.folder"
    device = accelerator.device
    vaes = [teacher.eval().to(device), WanVAE.from_pretrained(student, torch.float32, device)]
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
        judged(vaes[0], vaes[0], TEACHER, weights, downscaling),
        judged(encoding, vaes[1], STUDENT, student, downscaling),
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


def judged(
    vae: AnyVAE, decoder: AnyVAE, name: str, path: str | Path, downscaling: Downscaling
) -> Judged:
    """Returns a model to judge.

    Args:
        vae: encodes.
        decoder: decodes, and has the weights of ``path``.
    """
    digests = digest_of_file(weights_file(path)), identify(path)
    facts = facts_of_model(decoder, name, digests, "wanvae")
    factor = decoder.config.upscale_factor
    return judge_stream(
        vae,
        facts,
        decoded_by=decoder,
        scale_down=partial(scale_down, factor=factor, downscaling=downscaling),
    )


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
        alpha=student.alpha,
        teacher_alpha=teacher.alpha,
        speed=median(ratios),
    )


def count_parameters(vae: AnyVAE, half: Half) -> int:
    """Returns how many parameters a half of a model has."""
    modules = vae.decoding_modules() if half == "decoder" else vae.encoding_modules()
    return sum(p.numel() for p in nn.ModuleList(modules).parameters())
