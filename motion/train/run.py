"""Train or fine-tune a motion tokenizer.

``wanvae-motion train --config tiny`` trains on one device. ``accelerate launch -m motion.train``
with the same options trains on any number of devices.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from motion.checkpoints import formats
from motion.config import RVQVAEConfig
from motion.evaluate.code_use import CodeUse
from motion.evaluate.evaluation import evaluate
from motion.evaluate.feature_space import evaluate_features
from motion.evaluate.reconstruction import reconstruct
from motion.features.units import warn_of_training_units
from motion.model import RVQVAE
from motion.models import MotionModel, load_model, make_model
from motion.networks.reach import UnreachedTaps, find_unreached_taps
from motion.quantizer.results import Choices, Quantized, Usage
from motion.render import Figure, render_grid
from motion.tokens import identify
from motion.train.losses import LossConfig, MotionLosses
from motion.train.windows import DataConfig, load_data
from motion.vae import MotionVAE
from wanvae.engine.command_line.arguments import read_config
from wanvae.engine.config import describe_replaced
from wanvae.engine.files import refuse_overwriting
from wanvae.engine.finite import check_weights
from wanvae.engine.training.command import training_command
from wanvae.engine.training.config import TrainerConfig
from wanvae.engine.training.loop import make_accelerator, train
from wanvae.engine.training.task import WEIGHTS, StepLosses, Task
from wanvae.errors import UserError
from wanvae.report import Column
from wanvae.report.training import TrainingPage

# Where --config finds the configs of the package by name: installed, or in a checkout.
PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = PACKAGE / "configs", PACKAGE.parent / "configs" / "motion"

# How the figures of evaluations are shown.
COLUMNS = {
    "mpjpe": Column("MPJPE (mm)", 2, "lower", "mean distance of joints from their places"),
    "rotation_error": Column("rotation error (degrees)", 3, "lower"),
    "feature_error": Column("error of the features (standard deviations)", 4, "lower"),
    "code_use": Column("share of the codes in use", 3, "higher"),
    "perplexity": Column("perplexity of the codes", 1, explanation="e to their entropy"),
}
PICTURES = "Frames of motion that is held out, above its reconstruction."
NO_EVALUATION = (
    "This run is not evaluated. Hold motion out, as data.held_out, to see here whether it gets "
    "better."
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about a training run.

    Attributes:
        model: the architecture and its features.
        data: the training motion, and the share of it that is held out. If some is held out, the
            checkpoint with the lowest MPJPE on it is kept, unless ``trainer.best`` names another
            figure.
        loss: the weights of the loss terms.
        trainer: the training loop. Of a tokenizer it takes no average of the weights
            (``ema_decay`` is 0).
        weights: a checkpoint of any layout to start from. Its architecture replaces ``model``. If
            it has a normalizer, the normalizer stays, and so does its skeleton, which all motion
            must have. A run goes on only with the same weights, in whatever file.
    """

    model: RVQVAEConfig = field(default_factory=RVQVAEConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    weights: str | None = None

    def __post_init__(self) -> None:
        # Weights bring their own architecture.
        if self.weights is None:
            check_average(self.trainer, self.model)


def check_average(trainer: TrainerConfig, model: RVQVAEConfig) -> None:
    """Raises UserError if there can be no average of the weights of such a model."""
    if trainer.ema_decay > 0 and model.bottleneck == "quantizer":
        raise UserError(
            f"trainer.ema_decay is {trainer.ema_decay}, but the codes follow the current encoder "
            "and do not fit an average of its weights; set it to 0"
        )


def load_config(config: str | os.PathLike[str]) -> TrainConfig:
    """Reads a config of training: a YAML file, or the name of one of the package.

    ``load_config("humanml3d").model`` is the architecture of MoMask, for ``RVQVAE``.

    Args:
        config: the file; or a name, like "beat2_330", "humanml3d", "kit", "wan1d" or "tiny".

    Returns:
        Everything about a training run. What the file leaves out has its default.

    Raises:
        UserError: there is no such config, or it has an unknown key or an impossible value.
    """
    return read_config(TrainConfig, config, CONFIG_FOLDERS)


class MotionTraining:
    """The training of a motion tokenizer: its data, its losses and its evaluation.

    Raises:
        UserError: there is no motion that the model can learn from, or the weights cannot be read.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        if config.weights is None:
            self.model = make_model(config.model)
        else:
            self.model = load_model(config.weights)
            check_weights(self.model, config.weights)
            for note in describe_replaced(config.weights, config.model, self.model.config):
                accelerator.print(note)
        check_average(config.trainer, self.model.config)
        # Before the data set the normalizer of a checkpoint that has none.
        self.start = "" if config.weights is None else identify(self.model)
        self.config = config
        self.accelerator = accelerator
        report, seed = accelerator.is_main_process, config.trainer.seed
        self.data = load_data(
            config.data, self.model.config, seed, report=report, skeleton=self.model.skeleton
        )
        if self.model.skeleton is None and self.model.config.features is not None:
            self.model.skeleton = self.data.skeleton
        if self.data.ignored:
            accelerator.print(
                f"{config.data.folder}: ignored, no motion files: {self.data.ignored}"
            )
        if self.data.split:
            accelerator.print(f"{config.data.folder}: {self.data.split}")
        if not self.model.normalizer.is_set:
            self.model.normalizer.set(self.data.statistics)
        if report and self.model.config.features is None:
            warn_of_training_units(self.data.windows.recordings, self.model.normalizer)
        self._zero_unreached_taps()
        self.motion_losses = MotionLosses(config.loss, self.model, self.data.skeleton)

    def _zero_unreached_taps(self) -> None:
        """Sets taps that never learn to zero; warns if they are weights to start from."""
        model, window = self.model, self.config.data.window
        found = find_unreached_taps(model.config, model.encoder, model.decoder, window)
        if self.config.weights is not None:
            found = [taps for taps in found if taps.weights.any()]
            if found and self.accelerator.is_main_process:
                warnings.warn(describe_unreached(found, self.config), stacklevel=2)
            return
        for taps in found:
            taps.zero()
        if found:
            self.accelerator.print(
                f"outer taps of {len(found)} convolutions start at zero and stay so, because "
                f"windows of {window} frames do not reach them; windows of "
                f"{max(taps.frames for taps in found)} would"
            )

    def task(self) -> Task:
        """Returns the task for the training loop."""
        tokenizes = isinstance(self.model, RVQVAE)
        together = tokenizes and self.config.trainer.accumulate > 1
        return Task(
            model=self.model,
            samples=self.data.windows,
            losses=self.losses if tokenizes else self.vae_losses,
            save_weights=lambda model, path: as_motion_model(model).save_pretrained(path),
            load_weights=formats.load_weights,
            evaluate=self.evaluate if self.data.held_out else None,
            figures=self.figures,
            preview=self.preview if self.data.held_out and self.data.skeleton else None,
            report=TrainingPage(
                columns=COLUMNS,
                pictures=PICTURES,
                side_by_side=1,
                note="" if self.data.held_out else NO_EVALUATION,
            ).write,
            begin_step=self.begin_step if together else None,
            end_step=self.end_step if together else None,
            # Weights to start from bring their own architecture.
            config=replace(self.config, model=self.model.config),
            identify_start=lambda: self.start,
            describe_data=lambda: {self.config.data.folder: self.data.describe()},
        )

    def losses(
        self, model: nn.Module, discriminator: nn.Module | None, motion: Tensor, step: int
    ) -> StepLosses:
        """Returns the losses of a batch, and its use of codes as means over the layers."""
        at_once = self.config.trainer.accumulate == 1
        reconstruction = model(motion, learn=at_once)
        quantized = reconstruction.quantized
        return StepLosses(
            self.motion_losses(reconstruction),
            figures_of(quantized) if at_once else {},
            statistics=quantized.choices,
        )

    def vae_losses(
        self, model: nn.Module, discriminator: nn.Module | None, motion: Tensor, step: int
    ) -> StepLosses:
        """Returns the losses of a batch of a VAE, and the divergence of its latents."""
        reconstruction = model(motion)
        return StepLosses(self.motion_losses(reconstruction), {"kl_nats": reconstruction.kl})

    def begin_step(self, batches: Sequence[Tensor]) -> None:
        """Makes the codebooks from all batches of the first step, as from one large batch."""
        with self.accelerator.autocast():
            as_tokenizer(self.model).initialize_codebooks(batches)

    def end_step(self, choices: Sequence[Choices]) -> dict[str, Tensor]:
        """Lets the codebooks learn from all batches of a step at once; returns the use of codes."""
        return figures_of(as_tokenizer(self.model).quantizer.learn(choices))

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that ``evaluate`` returns."""
        unknown = self.data.skeleton is None
        errors = ("feature_error",) if unknown else ("mpjpe", "rotation_error")
        layers = self.model.config.num_layers if isinstance(self.model, RVQVAE) else 0
        return (*errors, *names_of_codes(layers))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns figures of the held-out motion, with all layers, in millimetres and degrees.

        Features that are not known have errors in standard deviations instead.
        """
        of_motion = as_motion_model(model)
        if self.data.skeleton is None:
            return self._evaluate_features(of_motion)
        found = evaluate(
            of_motion,
            self.data.held_out,
            numbers_of_layers=[of_motion.config.num_layers],
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
        )
        errors = {"mpjpe": found.mpjpe[-1], "rotation_error": found.rotation_errors[-1]}
        return {**errors, **describe_codes(found)}

    def _evaluate_features(self, model: MotionModel) -> dict[str, float]:
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        found = evaluate_features(model, self.data.held_out, rank=index, ranks=count)
        return {"feature_error": found.summary.error[-1], **describe_codes(found)}

    def preview(self, model: nn.Module, path: Path) -> None:
        """Writes a picture of frames of the first held-out recording above its reconstruction."""
        recording = self.data.held_out[0]
        _, decoded = reconstruct(as_motion_model(model), recording)
        pair = recording.joints, recording.joints_of(decoded)
        figures = [Figure.of_joints(joints.positions, recording.bones) for joints in pair]
        render_grid(path, figures, recording.config.fps)


def describe_codes(found: CodeUse) -> dict[str, float]:
    """Returns the use of codes, as means over the layers and for each layer; nothing of a VAE."""
    if not len(found.counts):
        return {}
    values = (
        found.code_use.mean().item(),
        found.perplexity.mean().item(),
        *found.perplexity.tolist(),
    )
    return dict(zip(names_of_codes(len(found.counts)), values, strict=True))


def names_of_codes(layers: int) -> tuple[str, ...]:
    """Returns the names of these figures of a quantizer; nothing without layers."""
    if not layers:
        return ()
    return ("code_use", "perplexity", *(f"perplexity_{layer + 1}" for layer in range(layers)))


def describe_unreached(found: Sequence[UnreachedTaps], config: TrainConfig) -> str:
    """Returns a warning of taps that do not learn, but act on longer motion."""
    return (
        f"{len(found)} convolutions of {config.weights} look further than windows of "
        f"{config.data.window} frames: their outer taps do not learn, but act on longer motion; "
        f"set data.window to at least {max(taps.frames for taps in found)}"
    )


def figures_of(used: Usage | Quantized) -> dict[str, Tensor]:
    """Returns the use of codes, as means over the layers."""
    return {"perplexity": used.perplexity.mean(), "code_use": used.code_use.mean()}


def as_motion_model(model: nn.Module) -> MotionModel:
    """Returns the model that the training loop passes back."""
    assert isinstance(model, RVQVAE | MotionVAE)
    return model


def as_tokenizer(model: nn.Module) -> RVQVAE:
    """Returns the model that the training loop passes back, which is a tokenizer."""
    assert isinstance(model, RVQVAE)
    return model


def run(config: TrainConfig) -> None:
    """Trains as ``config`` says.

    Raises:
        FileError: the run would replace its weights.
    """
    refuse_overwriting(Path(config.trainer.run) / WEIGHTS, [config.weights])
    accelerator = make_accelerator(config.trainer)
    torch.manual_seed(config.trainer.seed)
    training = MotionTraining(config, accelerator)
    task = training.task()
    trainer = config.trainer
    if task.evaluate is not None and trainer.best is None:
        best = "feature_error" if training.data.skeleton is None else "mpjpe"
        trainer = replace(trainer, best=best, best_is="lowest")
    train(task, trainer, accelerator)


def main(arguments: Sequence[str] | None = None, program: str = "motion.train") -> int:
    """Trains; returns 0, or 1 after an error, or 128 and the number of a signal that ended it.

    Args:
        program: the name of the command in its messages.
    """
    return training_command(TrainConfig, run, program, __doc__, arguments, CONFIG_FOLDERS)
