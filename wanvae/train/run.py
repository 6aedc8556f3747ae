"""Train or fine-tune a video VAE.

``wanvae train --config tiny`` trains on one device, and ``accelerate launch -m wanvae.train`` with
the same options on any number of devices.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from wanvae.checkpoints.formats import identify
from wanvae.checkpoints.lora import Base, save_lora
from wanvae.config import WanVAEConfig, encodes_alpha
from wanvae.engine.checkpoint import load_in_place
from wanvae.engine.config import check_option, describe_replaced, to_json_dict
from wanvae.engine.devices import PATIENCE
from wanvae.engine.files import is_in, is_nested, refuse_overwriting
from wanvae.engine.finite import check_weights
from wanvae.engine.processes import copy_from_first_process, run_on_first_process
from wanvae.engine.storage.remote_path import location
from wanvae.engine.training.command import training_command
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.loop import make_accelerator, train
from wanvae.engine.training.run_folder import checkpoints_of
from wanvae.engine.training.task import WEIGHTS, Discriminator, StepLosses, Task
from wanvae.errors import UserError
from wanvae.model import WanVAE, require_wan_vae
from wanvae.nn import Residual, use_channels_last
from wanvae.report.training import TrainingPage
from wanvae.train.crops import DataConfig, VideoCrops
from wanvae.train.discriminator import PatchDiscriminator3D
from wanvae.train.distillation import DistillConfig, Teacher, make_student
from wanvae.train.fitting import fit
from wanvae.train.held_out import (
    METRICS,
    EvaluationConfig,
    HeldOutClip,
    Metric,
    comparison_grid,
    evaluate,
    names_of_figures,
    read_held_out,
)
from wanvae.train.initialize import inflate, start_as_image_model
from wanvae.train.judging import COLUMNS, NO_EVALUATION, PICTURES, find_lpips, frame_lpips
from wanvae.train.lora import (
    LoraConfig,
    add_lora,
    changes_of,
    load_changes,
    merged,
)
from wanvae.train.losses import LossConfig, VideoLosses, peak_signal_to_noise
from wanvae.train.pair import Pair, pair_of
from wanvae.train.restoration import DegradedCrops, degrade_clip
from wanvae.train.student_report import report_student
from wanvae.train.trainee import (
    Trained,
    Trainee,
    TrainingOutput,
    last_trained,
    require_whole,
    saved,
)
from wanvae.train.upscaling import (
    Downscaling,
    check_clips,
    check_learns,
    scale_down,
    with_upscaling,
)
from wanvae.video import write_video
from wanvae.video.reading.hardware import check_hardware
from wanvae.video.reading.options import refuse_background

# Where --config finds the configs of the package by name: installed, or in a checkout.
PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = PACKAGE / "configs" / "video", PACKAGE.parent / "configs" / "video"
# The file that a run of a LoRA ends with.
LORA = "lora.safetensors"
# The beginning of the folder of the report that a run of a student ends with.
REPORT = "student"
# How many of the held-out clips a picture shows.
PREVIEWED_CLIPS = 4
# How many training crops a student is fitted to at the start.
FITTED_CROPS = 24


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about a training run.

    Attributes:
        model: the architecture.
        data: the training crops.
        loss: the loss terms.
        evaluation: clips on which the model is judged during training. The checkpoint with the best
            PSNR is kept, unless ``trainer.best`` names another figure.
        trainer: the loop.
        gradient_checkpointing: keep less of the forward pass and compute it again for the
            gradients: a fraction of the memory, a quarter more time, the same result.
        weights: checkpoint to start from, of any layout. Its architecture replaces ``model``,
            except ``model.ndim``: if this is 3, an image model is inflated to a video model; and
            except ``model.upscale_factor``: if this is 2 or more, a decoder that does not upscale
            is changed to one that does, and at first only makes pixels larger. Without weights the
            model starts as wanvae.train.initialize says. A run goes on only with the same weights,
            in whatever file.
        freeze_encoder: train the decoder alone. Latents stay the same, so diffusion models that
            generate them keep working. The decoder learns from the mode of the latents.
        lora: train a LoRA of ``weights``, a file of a few MB, instead of the weights themselves.
            ``wanvae convert --lora`` merges it.
        distill: train a smaller encoder or decoder, whose teacher is ``weights``.
        downscaling: how clips are scaled down for the encoder if the decoder upscales: "area" is
            the mean of squares of pixels, "bicubic" has a filter against aliasing.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing"})

    model: WanVAEConfig = field(default_factory=WanVAEConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    gradient_checkpointing: bool = False
    weights: str | None = None
    freeze_encoder: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    downscaling: Downscaling = "area"

    def __post_init__(self) -> None:
        check_option("downscaling", self.downscaling, Downscaling)
        if not (self.loss.compares or self.distill.features or self.distill.posterior):
            raise UserError(
                "loss.l1 and loss.lpips are 0, so nothing compares the output with the video: give "
                "one of them a weight"
            )
        if self.distill.half is not None:
            self.check_distillation()
        if self.freeze_encoder and self.weights is None:
            raise UserError("freeze_encoder needs weights: a new encoder has not learnt anything")
        if self.freeze_encoder and self.loss.alignment.weight > 0:
            raise UserError(
                "freeze_encoder leaves latents as they are, so nothing can align them: set "
                "loss.alignment.weight to 0, or freeze_encoder to false"
            )
        if self.lora.rank is None:
            return
        if self.weights is None:
            raise UserError("lora.rank needs weights: the checkpoint that the LoRA changes")
        if self.freeze_encoder and self.lora.part != "decoder":
            raise UserError(
                f"freeze_encoder is true, but lora.part is {self.lora.part!r}: choose one of them"
            )
        if self.loss.alignment.weight > 0:
            raise UserError(
                "an alignment trains the whole encoder, and a LoRA leaves weights as they are: set "
                "loss.alignment.weight to 0, or leave lora.rank out"
            )

    def check_distillation(self) -> None:
        """Raises UserError if other options do not go with a distillation."""
        if self.weights is None:
            raise UserError("distill.half needs weights: the checkpoint of the teacher")
        if self.lora.rank is not None:
            raise UserError("a student is trained without a LoRA: leave lora.rank out")
        if self.freeze_encoder:
            raise UserError(
                "distill.half says which half is trained: leave freeze_encoder out, because the "
                "other half is frozen"
            )
        if self.loss.alignment.weight > 0:
            raise UserError(
                "a student has the latents of its teacher, so nothing can align them: set "
                "loss.alignment.weight to 0"
            )

    @property
    def result(self) -> str:
        """The file in the folder of the run that it ends with."""
        return WEIGHTS if self.lora.rank is None else LORA


class VideoTraining:
    """The training of a video VAE: its losses, and how it is judged.

    Attributes:
        trainee: the model of a step.

    Raises:
        UserError: the model cannot take the crops or decodes videos of another size, no clip for
            the evaluation can be read, or the weights of a network of the losses are missing.
    """

    def __init__(self, config: TrainConfig, vae: Trained, accelerator: Accelerator) -> None:
        check_learns(vae.config)
        for shape in config.data.shapes:
            clips = f"training crops of {shape}"
            check_clips(vae.config, clips, shape.frames, shape.height, shape.width)
        refuse_background(config.data.background, alpha=encodes_alpha(vae.config))
        check_hardware(config.data.hwaccel)
        self.config = config
        self.vae = vae
        self.accelerator = accelerator
        self.video_losses = losses = VideoLosses(config.loss, accelerator.device)
        self.teacher = load_teacher(config, accelerator.device)
        self.trainee = Trainee(
            vae,
            config.loss,
            feature_channels=0 if losses.features is None else losses.features.channels,
            half=config.distill.half,
            teacher_widths=() if self.teacher is None else self.teacher.widths,
            downscaling=config.downscaling,
            smallest_side=1 if losses.lpips is None else losses.lpips.smallest_side,
        )
        self.base = None
        if config.lora.rank is not None and config.weights is not None:
            self.base = Base.of(config.weights)
        self.held_out: list[HeldOutClip] = []
        if config.evaluation.folder is not None:
            found = read_held_out(
                config.evaluation,
                vae.config,
                reading=config.data.reading,
                report=accelerator.is_main_process,
            )
            self.say_ignored(config.evaluation.folder, found.ignored)
            self.held_out = found.clips
            if config.data.degradation.changes:
                self.held_out = [degrade_clip(c, config.data.degradation) for c in found.clips]
        self.metrics: dict[str, Metric] = dict(METRICS)
        self.note = NO_EVALUATION
        if self.held_out:
            self.note = self.judge_by_lpips()

    def judge_by_lpips(self) -> str:
        """Adds LPIPS to the metrics; returns, and says once, why not if this is not possible.

        Raises:
            UserError: LPIPS should choose the best checkpoint.
        """
        lpips = find_lpips(self.video_losses, self.config.evaluation.size)
        if not isinstance(lpips, str):
            self.metrics["lpips"] = partial(frame_lpips, lpips.to(self.accelerator.device))
            return ""
        if self.config.trainer.best == "lpips":
            raise UserError(f"trainer.best is lpips, but LPIPS cannot be measured: {lpips}")
        note = f"LPIPS is left out: {lpips}."
        self.accelerator.print(note)
        return note

    def say_ignored(self, folder: str, ignored: str) -> None:
        """Says, in the first process, how many files of a folder are ignored, if any are."""
        if ignored:
            self.accelerator.print(f"{folder}: ignored, no videos or images: {ignored}")

    def task(self) -> Task:
        """What to train."""
        trainer, weights = self.config.trainer, self.config.weights
        degradation = self.config.data.degradation
        samples_per_step = trainer.samples_per_step(self.accelerator.num_processes)
        samples = VideoCrops(
            self.config.data,
            trainer.seed,
            samples_per_step=samples_per_step,
            alpha=encodes_alpha(self.vae.config),
            report=self.accelerator.is_main_process,
        )
        for source in samples.sources:
            self.say_ignored(str(source.folder), source.ignored)
        return Task(
            model=self.trainee,
            samples=DegradedCrops(samples, degradation, trainer.seed)
            if degradation.changes
            else samples,
            losses=self.losses,
            save_weights=self.save,
            load_weights=self.load,
            blocks=innermost_blocks(self.vae),
            discriminator=self.discriminator() if self.config.loss.gan.weight > 0 else None,
            companion=self.trainee.companion,
            evaluate=self.evaluate if self.held_out else None,
            figures=names_of_figures(self.held_out, self.metrics, self.vae.config.temporal_factor),
            preview=self.preview if self.held_out else None,
            report=TrainingPage(
                columns=COLUMNS, pictures=PICTURES, side_by_side=3, note=self.note
            ).write,
            # Weights to start from bring their own architecture.
            config=replace(self.config, model=self.vae.config),
            identify_start=None if weights is None else partial(identify, weights),
            result=self.config.result,
            describe_data=samples.describe,
            fresh_workers=self.config.data.hwaccel is not None,
        )

    def load(self, trainee: Trainee, path: Path) -> None:
        """Reads what is trained of a model."""
        if self.base is None:
            load_in_place(saved(trainee.vae), path)
        else:
            load_changes(require_whole(trainee.vae), path)

    def save(self, trainee: Trainee, path: Path) -> None:
        """Writes what is trained of a model, and of which model it is."""
        vae = trainee.vae
        if self.base is None:
            saved(vae).save_pretrained(path)
            return
        about = {
            "lora": json.dumps(to_json_dict(self.config.lora)),
            "config": json.dumps(to_json_dict(vae.config)),
        }
        save_lora(path, changes_of(require_whole(vae)), self.base, about)

    def losses(
        self, model: nn.Module, discriminator: nn.Module | None, batch: Tensor | Pair, step: int
    ) -> StepLosses:
        """The losses of the VAE, and the PSNR of its output."""
        seen, video = pair_of(batch)
        output: TrainingOutput = model(seen, video, recompute=self.config.gradient_checkpointing)
        reconstruction = output.reconstruction
        with torch.no_grad():
            psnr = peak_signal_to_noise(reconstruction.video, video)
        terms = self.video_losses.generator(
            reconstruction,
            video,
            discriminator=discriminator,
            last_layer=last_trained(self.vae),
            step=step,
        )
        regularizers, figures = self.video_losses.regularizers(
            output, video, last_layer=self.vae.conv1.weight
        )
        figures = {"psnr": psnr, **figures}
        if self.teacher is not None:
            lesson = self.teacher.teach(output.encoded, output.latents.detach())
            taught, more = self.teacher.terms(lesson, output.features, reconstruction.posterior)
            terms, figures = terms | taught, figures | more
        return StepLosses(terms | regularizers, figures, reconstruction.video.detach())

    def discriminator(self) -> Discriminator:
        """A new discriminator and its losses."""
        gan = self.config.loss.gan

        def losses(
            discriminator: nn.Module, fake: Tensor, batch: Tensor | Pair, step: int
        ) -> StepLosses:
            video = pair_of(batch).target
            return StepLosses(*self.video_losses.discriminator(discriminator, fake, video, step))

        model = PatchDiscriminator3D(self.vae.config.out_channels, gan.dim, gan.layers)
        return Discriminator(model, losses, gan.start_step, gan.learning_rate)

    def evaluate(self, trainee: Trainee) -> dict[str, float]:
        """The mean scores over the held-out clips, which the processes share."""
        return evaluate(
            self.judged(trainee.vae),
            self.held_out,
            self.metrics,
            self.accelerator,
            downscaling=self.config.downscaling,
        ).means

    def judged(self, vae: Trained) -> Trained:
        """The model that people use after training: with a LoRA, the two merged."""
        return vae if self.base is None else merged(require_whole(vae))

    def report_student(self, result: Path, output: Path) -> str:
        """Writes how good a student is beside its teacher, and returns a line for people.

        Args:
            result: the file of the student.
            output: the folder of the report.
        """
        config, lpips = self.config, self.video_losses.lpips
        if config.distill.half is None or config.weights is None:
            raise RuntimeError("no teacher")
        return report_student(
            load_base(config),
            config.weights,
            result,
            config.distill.half,
            config.evaluation,
            output,
            config.data,
            self.accelerator,
            None if lpips is None else (lpips, config.loss.lpips_network),
            config.downscaling,
        )

    def preview(self, trainee: Trainee, path: Path) -> None:
        """Frames of held-out clips, what the encoder sees of them, and their reconstructions."""
        shape = self.held_out[0].video.shape
        alike = [clip for clip in self.held_out if clip.video.shape == shape]
        picture = comparison_grid(
            self.judged(trainee.vae),
            alike[:PREVIEWED_CLIPS],
            downscaling=self.config.downscaling,
        )
        write_video(path, picture[:, None].cpu(), Fraction(1))


def innermost_blocks(vae: Trained) -> list[nn.Module]:
    """The residual blocks of a model that have no blocks inside."""
    blocks = [module for module in vae.modules() if isinstance(module, Residual)]
    return [
        block
        for block in blocks
        if not any(isinstance(part, Residual) for part in block.modules() if part is not block)
    ]


def run(config: TrainConfig) -> None:
    """Trains as ``config`` says.

    Raises:
        UserError: the run would write pictures into a folder of data, or replace its weights.
    """
    for folder in (*config.data.shares, config.evaluation.folder):
        if folder is not None and is_in(Path(config.trainer.run), Path(folder)):
            raise UserError(
                f"the folder of the run, {config.trainer.run}, must not be in {folder}, because "
                "its pictures would be read as data; name another (trainer.run)"
            )
    result = Path(config.trainer.run) / config.result
    refuse_overwriting(result, [config.weights])
    accelerator = make_accelerator(config.trainer)
    torch.manual_seed(config.trainer.seed)
    vae = first_model(config)
    for note in describe_surprises(config, vae.config):
        accelerator.print(note)
    training = VideoTraining(config, vae, accelerator)
    task = training.task()
    trainer = config.trainer
    if task.evaluate is not None and trainer.best is None:
        trainer = replace(trainer, best="psnr")
    if config.lora.rank is not None:
        accelerator.print(describe_trained(vae, config))
    if config.distill.start == "fitted":
        start_fitted(config, require_whole(vae), task.samples, accelerator)
    steps = train(task, trainer, accelerator)
    if config.distill.half is not None:
        report = result.with_name(f"{REPORT}-{steps}")
        try:
            accelerator.print(training.report_student(result, report))
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(
                f"{result} is complete; run the same command again to write the report"
            ) from error
    if config.lora.rank is not None:
        merge = [
            "wanvae",
            "convert",
            str(config.weights),
            "merged.safetensors",
            "--lora",
            str(result),
        ]
        accelerator.print(f"to merge it: {shlex.join(merge)}")


def describe_trained(vae: Trained, config: TrainConfig) -> str:
    """One line on what is trained of a model with a LoRA."""
    layers = len(changes_of(require_whole(vae)))
    parameters = list(vae.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    return (
        f"a LoRA of rank {config.lora.rank} in {layers} layers: {trained} parameters are "
        f"trained, the {frozen} of {config.weights} stay as they are"
    )


def describe_surprises(config: TrainConfig, architecture: WanVAEConfig) -> Iterator[str]:
    """Yields a line on options that do not do what people may expect, for each kind of them.

    Args:
        architecture: of the model that is trained.
    """
    given, used = config.model.simplest(), architecture.simplest()
    if config.weights is not None:
        # Weights to start from are changed to these two.
        yield from describe_replaced(
            config.weights, given, used, besides=("ndim", "upscale_factor")
        )
    gan, steps = config.loss.gan, config.trainer.steps
    if gan.weight > 0 and gan.start_step >= steps:
        yield (
            f"loss.gan.start_step is {gan.start_step}, and the run has {steps} steps, so no "
            "discriminator takes part"
        )
    judged = config.evaluation.folder
    for folder in config.data.shares:
        if judged is not None and is_nested(location(judged), location(folder)):
            yield (
                f"evaluation.folder {judged} and the training data {folder} are one in the other, "
                "so the model is judged by clips that it is trained on"
            )


def first_model(config: TrainConfig) -> Trained:
    """The model at step 0, in float32."""
    if config.distill.half is not None:
        student = make_student(load_base(config), config.distill)
        use_channels_last(student)
        return student
    if config.weights is None:
        check_learns(config.model)
        vae = WanVAE(config.model)
        start_as_image_model(vae)
    else:
        vae = load_base(config)
    use_channels_last(vae)
    if config.freeze_encoder:
        vae.freeze_encoder()
    if config.lora.rank is not None:
        add_lora(vae, config.lora)
    return vae


def load_base(config: TrainConfig) -> WanVAE:
    """The model of the checkpoint that training starts from, or the teacher of a distillation.

    Unless it is a teacher, an image model is inflated if ``model.ndim`` is 3. A decoder that does
    not upscale is changed to one that does if ``model.upscale_factor`` says so.
    """
    path, ndim, factor = config.weights, config.model.ndim, config.model.upscale_factor
    vae = require_wan_vae(WanVAE.from_pretrained(str(path), torch.float32), path, "training")
    check_weights(vae, str(path))
    check_learns(vae.config)
    if config.distill.half is None and ndim != vae.config.ndim:
        if ndim < vae.config.ndim:
            raise UserError(f"{path} is a video model, not an image model: set model.ndim to 3")
        if config.lora.rank is not None:
            raise UserError(
                f"{path} is an image model, and a LoRA of a video model cannot be merged into it: "
                "set model.ndim to 2"
            )
        vae = inflate(vae)
    if factor in (1, vae.config.upscale_factor):
        return vae
    if config.lora.rank is not None:
        raise UserError(
            f"model.upscale_factor is {factor}, and a LoRA of a decoder that upscales cannot be "
            f"merged into {path}, which does not: train without lora.rank first"
        )
    return with_upscaling(vae, factor)


def start_fitted(
    config: TrainConfig,
    student: WanVAE,
    samples: Dataset[Tensor | Pair],
    accelerator: Accelerator,
) -> None:
    """Fits the student of a new run in the first process. The others take it from there.

    Args:
        student, samples: as for ``fit_student``.
    """
    if run_on_first_process(lambda: bool(checkpoints_of(Path(config.trainer.run)))):
        return
    accelerator.print(f"the student is fitted to {FITTED_CROPS} crops by least squares")
    run_on_first_process(lambda: fit_student(config, student, samples), patience=PATIENCE)
    for tensor in student.state_dict().values():
        tensor.copy_(copy_from_first_process(tensor.to(accelerator.device)))


def fit_student(config: TrainConfig, student: WanVAE, samples: Dataset[Tensor | Pair]) -> None:
    """Fits a student to its teacher, on the first crops of the training data.

    Shows a progress bar.

    Args:
        student: on the CPU. It stays in the mode that it is in.
        samples: the training data.
    """
    teacher, half = load_base(config).eval(), config.distill.half
    seen = (pair_of(samples[number]).input[None] for number in range(FITTED_CROPS))
    clips = [scale_down(x, teacher.config.upscale_factor, config.downscaling) for x in seen]
    if half == "decoder":
        clips = [teacher.encode(clip).mode() for clip in clips]
    generator = torch.Generator().manual_seed(config.trainer.seed)
    training = student.training
    fit(teacher, student.eval(), half or "decoder", clips, generator, progress=True)
    student.train(training)


def load_teacher(config: TrainConfig, device: torch.device) -> Teacher | None:
    """The teacher of a distillation, if the losses need more of it than the student has."""
    if config.distill.half is None:
        return None
    if config.distill.half == "decoder" and config.distill.features == 0:
        return None
    vae = load_base(config)
    use_channels_last(vae)
    return Teacher(vae.to(device), config.distill)


def main(arguments: Sequence[str] | None = None, program: str = "wanvae.train") -> int:
    """Trains; returns 0, or 1 after an error, or 128 and the number of a signal that ended it.

    Args:
        arguments: of the command line; None takes the arguments of this process.
        program: the name of the command in messages.
    """
    return training_command(TrainConfig, run, program, __doc__, arguments, CONFIG_FOLDERS)
