"""Every pipeline of the installed diffusers that takes a VAE of Wan or Qwen-Image, with ours.

The pipelines are found by inspection. Each is built from tiny random parts, runs with our VAE and
with the VAE of diffusers that has the same weights, and gives the same pictures. Text encoders are
not built: pipelines take embeddings, or the method that makes them is replaced.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import Parameter, signature
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.helpers import QWEN21, WAN22, tiny, tiny_autoencoder
from wanvae import WanVAE
from wanvae.checkpoints.diffusers_layout import QWEN_IMAGE_21_CLASS, DiffusersClass

pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing it and its dependencies says is not ours
    diffusers = pytest.importorskip("diffusers")
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
    from diffusers.guiders import ClassifierFreeGuidance

TEXT, WORDS, SIDE = 16, 8, 32
# An older diffusers may lack some of them.
CLASSES = [
    getattr(diffusers, name) for name in get_args(DiffusersClass) if hasattr(diffusers, name)
]
# Both VAEs compute in float32, in another order.
CLOSE = 1e-4
# These pipelines round their pictures to 8 bits.
ROUNDED = (
    "Cosmos2TextToImagePipeline",
    "Cosmos2VideoToWorldPipeline",
    "Cosmos2_5_PredictBasePipeline",
    "Cosmos2_5_TransferPipeline",
)
ONE_LEVEL = 1.01 / 255

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 1,
}
ROPE = {"rope_max_seq_len": 32}
QWEN_IMAGE = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 4, 4),
}
COSMOS = {
    "in_channels": 17,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "mlp_ratio": 2,
    "text_embed_dim": TEXT,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "extra_pos_embed_type": "learnable",
}
JOY_IMAGE = {
    "patch_size": [1, 2, 2],
    "in_channels": 16,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": TEXT,
    "num_layers": 1,
    "rope_dim_list": [4, 6, 6],
    "theta": 256,
}
# Sizes of the smallest part of each class.
PARTS: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": WAN | ROPE,
    "WanVACETransformer3DModel": WAN
    | ROPE
    | {"num_layers": 2, "vace_layers": [0, 1], "vace_in_channels": 96},
    "WanAnimateTransformer3DModel": WAN
    | ROPE
    | {
        "in_channels": 36,
        "latent_channels": 16,
        "image_dim": 4,
        "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 1,
    },
    "SkyReelsV2Transformer3DModel": WAN | ROPE,
    "ChronoEditTransformer3DModel": WAN | ROPE,
    "AnyFlowTransformer3DModel": WAN | ROPE,
    "AnyFlowFARTransformer3DModel": WAN
    | ROPE
    | {
        "compressed_patch_size": (1, 4, 4),
        "full_chunk_limit": 3,
        "chunk_partition": (1, 1, 1),
    },
    "HeliosTransformer3DModel": WAN | {"rope_dim": (4, 4, 4), "is_amplify_history": False},
    "QwenImageTransformer2DModel": QWEN_IMAGE,
    "QwenImageControlNetModel": QWEN_IMAGE,
    "QwenImage21Transformer2DModel": {
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": TEXT,
        "axes_dims_rope": (8, 4, 4),
    },
    "CosmosTransformer3DModel": COSMOS
    | {"out_channels": 16, "num_layers": 1, "concat_padding_mask": True},
    "CosmosControlNetModel": COSMOS
    | {
        "n_controlnet_blocks": 1,
        "in_channels": 18,
        "latent_channels": 18,
        "model_channels": 32,
        "img_context_dim_in": 32,
        "img_context_dim_out": 32,
        "use_crossattn_projection": False,
    },
    "Cosmos3OmniTransformer": {
        "head_dim": 6,
        "hidden_act": "relu2",
        "hidden_size": 6,
        "intermediate_size": 12,
        "latent_channel": 16,
        "latent_patch_size": 1,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "patch_latent_dim": 16,
        "qk_norm_for_text": False,
        "rope_axes_dim": [1, 1, 1],
        "vocab_size": 64,
    },
    "SanaVideoTransformer3DModel": {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": TEXT,
        "mlp_ratio": 2.0,
        "sample_size": 4,
        "patch_size": (1, 2, 2),
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    },
    "MotifVideoTransformer3DModel": {
        "in_channels": 33,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_single_layers": 1,
        "patch_size": 1,
        "patch_size_t": 1,
        "text_embed_dim": TEXT,
        "rope_axes_dim": (4, 4, 4),
    },
    "NucleusMoEImageTransformer2DModel": QWEN_IMAGE
    | {"attention_head_dim": 16, "moe_enabled": False, "capacity_factors": [8.0]},
    "Krea2Transformer2DModel": {
        "in_channels": 64,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "timestep_embed_dim": 8,
        "text_hidden_dim": TEXT,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 1,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 2, 2),
    },
    "JoyImageEditTransformer3DModel": JOY_IMAGE,
    "JoyImageEditPlusTransformer3DModel": JOY_IMAGE,
    "BriaFiboTransformer2DModel": {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 2 * TEXT,
        "text_encoder_dim": TEXT,
        "pooled_projection_dim": None,
        "axes_dims_rope": [0, 4, 4],
    },
    "HeliosScheduler": {"stage_range": [0, 1], "stages": 1, "use_dynamic_shifting": True},
    "UniPCMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "DPMSolverMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
}


def picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture of random colours."""
    shape = (SIDE, SIDE, len(mode)) if len(mode) > 1 else (SIDE, SIDE)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def pictures(count: int) -> list[Image.Image]:
    return [picture(seed) for seed in range(count)]


