"""Two models of one latent space as one model: the one decodes colour, the other alpha."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike

import torch

from wanvae.checkpoints.architecture import ALPHA_DECODER
from wanvae.checkpoints.formats import Checkpoint
from wanvae.config import RGB, RGBA, WanVAEConfig
from wanvae.engine.stored_tensors import CheckpointError, StoredTensors
from wanvae.engine.text import first_few

DECODER = "decoder."
# Layers of the decoder that both models share.
SHARED = ("conv2.weight", "conv2.bias")


def join_alpha(colour: Checkpoint, alpha: Checkpoint, source: str | PathLike[str]) -> Checkpoint:
    """Returns the model that decodes colour as the one model and alpha as the other (Wan-Alpha).

    The encoder is the encoder of ``colour``.

    Args:
        source: where ``alpha`` comes from, for errors.

    Raises:
        CheckpointError: a model has no decoder of RGB, or the decoders do not fit together.
    """
    if not (isinstance(colour.config, WanVAEConfig) and isinstance(alpha.config, WanVAEConfig)):
        raise unfit(source, "both must be Wan VAEs, but one is a tiny autoencoder")
    for model in (colour, alpha):
        if not any(name.startswith(DECODER) for name in model.tensors):
            raise unfit(source, "a pair of models for colour and alpha needs both decoders")
        if model.config.out_channels != RGB:
            raise unfit(
                source,
                "a pair of models for colour and alpha needs two decoders of 3 channels, but one "
                f"has {model.config.out_channels}",
            )
    if problem := difference(colour.tensors, alpha.tensors):
        raise unfit(source, problem)
    config = replace(colour.config, alpha_decoder=True, out_channels=RGBA)
    unused = unequal_encoder(colour.tensors, alpha.tensors)
    notes = (
        (f"the encoder beside the decoder of alpha is another one and is not used: {unused}",)
        if unused
        else ()
    )
    tensors = with_alpha_decoder(colour.tensors, alpha.tensors)
    return replace(colour, config=config, tensors=tensors, notes=(*colour.notes, *notes))


def with_alpha_decoder(colour: StoredTensors, alpha: StoredTensors) -> StoredTensors:
    """Returns the tensors of ``colour``, and the decoder of ``alpha`` as the decoder of alpha."""
    added = {
        ALPHA_DECODER + name.removeprefix(DECODER): name
        for name in alpha
        if name.startswith(DECODER)
    }
    return StoredTensors(
        colour.outline | {new: alpha.outline[old] for new, old in added.items()},
        lambda name: alpha[added[name]] if name in added else colour[name],
    )


def unfit(source: str | PathLike[str], problem: str) -> CheckpointError:
    """Returns the error for a model that cannot decode the alpha of another model."""
    return CheckpointError(f"{source} cannot be the alpha of this model: {problem}")


def difference(colour: StoredTensors, alpha: StoredTensors) -> str:
    """Returns why two decoders are no pair: other layers, or other latents; "" if they are."""
    shapes = [
        {name: tuple(t.shape) for name, t in tensors.outline.items() if name.startswith(DECODER)}
        for tensors in (colour, alpha)
    ]
    differing = [
        name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)
    ]
    if differing:
        return f"their decoders have different layers: {first_few(differing)}"
    unequal = [name for name in SHARED if not equal(colour, alpha, name)]
    return f"they do not read the same latents: {first_few(unequal)} differ" if unequal else ""


def unequal_encoder(colour: StoredTensors, alpha: StoredTensors) -> str:
    """Returns the names of tensors in which the encoders of two models differ; "" for none."""
    encoder = [name for name in alpha if name.startswith(("encoder.", "conv1."))]
    differing = [n for n in encoder if n in colour and not equal(colour, alpha, n)]
    return first_few(differing) if differing else ""


def equal(some: StoredTensors, others: StoredTensors, name: str) -> bool:
    """Returns whether a tensor has the same values in two models, apart from rounding."""
    one, other = some[name], others[name]
    if one.shape != other.shape:
        return False
    return torch.allclose(one.float(), other.to(one.dtype).float(), rtol=1e-2, atol=1e-3)
