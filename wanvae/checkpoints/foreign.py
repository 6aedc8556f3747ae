"""What a file without a Wan VAE is, told by a few names and shapes of its tensors.

The names are what public loaders of these models look for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from wanvae.engine.text import first_few
from wanvae.errors import UserError

# Kinds that an error lists.
LISTED = 3


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what people call it.
        mark: matches the end of the name of a tensor that it has.
        axes: number of axes of this tensor; None is any.
        channels: the size of its second axis; None is any.
        hint: what to do with such a file.
        group: only the first kind of a group is told.
    """

    name: str
    mark: str
    axes: int | None = None
    channels: int | None = None
    hint: str = ""
    group: str = ""

    def fits(self, name: str, tensor: Tensor) -> bool:
        """Returns whether a tensor belongs to such a file."""
        shape = tensor.shape
        if self.axes is not None and len(shape) != self.axes:
            return False
        if self.channels is not None and (len(shape) < 2 or shape[1] != self.channels):
            return False
        return re.search(rf"(?:^|\.)(?:{self.mark})$", name) is not None


BASE = "it changes another model; merge it into that model: wanvae convert MODEL OUT --lora FILE"
LORA = Kind(
    "a LoRA",
    r"\w*(lora_[AB]|lora_up|lora_down|lora\.up|lora\.down|lora_magnitude_vector)(\.[\w.]*)?"
    r"|hada_w1_a|lokr_w1|diff|diff_b",
    hint=BASE,
)
# The first kind that fits a file is what it is, so kinds with more particular names come first.
KINDS = (
    LORA,
    # Video VAEs.
    Kind(
        "a CogVideoX VAE",
        r"decoder\.(mid_block\.resnets\.0|mid\.block_1)\.norm1\.norm_layer\.weight",
        group="VAE",
    ),
    Kind(
        "an LTX VAE",
        r"decoder\.up_blocks\.0\.res_blocks\.0\.conv1\.conv\.weight"
        r"|per_channel_statistics\.mean-of-means",
        group="VAE",
    ),
    Kind(
        "a Mochi VAE",
        r"blocks\.2\.blocks\.3\.stack\.5\.weight|layers\.4\.layers\.1\.attn_block\.attn\.qkv\.weight"
        r"|decoder\.block_in\.resnets\.0\.norm1\.norm_layer\.weight",
        group="VAE",
    ),
    Kind(
        "a Cosmos tokenizer",
        r"decoder\.unpatcher3d\.wavelets|encoder\.patcher3d\.wavelets|decoder\.unpatcher\.wavelets"
        r"|encoder\.patcher\.wavelets|(en|de)coder\.conv_in\.(0\.conv3d|conv_s)\.weight",
        group="VAE",
    ),
    Kind(
        "a HunyuanVideo VAE: 16 channels",
        r"decoder\.conv_in\.conv\.weight",
        axes=5,
        channels=16,
        group="VAE",
    ),
    Kind(
        "a VAE of another video model (HunyuanVideo or LTX)",
        r"(en|de)coder\.conv_in\.conv\.weight",
        axes=5,
        group="VAE",
    ),
    # Image VAEs.
    Kind(
        "a Stable Diffusion VAE: 2D, 4 channels (SD or SDXL)",
        r"decoder\.conv_in\.weight",
        axes=4,
        channels=4,
        group="VAE",
    ),
    Kind("a Flux or SD3 VAE: 2D, 16 channels", r"decoder\.conv_in\.weight", 4, 16, group="VAE"),
    Kind("a Flux.2 VAE: 2D, 32 channels", r"decoder\.conv_in\.weight", 4, 32, group="VAE"),
    Kind("a 2D VAE of an image model", r"(en|de)coder\.conv_in\.weight", axes=4, group="VAE"),
    Kind(
        "a tiny autoencoder of an image model (TAESD)",
        r"taesd_(en|de)coder\.\d+\.weight|encoder\.0\.weight|decoder\.1\.weight",
        axes=4,
        group="VAE",
    ),
    # Diffusion models.
    Kind(
        "a transformer of Wan, the diffusion model and not its VAE",
        r"(vace_)?blocks\.\d+\.self_attn\.q\.(weight|scale_weight|weight_scale)"
        r"|condition_embedder\.time_embedder\.linear_1\.weight|blocks\.\d+\.attn1\.to_q\.weight",
        group="diffusion",
    ),
    Kind(
        "a transformer of Flux or HunyuanVideo, a diffusion model",
        r"double_blocks\.0\.img_attn[._]qkv\.weight|single_transformer_blocks\.0\.proj_mlp\.weight",
        group="diffusion",
    ),
    Kind(
        "a UNet of Stable Diffusion, the diffusion model and not its VAE",
        r"input_blocks\.0\.0\.weight|down_blocks\.\d\.attentions\.0\.transformer_blocks\.0\.attn1"
        r"\.to_q\.weight",
        group="diffusion",
    ),
    Kind(
        "a transformer of Qwen-Image or another diffusion model",
        r"transformer_blocks\.0\.attn\.(add_q_proj|to_q)\.weight"
        r"|transformer_blocks\.0\.attn1\.to_q\.weight|joint_blocks\.0\.x_block\.attn\.qkv\.weight",
        group="diffusion",
    ),
    # Text and image encoders.
    Kind(
        "an image encoder (CLIP)",
        r"vision_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight"
        r"|visual\.transformer\.0\.attn\.to_qkv\.weight",
        group="encoder",
    ),
    Kind(
        "a text encoder (T5 or UMT5)",
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight|blocks\.0\.attn\.q\.weight",
        axes=2,
        group="encoder",
    ),
    Kind(
        "a text encoder (CLIP)",
        r"text_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight"
        r"|transformer\.resblocks\.0\.attn\.in_proj_weight|textual\.blocks\.0\.attn\.q\.weight",
        group="encoder",
    ),
    Kind(
        "a language model, as text encoders are",
        r"layers\.0\.self_attn\.q_proj\.weight|blk\.0\.attn_q\.weight",
        group="encoder",
    ),
    # Other files of this project, and of motion models.
    Kind(
        "a motion tokenizer",
        r"quantizer\.layers\.0\.codebook|quantizer\.books\.\w+"
        r"|quantizer\.codebook|encoder\.model\.0\.weight",
        hint="python -m motion reads it",
    ),
    Kind(
        "a discriminator, which training uses beside the model",
        r"layers\.0\.0?\.?weight_orig|discriminator\..*weight|main\.0\.weight",
        hint="give the model.safetensors beside it",
    ),
    Kind(
        "latents, not a model",
        # A tensor alone has no name.
        r"(?<!.)|latents|latent_tensor|latent|latents_\d+x\d+x\d+_\w+",
        hint="wanvae decode reads latents",
    ),
)


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Returns whether a file is a LoRA, perhaps with the weights that it changes beside it."""
    return any(LORA.fits(name, tensor) for name, tensor in tensors.items())


def refusal(tensors: Mapping[str, Tensor]) -> UserError:
    """Returns the error for a file that holds no Wan VAE, which says what the file is."""
    found: dict[str, Kind] = {}
    for kind in KINDS:
        if any(kind.fits(name, tensor) for name, tensor in tensors.items()):
            found.setdefault(kind.group or kind.name, kind)
    if found:
        kinds = list(found.values())
        names = " and ".join(kind.name for kind in kinds[:LISTED])
        hint = f"; {kinds[0].hint}" if kinds[0].hint else ""
        return UserError(f"it holds no Wan VAE. It is {names}{hint}")
    return UserError(
        f"no layout of a Wan VAE has tensors like {first_few(list(tensors))}; known are "
        "native (.safetensors written by wanvae), "
        "wan (encoder.downsamples.0.residual.0.gamma, ...), "
        "diffusers (encoder.down_blocks.0.norm1.gamma, ...) and "
        "taehv (decoder.7.conv.weight, ...)"
    )