def embedding(seed: int) -> Tensor:
    return torch.randn(1, WORDS, TEXT, generator=torch.Generator().manual_seed(seed))


class StandIn(SimpleNamespace):
    """A component of which a pipeline only uses these attributes."""


ALL_WORDS = torch.ones(1, WORDS, dtype=torch.long)
# What a pipeline is called with, for each parameter that it has.
INPUTS: dict[str, Any] = {
    "prompt_embeds": embedding(1),
    "negative_prompt_embeds": embedding(2),
    "prompt_embeds_mask": ALL_WORDS,
    "negative_prompt_embeds_mask": ALL_WORDS,
    "prompt_attention_mask": ALL_WORDS,
    "negative_prompt_attention_mask": ALL_WORDS,
    "height": SIDE,
    "width": SIDE,
    "num_frames": 9,
    "frames": 9,
    "num_inference_steps": 2,
    "true_cfg_scale": 2.0,
    "image": picture(),
    "mask_image": picture(3, "L"),
    "control_image": picture(4),
    "control_mask": picture(3, "L"),
    "output_type": "pt",
}


@dataclass(frozen=True)
class Case:
    """What one pipeline needs besides ``PARTS`` and ``INPUTS``.

    Attributes:
        parts: changes of the sizes of a component, or the component.
        inputs: arguments of the call; None leaves an argument out.
        methods: values that methods of the pipeline return.
        vae: changes of the VAE.
        options: further arguments of the constructor.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


# Among the words of a prompt, the place of a picture.
PICTURE_AMONG_WORDS = torch.arange(WORDS)[None] == 3
# What methods of pipelines return, where a pipeline has them.
METHODS = {"encode_image": torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(6))}
TEXTS = embedding(1), embedding(2)
CHECKER = StandIn(
    to=lambda device: None,
    check_text_safety=lambda text: True,
    check_video_safety=lambda video: video,
)
SAFE = {"safety_checker": CHECKER}
IMAGE_TO_VIDEO = {"transformer": {"in_channels": 36, "image_dim": 4}}
NO_TEXTS = {"prompt": "a cat", "prompt_embeds": None, "negative_prompt_embeds": None}
BRIA = {
    "parts": {"text_encoder": StandIn(dtype=torch.float32)},
    "vae": WAN22,
    "methods": {
        "get_prompt_embeds": (embedding(1).repeat(1, 1, 2), [embedding(3)] * 3, ALL_WORDS.float())
    },
}
KARRAS = {"scheduler": {"use_karras_sigmas": True}}
MOTIF = {"guider": ClassifierFreeGuidance(), "scheduler": FlowMatchEulerDiscreteScheduler()}
SANA = Case(inputs={"use_resolution_binning": False, "negative_prompt": None})
CASES = {
    "AnyFlowFARPipeline": Case(inputs={"guidance_scale": 1.0, "negative_prompt_embeds": None}),
    "BriaFiboPipeline": Case(**BRIA, inputs={"prompt": '{"text": "a cat"}'}),
    "BriaFiboEditPipeline": Case(
        **BRIA,
        inputs={"prompt": '{"text": "a cat", "edit_instruction": "red"}', "_auto_resize": False},
    ),
    "ChronoEditPipeline": Case(IMAGE_TO_VIDEO, {"num_frames": 5}),
    "Cosmos2TextToImagePipeline": Case(SAFE | KARRAS | {"transformer": {"in_channels": 16}}),
    "Cosmos2VideoToWorldPipeline": Case(SAFE | KARRAS),
    "Cosmos2_5_PredictBasePipeline": Case(SAFE),
    "Cosmos2_5_TransferPipeline": Case(
        SAFE
        | {
            "transformer": {
                "img_context_dim_in": 32,
                "img_context_num_tokens": 4,
                "img_context_dim_out": 32,
                "controlnet_block_every_n": 1,
            }
        },
        # Three frames, of which the VAE drops two.
        {"controls": pictures(5), "num_frames": 3, "num_frames_per_chunk": 16},
    ),
    "Cosmos3OmniPipeline": Case(
        SAFE | {"text_tokenizer": StandIn(convert_tokens_to_ids=len, eos_token_id=2)},
        {"prompt": "a cat", "enable_safety_check": False},
        {"tokenize_prompt": ([3, 4, 5], [6, 7])},
    ),
    "HeliosPyramidPipeline": Case(
        {"scheduler": {"stages": 3, "stage_range": [0, 1 / 3, 2 / 3, 1]}},
        {"height": 128, "width": 128, "pyramid_num_inference_steps_list": [1, 1, 1]},
    ),
    "JoyImageEditPlusPipeline": Case(
        inputs=NO_TEXTS | {"images": [[picture(1), picture(2)]]},
        methods={"encode_prompt_multiple_images": (embedding(1), ALL_WORDS)},
    ),
    "Krea2Pipeline": Case(
        inputs={
            "prompt_embeds": torch.stack([embedding(seed) for seed in (1, 2, 3)], dim=2),
            "negative_prompt_embeds": torch.stack([embedding(seed) for seed in (4, 5, 6)], dim=2),
            "prompt_embeds_mask": ALL_WORDS.bool(),
            "negative_prompt_embeds_mask": ALL_WORDS.bool(),
        }
    ),
    "LucyEditPipeline": Case({"transformer": {"in_channels": 32}}, {"video": pictures(9)}),
    "MotifVideoPipeline": Case(MOTIF),
    "MotifVideoImage2VideoPipeline": Case(
        MOTIF,
        NO_TEXTS | {"prompt_attention_mask": None, "negative_prompt_attention_mask": None},
        {"encode_prompt": (*TEXTS, ALL_WORDS, ALL_WORDS)},
    ),
    "QwenImage21Pipeline": Case(
        {
            "processor": StandIn(
                apply_chat_template=lambda *_, **__: [[1]], tokenizer=StandIn(encode=lambda _: [1])
            )
        },
        {"output_resolution": SIDE},
        {"encode_prompt": (embedding(1), None, PICTURE_AMONG_WORDS)},
        QWEN21 | {"dim_mult": (1, 1, 2, 2, 2), "temporal_downsample": (False, True, True, True)},
    ),
    "QwenImageControlNetInpaintPipeline": Case({"controlnet": {"extra_condition_channels": 4}}),
    "QwenImageLayeredPipeline": Case(
        {
            "text_encoder": StandIn(dtype=torch.float32),
            "transformer": {"use_additional_t_cond": True, "use_layer3d_rope": True},
        },
        {"layers": 1, "image": picture(mode="RGBA")},
        {"get_image_caption": "a cat"},
        {"in_channels": 4, "out_channels": 4},
    ),
    "SanaImageToVideoPipeline": SANA,
    "SanaVideoPipeline": SANA,
    "SkyReelsV2DiffusionForcingPipeline": Case(inputs=NO_TEXTS, methods={"encode_prompt": TEXTS}),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Case(
        inputs={
            "video": pictures(7),
            "num_frames": 17,
            "base_num_frames": 5,
            "overlap_history": 3,
        }
    ),
    "SkyReelsV2ImageToVideoPipeline": Case(IMAGE_TO_VIDEO),
    "WanAnimatePipeline": Case(
        inputs={
            "pose_video": pictures(17),
            "face_video": pictures(17),
            "guidance_scale": 1.0,
        }
    ),
    "WanImageToVideoPipeline": Case(IMAGE_TO_VIDEO),
    "WanVACEPipeline": Case(inputs={"video": pictures(9), "mask": pictures(9)}),
    "WanVideoToVideoPipeline": Case(
        inputs={"video": pictures(7), "num_inference_steps": 4, "strength": 0.5}
    ),
}


def pipelines() -> list[str]:
    """The names of all pipelines that take a VAE of these classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = {name: getattr(diffusers, name, None) for name in dir(diffusers)}
    kinds = {
        name: kind
        for name, kind in exported.items()
        if isinstance(kind, type) and issubclass(kind, DiffusionPipeline)
    }
    return [name for name, kind in kinds.items() if wanted_classes(kind)]


