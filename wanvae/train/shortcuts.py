"""A video VAE along the shortcuts of its residual blocks, and its training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from wanvae.engine.finite import NotFiniteError, is_finite
from wanvae.engine.training.config import TrainerConfig
from wanvae.model import WanVAE
from wanvae.nn import Residual
from wanvae.nn.coder import Coder
from wanvae.posterior import Posterior
from wanvae.train.initialize import FIRST_LOGVAR

WARMUP_STEPS, BETAS, GRADIENT_CLIP = 50, (0.9, 0.99), 1.0
# What the shown error forgets with each step.
FORGOTTEN = 0.02


class Shortcuts(nn.Module):
    """A video VAE with the shortcuts of its residual blocks alone, and without attention.

    Its layers are the layers of the model, so the model learns with it. Both compute the same while
    the blocks and the attention of the model add zero.
    """

    def __init__(self, vae: WanVAE) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*shortcuts_of(vae.encoder), vae.conv1)
        self.decoder = nn.Sequential(vae.conv2, *shortcuts_of(vae.decoder))

    def encode(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """Returns latents ``(B, z_dim, T, H, W)`` with the noise of a new model."""
        mean = self.encoder(video).chunk(2, dim=1)[0]
        return Posterior(mean, torch.full_like(mean, FIRST_LOGVAR)).sample(generator)

    def forward(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the reconstruction of a video ``(B, C, T, H, W)``, not clamped."""
        return self.decoder(self.encode(video, generator))


def shortcuts_of(coder: Coder) -> list[nn.Module]:
    """Returns the layers of an encoder or decoder, with the shortcut in place of each block."""
    return [layer.shortcut if isinstance(layer, Residual) else layer for layer in coder.layers()]


def train_shortcuts(
    vae: WanVAE, batches: Iterable[Tensor], steps: int, rate: float, generator: torch.Generator
) -> None:
    """Trains a model along its shortcuts for the squared error, with Adam; shows a progress bar.

    Its blocks do not change. A step costs a third of a step of the whole model.

    Args:
        batches: at least as many as steps, ``(B, C, T, H, W)`` in [-1, 1].
        rate: the highest learning rate. A cosine to 0 at the last step follows.
        generator: of noise.

    Raises:
        NotFiniteError: the error of a step is not finite.
    """
    shortcuts = Shortcuts(vae)
    optimizer = torch.optim.Adam(shortcuts.parameters(), rate, BETAS)
    schedule = TrainerConfig(steps=max(1, steps), warmup_steps=WARMUP_STEPS).schedule
    shown = None
    for step, video in enumerate(bar := tqdm(islice(batches, steps), "train", steps, unit="step")):
        optimizer.param_groups[0]["lr"] = rate * schedule(step)
        error = F.mse_loss(shortcuts(video, generator), video)
        if not is_finite(error.detach()):
            raise NotFiniteError(f"the error is not finite in step {step}: lower the learning rate")
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(shortcuts.parameters(), GRADIENT_CLIP)
        optimizer.step()
        shown = error.detach() if shown is None else shown.lerp(error.detach(), FORGOTTEN)
        bar.set_postfix_str(f"PSNR {10 * torch.log10(4 / shown):.2f} dB", refresh=False)
