"""A Wan VAE whose decoder is replaced by the decoder of a tiny autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wanvae.checkpoints.formats import digests_of_encoding
from wanvae.model import WanVAE
from wanvae.nn import CausalConv, State
from wanvae.posterior import Posterior
from wanvae.tiny import TinyVAE


class WithTinyDecoder(nn.Module):
    """Encodes as a Wan VAE, which is frozen, and decodes as a tiny autoencoder, which learns.

    Attributes:
        encoding: the half that encodes.
        tiny: the model that decodes. It says that it decodes the latents of ``teacher``.
        config: the config of the Wan VAE that has the latents.
    """

    def __init__(self, teacher: WanVAE, tiny: TinyVAE) -> None:
        super().__init__()
        self.encoding = WanVAE(teacher.config.only("encoder"))
        self.encoding.load_state_dict(
            {name: tensor for name, tensor in teacher.state_dict().items() if encodes(name)}
        )
        self.encoding.requires_grad_(False)
        self.tiny = tiny
        tiny.decodes = digests_of_encoding(teacher.config, teacher.state_dict())
        self.config = teacher.config
        self.train()

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.tiny.device

    @property
    def encode_dtype(self) -> torch.dtype:
        """The dtype of the parameters that encode."""
        return self.encoding.encode_dtype

    @property
    def decode_dtype(self) -> torch.dtype:
        """The dtype of the parameters that decode."""
        return self.tiny.decode_dtype

    @property
    def conv1(self) -> CausalConv:
        """The last layer that encodes."""
        return self.encoding.conv1

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer that decodes."""
        return self.tiny.decoder[-1].get_parameter("weight")

    def encode_for_training(
        self, video: Tensor, *, recompute: bool = False
    ) -> tuple[Tensor, Posterior]:
        """Does the same as the method of ``WanVAE``."""
        return self.encoding.encode_for_training(video, recompute=recompute)

    def decode_step(
        self, latents: Tensor, state: State, *, recompute: bool = False
    ) -> tuple[Tensor, State]:
        """Does the same as the method of ``TinyVAE``."""
        return self.tiny.decode_step(latents, state, recompute=recompute)

    def encode(self, video: Tensor) -> Posterior:
        """Does the same as the method of ``WanVAE``."""
        return self.encoding.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        """Does the same as the method of ``TinyVAE``."""
        return self.tiny.decode(latents)


def encodes(name: str) -> bool:
    """Returns whether a tensor of a Wan VAE belongs to its encoder."""
    return name.startswith(("encoder.", "conv1."))