def wanted_classes(kind: type[DiffusionPipeline]) -> list[type]:
    """The classes of its VAE that we can be, of all that a pipeline takes."""
    if "vae" not in signature(kind.__init__).parameters:
        return []
    return [vae for vae in CLASSES if vae in kind._get_signature_types()["vae"]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What diffusers warns of is not ours; falling back to its code would be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="the VAE runs the code of diffusers")
        yield


def model(**changes: object) -> WanVAE:
    """A small VAE whose videos have contrast."""
    statistics = {
        "latents_mean": tuple(0.1 * i - 0.8 for i in range(16)),
        "latents_std": tuple(0.5 + 0.1 * i for i in range(16)),
    }
    return tiny(z_dim=16, **statistics, **changes).float()


def build(kind: type[DiffusionPipeline], case: Case, vae: nn.Module) -> DiffusionPipeline:
    """A pipeline of tiny random parts around a VAE."""
    types, parts = kind._get_signature_types(), {}
    parameters = signature(kind.__init__).parameters
    for name, classes in types.items():
        optional = parameters[name].default is not Parameter.empty and name != "transformer"
        given = case.parts.get(name, {})
        buildable = [c for c in classes if c.__name__ in PARTS or "Scheduler" in c.__name__]
        if name == "vae":
            parts[name] = vae
        elif not isinstance(given, dict):
            parts[name] = given
        elif buildable and (given or not optional):
            parts[name] = make_part(buildable[0], given)
        elif not optional:
            parts[name] = None
    return kind(**parts, **case.options)


