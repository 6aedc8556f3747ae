"""Train or fine-tune a video VAE.

``wanvae train --config configs/video/tiny.yaml`` does so on one device, and on any number of them
``accelerate launch -m wanvae.train`` with the same options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from wanvae.config import WanVAEConfig
from wanvae.data import DataConfig, VideoClips
from wanvae.engine.arguments import parse_config
from wanvae.engine.checkpoint import load_in_place
from wanvae.engine.memory import keep_freed_memory
from wanvae.engine.trainer import (
    NotFiniteError,
    StepLosses,
    Task,
    TrainerConfig,
    make_accelerator,
    train,
)
from wanvae.initialise import inflate, start_as_image_model
from wanvae.losses import LossConfig, VideoLosses, peak_signal_to_noise
from wanvae.model import WanVAE, check_length, check_size
from wanvae.nn import use_channels_last


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about a training run.

    Attributes:
        model: the architecture.
        data: the training clips.
        loss: the loss terms.
        trainer: the loop.
        gradient_checkpointing: keep less of the forward pass and compute it again for the
            gradients: a fraction of the memory, a sixth more time, the same result.
        weights: checkpoint to start from, of any layout, whose architecture replaces ``model``, but
            for ``model.ndim``: if that is 3 an image model is inflated to a video model. Without
            one the model starts as wanvae.initialise says.
        freeze_encoder: train the decoder alone. Latents stay what they are, so that diffusion
            models that make them keep working; the decoder learns from their mode.
    """

    model: WanVAEConfig = field(default_factory=WanVAEConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    gradient_checkpointing: bool = False
    weights: str | None = None
    freeze_encoder: bool = False

    def __post_init__(self) -> None:
        if self.freeze_encoder and self.weights is None:
            raise ValueError("freeze_encoder needs weights: a new encoder has not learnt anything")


def run(config: TrainConfig) -> bool:
    """Train as ``config`` says; returns whether all steps are done."""
    accelerator = make_accelerator(config.trainer)
    torch.manual_seed(config.trainer.seed)
    vae = first_model(config)
    for shape in config.data.shapes:
        check_size(vae.config, shape.height, shape.width)
        check_length(vae.config, shape.frames)
    video_losses = VideoLosses(config.loss, accelerator.device)

    def losses(
        model: nn.Module, adversary: nn.Module | None, video: Tensor, step: int
    ) -> StepLosses:
        output = model(video, recompute=config.gradient_checkpointing)
        with torch.no_grad():
            figures = {"psnr": peak_signal_to_noise(output.video, video)}
        terms = video_losses.generator(
            output, video, discriminator=None, last_layer=vae.decoder.head[-1].weight, step=0
        )
        return StepLosses(terms, figures)

    task = Task(
        model=vae,
        samples=VideoClips(
            config.data,
            config.trainer.seed,
            samples_per_step=config.trainer.batch_size * accelerator.num_processes,
        ),
        losses=losses,
        save_weights=lambda model, path: model.save_pretrained(path),
        load_weights=load_in_place,
    )
    return train(task, config.trainer, accelerator)


def first_model(config: TrainConfig) -> WanVAE:
    """The model at step 0, in float32."""
    if config.weights is None:
        vae = WanVAE(config.model)
        start_as_image_model(vae)
    else:
        vae = load_first(config.weights, config.model.ndim)
    use_channels_last(vae)
    if config.freeze_encoder:
        vae.freeze_encoder()
    return vae


def load_first(path: str, ndim: Literal[2, 3]) -> WanVAE:
    """The model of a checkpoint, inflated if it is an image model and ``ndim`` is 3."""
    vae = WanVAE.from_pretrained(path, torch.float32)
    if ndim < vae.config.ndim:
        raise ValueError(f"{path} is a video model, not an image model: set model.ndim to 3")
    return inflate(vae) if ndim > vae.config.ndim else vae


def main(arguments: Sequence[str] | None = None, program: str = "wanvae.train") -> int:
    """Entry point: 0 if training is complete, 130 if it was interrupted, 1 on an error.

    Args:
        program: what the command is called in what it prints.
    """
    keep_freed_memory()
    config = parse_config(TrainConfig, program, __doc__, arguments)
    try:
        return 0 if run(config) else 130
    except KeyboardInterrupt:
        print(f"{program}: interrupted before the first step", file=sys.stderr)
        return 130
    except (ValueError, OSError, NotFiniteError) as error:
        # Of an error in a process that loads data, the last line is the error itself.
        *_, line = (str(error).strip() or type(error).__name__).splitlines()
        print(f"{program}: {line}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
