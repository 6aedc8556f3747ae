"""The encoder and the decoder that a config names."""

from __future__ import annotations

from motion.config import RVQVAEConfig
from motion.networks.resnet import ResnetDecoder, ResnetEncoder
from wanvae.nn import Decoder, Encoder, Streaming


def make_networks(config: RVQVAEConfig) -> tuple[Streaming, Streaming]:
    """Returns encoder and decoder, between ``(B, channels, T)`` and latents.

    The encoder gives ``(B, moments, tokens)``, and the decoder takes ``(B, code_dim, tokens)``.
    """
    channels, code_dim, moments = config.channels, config.code_dim, config.moments
    if config.network == "wan":
        coder = config.wan.coder
        return Encoder(coder, channels, moments), Decoder(coder, code_dim, channels)
    resnet = config.resnet
    return ResnetEncoder(resnet, channels, moments), ResnetDecoder(resnet, code_dim, channels)