def make_part(kind: type, changes: dict[str, Any]) -> Any:
    """A component with random weights."""
    torch.manual_seed(0)
    part = kind(**PARTS.get(kind.__name__, {}) | changes)
    return part.eval() if isinstance(part, nn.Module) else part


@dataclass(frozen=True)
class Result:
    """What a pipeline gives: pictures or videos, and the last latents that its VAE decoded."""

    pictures: Tensor
    latents: Tensor
    decoded: Tensor


def run(kind: type[DiffusionPipeline], case: Case, vae: nn.Module) -> Result:
    """Runs a pipeline with this VAE."""
    pipeline = build(kind, case, vae)
    pipeline.set_progress_bar_config(disable=True)
    for name, value in (METHODS | case.methods).items():
        if hasattr(pipeline, name):
            setattr(pipeline, name, lambda *_, value=value, **__: value)
    parameters = signature(kind.__call__).parameters
    inputs = {name: value for name, value in INPUTS.items() if name in parameters} | case.inputs
    decoded, decode = [], vae.decode

    def record(latents: Tensor, **options: Any) -> Any:
        output = decode(latents, **options)
        decoded.append((latents, output[0]))
        return output

    vae.decode = record
    output = pipeline(**inputs, generator=torch.Generator().manual_seed(3), return_dict=False)[0]
    while isinstance(output, list):
        output = output[0]
    return Result(torch.as_tensor(output), *decoded[-1])


def differences(name: str) -> tuple[float, float]:
    """How far pictures and decoded videos of a pipeline are from the results of diffusers' VAE."""
    kind, case = getattr(diffusers, name), CASES.get(name, Case())
    vae = model(**case.vae).as_diffusers(wanted_classes(kind)[0].__name__)
    theirs = type(vae).from_config(vae.config).eval()
    theirs.load_state_dict(vae.state_dict())
    expected, result = run(kind, case, theirs), run(kind, case, vae)
    return (
        largest_difference(result.pictures, expected.pictures),
        largest_difference(result.decoded, expected.decoded),
    )


def largest_difference(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape and expected.std() > 0.01
    return (result.float() - expected.float()).abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize("name", pipelines())
def test_every_pipeline_gives_the_same_pictures(name: str) -> None:
    pictures, decoded = differences(name)
    print(f"{name}: pictures {pictures:.1e}, decoded {decoded:.1e}")
    assert decoded < CLOSE
    assert pictures < (ONE_LEVEL if name in ROUNDED else CLOSE)


def previewed() -> list[str]:
    """The names of all pipelines whose latents a tiny autoencoder may have."""
    named = {name: wanted_classes(getattr(diffusers, name))[0].__name__ for name in pipelines()}
    return [name for name, vae in named.items() if vae != QWEN_IMAGE_21_CLASS]


@pytest.mark.slow
@pytest.mark.parametrize("name", previewed())
def test_a_tiny_autoencoder_previews_in_every_pipeline(name: str) -> None:
    kind, case = getattr(diffusers, name), CASES.get(name, Case())
    channels, patch_size = case.vae.get("in_channels", 3), case.vae.get("patch_size", 1)
    vae = tiny_autoencoder(z_dim=16, channels=channels, patch_size=patch_size).float()
    result = run(kind, case, vae.as_diffusers(wanted_classes(kind)[0].__name__))
    assert torch.equal(result.decoded, vae.decode(result.latents))
    assert result.pictures.isfinite().all() and result.pictures.std() > 0.01
