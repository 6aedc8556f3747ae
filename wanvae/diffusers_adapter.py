"""A WanVAE as the VAE of a diffusers pipeline. No other file imports diffusers.

``make_diffusers_vae`` returns a VAE of diffusers' own class with the parameters of a WanVAE: the
same tensors by other names. Saving, loading, config, hooks and offloading are diffusers' own. Only
``_encode`` and ``_decode`` of this one object are replaced, by the methods of a ``Bridge``.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import Tensor, nn

from wanvae.checkpoints.diffusers_layout import (
    CONTENTS,
    DiffusersClass,
    diffusers_names,
)
from wanvae.checkpoints.formats import diffusers_differences
from wanvae.config import WanVAEConfig
from wanvae.engine.config import check_option
from wanvae.errors import UserError
from wanvae.execution.limits import Memory, TileSize
from wanvae.nn import State, Unpatchify
from wanvae.posterior import Posterior

DiffusersVAE: TypeAlias = "AutoencoderKLWan | AutoencoderKLQwenImage"
# The modules of diffusers that encode and that decode.
ENCODING = ("encoder", "quant_conv")
DECODING = ("post_quant_conv", "decoder")
# Other dtypes only store parameters.
COMPUTING_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class VAE(Protocol):
    """The methods and attributes of a ``WanVAE`` that the adapter uses."""

    config: WanVAEConfig
    training: bool

    def encode(
        self, video: Tensor, *, tile_size: TileSize | None, max_memory: Memory | None
    ) -> Posterior: ...

    def decode(
        self, latents: Tensor, *, tile_size: TileSize | None, max_memory: Memory | None
    ) -> Tensor: ...

    def check_video(self, video: Tensor) -> None: ...

    def check_latents(self, latents: Tensor) -> None: ...

    def encode_step(self, video: Tensor, state: State) -> tuple[Tensor, State]: ...

    def decode_step(self, latents: Tensor, state: State) -> tuple[Tensor, State]: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def state_dict(self, *, keep_vars: bool) -> dict[str, Tensor]: ...


def make_diffusers_vae(vae: VAE, class_name: DiffusersClass) -> DiffusersVAE:
    """Returns a VAE of this class of diffusers that shares the parameters of ``vae``.

    Raises:
        UserError: the class cannot express the architecture.
    """
    config = vae.config
    check_option("class_name", class_name, DiffusersClass)
    for difference in diffusers_differences(config, class_name):
        raise UserError(
            f"{class_name} of diffusers has no {difference}; encode and decode with the methods "
            "of the WanVAE itself"
        )
    kind = getattr(diffusers, class_name, None)
    if kind is None:
        raise UserError(f"diffusers {diffusers.__version__} has no {class_name}; upgrade it")
    content = CONTENTS[class_name](config)
    with torch.device("meta"):
        theirs = kind(**{k: v for k, v in content.items() if not k.startswith("_")})
    names = diffusers_names(len(config.dim_mult), config.num_res_blocks, config.stage_shortcuts)
    for name, tensor in vae.state_dict(keep_vars=True).items():
        layer, _, leaf = names[name].rpartition(".")
        twin = theirs.get_submodule(layer)
        twin.register_parameter(leaf, in_shape_of(getattr(twin, leaf), tensor))
    theirs.train(vae.training)
    bridge = Bridge(vae, theirs, names)
    replaced: dict[str, Any] = {
        "_encode": bridge.encode,
        "_decode": bridge.decode,
        "tiled_encode": bridge.tiled_encode,
        "tiled_decode": bridge.tiled_decode,
        "enable_tiling": bridge.enable_tiling,
    }
    for name, method in replaced.items():
        setattr(theirs, name, method)
    return theirs


class Bridge:
    """Runs a WanVAE in place of the code of a diffusers VAE that has the same parameters.

    The code of diffusers runs where ours cannot do what is asked; a warning says so once.

    Attributes:
        ours: the model that does the work.
        max_memory: the limit that ``enable_tiling`` was given.
    """

    def __init__(self, ours: VAE, theirs: DiffusersVAE, names: Mapping[str, str]) -> None:
        self.ours = ours
        self.max_memory: Memory | None = None
        # Weak, because a circle would keep the memory of a deleted pipeline.
        self._reference = weakref.ref(theirs)
        self._kinds = {name: type(layer) for name, layer in theirs.named_modules()}
        layers = {name.rpartition(".")[0] for name in ours.state_dict(keep_vars=True)}
        self._twins = {
            theirs_name.rpartition(".")[0]: name.rpartition(".")[0]
            for name, theirs_name in names.items()
            if name.rpartition(".")[0] in layers
        }
        # Views of parameters have no gradients that reach the parameters.
        self._flat = theirs.get_submodule("quant_conv").get_parameter("weight").dim() == 4
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_reference": self._theirs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _reference=weakref.ref(state["_reference"]))

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
        *,
        max_memory: Memory | None = None,
    ) -> None:
        """Encodes and decodes in tiles from now on. The result equals the result of whole frames.

        Args:
            tile_sample_min_height, tile_sample_min_width: sides of the largest tile in pixels,
                rounded down to whole latents; None keeps the size, 256 at first.
            tile_sample_stride_height, tile_sample_stride_width: used only where the code of
                diffusers runs, because exact tiles are not blended.
            max_memory: text like "4GB", or bytes. Steps and tiles are chosen to fit this limit,
                and the tile size is not used.
        """
        self._own("enable_tiling")(
            tile_sample_min_height,
            tile_sample_min_width,
            tile_sample_stride_height,
            tile_sample_stride_width,
        )
        self.max_memory = max_memory

    def encode(self, x: Tensor) -> Tensor:
        """Returns the moments ``(B, 2 * z_dim, 1 + n, H / 8, W / 8)`` of a video.

        Args:
            x: a video ``(B, C, T, H, W)`` in [-1, 1]. Of a T that is not 1 + 4n, the last frames
                are dropped, with a warning.
        """
        if self._must_run_theirs(x, ENCODING):
            return self._own("_encode")(self._in_dtype(x, ENCODING))
        return self._encode(x, tiled=self._theirs.use_tiling)

    def tiled_encode(self, x: Tensor) -> Tensor:
        """Returns what ``encode`` returns, computed in tiles.

        Args:
            x: as for ``encode``, or already in patches, as diffusers has it here.
        """
        in_patches = x.shape[1] != self.ours.config.in_channels
        if in_patches or self._must_run_theirs(x, ENCODING):
            return self._own("tiled_encode")(self._in_dtype(x, ENCODING))
        return self._encode(x, tiled=True)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Returns the video in [-1, 1] of raw latents ``(B, z_dim, 1 + n, H, W)``.

        Returns:
            ``sample``, the video ``(B, C, 1 + 4n, 8H, 8W)``; a tuple of it without
            ``return_dict``.
        """
        if self._must_run_theirs(z, DECODING):
            (video,) = self._own("_decode")(self._in_dtype(z, DECODING), return_dict=False)
            return self._output(self._upscaled(video), return_dict)
        return self._output(self._decode(z, tiled=self._theirs.use_tiling), return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Returns what ``decode`` returns, computed in tiles."""
        if self._must_run_theirs(z, DECODING):
            (video,) = self._own("tiled_decode")(self._in_dtype(z, DECODING), return_dict=False)
            return self._output(self._upscaled(video), return_dict)
        return self._output(self._decode(z, tiled=True), return_dict)

    @property
    def _theirs(self) -> DiffusersVAE:
        theirs = self._reference()
        assert theirs is not None, "the VAE of diffusers owns this bridge"
        return theirs

    def _own(self, name: str) -> Callable[..., Any]:
        """Returns a method of the class of diffusers, which the object has replaced by ours."""
        return partial(getattr(type(self._theirs), name), self._theirs)

    def _encode(self, x: Tensor, *, tiled: bool) -> Tensor:
        ours = self.ours
        ours.check_video(x)
        x = self._whole_groups(x)
        if self._keeps_gradients(x, ENCODING, tiled):
            return ours.encode_step(self._like_parameters(x, ENCODING), None)[0]
        posterior = ours.encode(x, **self._limits(tiled, ours.config.spatial_factor))
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def _decode(self, z: Tensor, *, tiled: bool) -> Tensor:
        ours = self.ours
        if self._keeps_gradients(z, DECODING, tiled):
            ours.check_latents(z)
            video, _ = ours.decode_step(self._like_parameters(z, DECODING), None)
            return video.clamp(-1, 1)
        return ours.decode(z, **self._limits(tiled, ours.config.decoded_spatial_factor))

    def _whole_groups(self, x: Tensor) -> Tensor:
        """Returns a video without the last frames that do not fill a latent."""
        frames, factor = x.shape[2], self.ours.config.temporal_factor
        dropped = (frames - 1) % factor
        if not dropped:
            return x
        self._tell(
            "frames",
            f"the VAE encodes 1 + {factor}n frames, so it drops the last {dropped} of {frames}, "
            "as diffusers does",
        )
        return x[:, :, :-dropped]

    def _limits(self, tiled: bool, factor: int) -> dict[str, Any]:
        """Returns the limits of a call, with tile sizes that are multiples of ``factor``."""
        theirs = self._theirs
        limited = tiled and self.max_memory is not None
        sides = theirs.tile_sample_min_height, theirs.tile_sample_min_width
        height, width = (max(1, side // factor) * factor for side in sides)
        return {
            "tile_size": (height, width) if tiled and not limited else None,
            "max_memory": self.max_memory if limited else None,
        }

    def _keeps_gradients(self, x: Tensor, parts: Iterable[str], tiled: bool) -> bool:
        """Returns whether autograd records this call."""
        recorded = self._records_gradients(x, parts)
        if recorded and tiled:
            self._tell(
                "gradients",
                "tiles and max_memory are not used while gradients are recorded; call the VAE "
                "inside torch.no_grad() if no gradients are needed",
            )
        return recorded

    def _records_gradients(self, x: Tensor, parts: Iterable[str]) -> bool:
        return torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self._parameters(parts))
        )

    def _must_run_theirs(self, x: Tensor, parts: Iterable[str]) -> bool:
        """Returns whether the code of diffusers must run. If not, the parameters are shared."""
        if torch.compiler.is_compiling():
            return True
        reason = self._reason_for_theirs(x, parts)
        if reason is None:
            self._share(parts)
            return False
        message = f"the VAE runs the code of diffusers, with its tiles, because {reason}"
        self._tell("diffusers", message)
        return True

    def _reason_for_theirs(self, x: Tensor, parts: Iterable[str]) -> str | None:
        """Returns why the code of diffusers must run, or None."""
        for name, layer in self._layers(parts):
            if type(layer) is not self._kinds.get(name):
                return f"{name} was replaced"
            if is_hooked(layer):
                return f"{name} has a hook"
            if not all(map(is_plain, layer.parameters(recurse=False))):
                return f"the parameters of {name} are not plain tensors of a float dtype"
        if type(x) is not Tensor:
            return f"its input is a {type(x).__name__}"
        if self._flat and self._records_gradients(x, parts):
            return "gradients are recorded, and its convolutions are 2D"
        config = self.ours.config
        if config.dropout and (self._theirs.training or self.ours.training):
            return "dropout is active in training mode"
        factor = config.spatial_factor
        if "encoder" in parts and any(side % factor for side in x.shape[3:]):
            return f"{'x'.join(map(str, x.shape[3:]))} is not a multiple of {factor}"
        return None

    def _parameters(self, parts: Iterable[str]) -> Iterator[nn.Parameter]:
        for part in parts:
            yield from self._theirs.get_submodule(part).parameters()

    def _like_parameters(self, x: Tensor, parts: Iterable[str]) -> Tensor:
        """Returns ``x`` on the device and in the dtype of the parameters."""
        parameter = next(self._parameters(parts))
        return x.to(parameter.device, parameter.dtype)

    def _layers(self, parts: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
        for part in parts:
            yield from self._theirs.get_submodule(part).named_modules(prefix=part)

    def _share(self, parts: Iterable[str]) -> None:
        """Gives our model the parameters that the model of diffusers has now."""
        for name, layer in self._layers(parts):
            for leaf, parameter in layer.named_parameters(recurse=False):
                twin = self.ours.get_submodule(self._twins[name])
                present = getattr(twin, leaf)
                # A layer that our model only stores has buffers.
                if isinstance(present, nn.Parameter) and present is not parameter:
                    twin.register_parameter(leaf, in_shape_of(present, parameter))

    def _in_dtype(self, x: Tensor, parts: tuple[str, str]) -> Tensor:
        """Returns ``x`` in the dtype that these parts compute in."""
        return x.to(get_parameter_dtype(self._theirs.get_submodule(parts[0])))

    def _upscaled(self, video: Tensor) -> Tensor:
        """Returns a video of diffusers without the pixels of a larger video in its channels."""
        config = self.ours.config
        if video.shape[1] == config.out_channels:
            return video
        return Unpatchify(config.upscale_factor, rows_first=True)(video)

    def _output(self, video: Tensor, return_dict: bool) -> DecoderOutput | tuple[Tensor]:
        return DecoderOutput(sample=video) if return_dict else (video,)

    def _tell(self, kind: str, message: str) -> None:
        """Warns of one kind of event, the first time that it happens."""
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(message, stacklevel=4)


def in_shape_of(like: Tensor, tensor: Tensor) -> nn.Parameter:
    """Returns a parameter, or a view of it with or without an axis of time, as ``like`` has it."""
    if tensor.dim() == like.dim():
        return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
    values = tensor.detach()
    view = values[:, :, None] if tensor.dim() < like.dim() else values[:, :, 0]
    return nn.Parameter(view, tensor.requires_grad)


def is_hooked(layer: nn.Module) -> bool:
    """Returns whether calling a layer does more than its class says."""
    forward = getattr(layer.forward, "__func__", None)
    hooks = any(getattr(layer, name) for name in HOOKS)
    return hooks or layer._compiled_call_impl is not None or forward is not type(layer).forward


def is_plain(parameter: nn.Parameter) -> bool:
    """Returns whether a parameter is a tensor that our layers can compute with."""
    return (
        type(parameter) is nn.Parameter
        and parameter.dtype in COMPUTING_DTYPES
        and parameter.device.type != "meta"
    )
