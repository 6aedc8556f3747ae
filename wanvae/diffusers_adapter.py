"""Our models as the VAE of a diffusers pipeline. No other file imports diffusers.

``make_diffusers_vae`` returns a VAE of diffusers' own class with the parameters of a WanVAE: the
same tensors by other names. Saving, loading, config, hooks and offloading are diffusers' own. Only
``_encode`` and ``_decode`` of this one object are replaced, by the methods of a ``Bridge``.
``make_diffusers_preview`` does the same with a tiny autoencoder, whose parameters keep their names.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

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
from wanvae.config import WAN22, WanVAEConfig
from wanvae.engine.config import check_option
from wanvae.errors import UserError
from wanvae.execution.budget import parse_memory
from wanvae.execution.limits import Memory, TileSize
from wanvae.nn import State, Unpatchify
from wanvae.tiny_config import TinyVAEConfig

DiffusersVAE: TypeAlias = "AutoencoderKLWan | AutoencoderKLQwenImage"
# The modules of diffusers that encode and that decode.
ENCODING = ("encoder", "quant_conv")
DECODING = ("post_quant_conv", "decoder")
# Other dtypes only store parameters.
COMPUTING_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Address, dtype and device.
Place: TypeAlias = "tuple[int, torch.dtype, torch.device]"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Autoencoder(Protocol):
    """The methods and attributes that the adapter uses of every model."""

    @property
    def config(self) -> WanVAEConfig | TinyVAEConfig: ...

    def encode_moments(
        self, video: Tensor, *, tile_size: TileSize | None, max_memory: Memory | None
    ) -> Tensor: ...

    def decode(
        self, latents: Tensor, *, tile_size: TileSize | None, max_memory: Memory | None
    ) -> Tensor: ...

    def check_video(self, video: Tensor) -> None: ...


class VAE(Autoencoder, Protocol):
    """The methods and attributes that the adapter uses of a ``WanVAE``."""

    training: bool

    @property
    def config(self) -> WanVAEConfig: ...

    def check_latents(self, latents: Tensor) -> None: ...

    def encode_step(self, video: Tensor, state: State) -> tuple[Tensor, State]: ...

    def decode_step(self, latents: Tensor, state: State) -> tuple[Tensor, State]: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def state_dict(self, *, keep_vars: bool) -> dict[str, Tensor]: ...


class TinyAutoencoder(Autoencoder, Protocol):
    """The methods and attributes that the adapter uses of a ``TinyVAE``."""

    training: bool

    @property
    def config(self) -> TinyVAEConfig: ...

    @property
    def encoder(self) -> nn.Module | None: ...

    @property
    def decoder(self) -> nn.Module: ...


Ours = TypeVar("Ours", bound=Autoencoder)


def make_diffusers_vae(vae: VAE, class_name: DiffusersClass) -> DiffusersVAE:
    """Returns a VAE of this class of diffusers that shares the parameters of ``vae``.

    Raises:
        UserError: the class cannot express the architecture.
    """
    config = vae.config
    theirs = make_empty(config, class_name)
    names = diffusers_names(len(config.dim_mult), config.num_res_blocks, config.stage_shortcuts)
    for name, tensor in vae.state_dict(keep_vars=True).items():
        layer, _, leaf = names[name].rpartition(".")
        twin = theirs.get_submodule(layer)
        twin.register_parameter(leaf, in_shape_of(getattr(twin, leaf), tensor))
    theirs.train(vae.training)
    bridge = SharingBridge(vae, theirs, names)
    theirs.register_load_state_dict_post_hook(bridge.share)
    put(bridge, theirs)
    return theirs


def make_diffusers_preview(vae: TinyAutoencoder, class_name: DiffusersClass) -> DiffusersVAE:
    """Returns a VAE of this class of diffusers that has the layers of a tiny autoencoder.

    The tiny autoencoder shares the latents of a Wan VAE, and the result has the config of this VAE.

    Raises:
        UserError: the class has no such latents.
    """
    theirs = make_empty(full_config(vae.config), class_name)
    layers = {
        "encoder": vae.encoder or nn.Identity(),
        "quant_conv": nn.Identity(),
        "post_quant_conv": nn.Identity(),
        "decoder": vae.decoder,
    }
    for name, layer in layers.items():
        setattr(theirs, name, layer)
    theirs.train(vae.training)
    bridge = PreviewBridge(vae, theirs)
    put(bridge, theirs)
    theirs.save_pretrained = bridge.save_pretrained
    return theirs


def make_empty(config: WanVAEConfig, class_name: DiffusersClass) -> DiffusersVAE:
    """Returns a VAE of diffusers whose parameters are on no device.

    Raises:
        UserError: the class cannot express the architecture.
    """
    check_option("class_name", class_name, DiffusersClass)
    for difference in diffusers_differences(config, class_name):
        raise UserError(
            f"{class_name} of diffusers has no {difference}; encode and decode with the methods "
            "of the model itself"
        )
    kind = getattr(diffusers, class_name, None)
    if kind is None:
        raise UserError(f"diffusers {diffusers.__version__} has no {class_name}; upgrade it")
    content = CONTENTS[class_name](config)
    with torch.device("meta"):
        return kind(**{k: v for k, v in content.items() if not k.startswith("_")})


def full_config(config: TinyVAEConfig) -> WanVAEConfig:
    """Returns the config of the Wan VAE whose latents a tiny autoencoder shares.

    Raises:
        UserError: there is no such Wan VAE.
    """
    for full in (WanVAEConfig(), WAN22):
        factors = (full.temporal_factor, full.spatial_factor, full.patch_size)
        if factors == (config.temporal_factor, config.spatial_factor, config.patch_size):
            return replace(
                full,
                z_dim=config.z_dim,
                in_channels=config.channels,
                out_channels=config.channels,
                latents_mean=config.latents_mean,
                latents_std=config.latents_std,
            )
    raise UserError(
        f"no VAE of diffusers has latents of {config.temporal_factor} frames and "
        f"{config.spatial_factor} pixels; decode with the methods of the TinyVAE itself"
    )


def put(bridge: Bridge[Any], theirs: DiffusersVAE) -> None:
    """Puts the methods of a bridge in place of the methods of a VAE of diffusers."""
    replaced: dict[str, Any] = {
        "_encode": bridge.encode,
        "_decode": bridge.decode,
        "tiled_encode": bridge.tiled_encode,
        "tiled_decode": bridge.tiled_decode,
        "enable_tiling": bridge.enable_tiling,
    }
    for name, method in replaced.items():
        setattr(theirs, name, method)


class Bridge(Generic[Ours]):
    """Runs a model of ours in place of the code of a diffusers VAE.

    Attributes:
        ours: the model that does the work.
        max_memory: bytes, the limit that ``enable_tiling`` was given.
    """

    def __init__(self, ours: Ours, theirs: DiffusersVAE) -> None:
        self.ours = ours
        self.max_memory: int | None = None
        # Weak, because a circle would keep the memory of a deleted pipeline.
        self._reference = weakref.ref(theirs)
        self._kinds = {name: type(layer) for name, layer in theirs.named_modules()}
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

        Raises:
            UserError: the text cannot be read.
        """
        limit = None if max_memory is None else parse_memory(max_memory)
        self._own("enable_tiling")(
            tile_sample_min_height,
            tile_sample_min_width,
            tile_sample_stride_height,
            tile_sample_stride_width,
        )
        self.max_memory = limit

    def encode(self, x: Tensor) -> Tensor:
        """Returns the moments ``(B, 2 * z_dim, 1 + n, H / 8, W / 8)`` of a video.

        Args:
            x: a video ``(B, C, T, H, W)`` in [-1, 1]. Of a T that is not 1 + 4n, the last frames
                are dropped, with a warning.
        """
        return self._encode(x, tiled=self._theirs.use_tiling)

    def tiled_encode(self, x: Tensor) -> Tensor:
        """Returns what ``encode`` returns, computed in tiles."""
        return self._encode(x, tiled=True)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Returns the video in [-1, 1] of raw latents ``(B, z_dim, 1 + n, H, W)``.

        Returns:
            ``sample``, the video ``(B, C, 1 + 4n, 8H, 8W)``; a tuple of it without
            ``return_dict``.
        """
        return self._output(self._decode(z, tiled=self._theirs.use_tiling), return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Returns what ``decode`` returns, computed in tiles."""
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
        return ours.encode_moments(
            self._whole_groups(x), **self._limits(tiled, ours.config.spatial_factor)
        )

    def _decode(self, z: Tensor, *, tiled: bool) -> Tensor:
        return self.ours.decode(z, **self._limits(tiled, self.ours.config.decoded_spatial_factor))

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

    def _change(self, parts: Iterable[str]) -> str | None:
        """Returns what our model cannot do that these parts are now told to do, or None."""
        for name, layer in self._layers(parts):
            if type(layer) is not self._kinds.get(name):
                return f"{name} was replaced"
            if is_hooked(layer):
                return f"{name} has a hook"
            if not all(map(is_plain, layer.parameters(recurse=False))):
                return f"the parameters of {name} are not plain tensors of a float dtype"
        return None

    def _layers(self, parts: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
        for part in parts:
            yield from self._theirs.get_submodule(part).named_modules(prefix=part)

    def _output(self, video: Tensor, return_dict: bool) -> DecoderOutput | tuple[Tensor]:
        return DecoderOutput(sample=video) if return_dict else (video,)

    def _tell(self, kind: str, message: str) -> None:
        """Warns of one kind of event, the first time that it happens."""
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(message, stacklevel=4)


class SharingBridge(Bridge[VAE]):
    """Runs a WanVAE in place of the code of a diffusers VAE that has the same parameters.

    The code of diffusers runs where ours cannot do what is asked; a warning says so once.
    """

    def __init__(self, ours: VAE, theirs: DiffusersVAE, names: Mapping[str, str]) -> None:
        super().__init__(ours, theirs)
        layers = {name.rpartition(".")[0] for name in ours.state_dict(keep_vars=True)}
        self._twins = {
            theirs_name.rpartition(".")[0]: name.rpartition(".")[0]
            for name, theirs_name in names.items()
            if name.rpartition(".")[0] in layers
        }
        # Where the parameters of both models were, by layer and name in diffusers.
        self._places: dict[tuple[str, str], Place] = {}
        # Views of parameters have no gradients that reach the parameters.
        self._flat = theirs.get_submodule("quant_conv").get_parameter("weight").dim() == 4
        self.share()

    def share(self, *_: object) -> None:
        """Gives both models the same parameters, except in layers that we cannot run."""
        for name, layer in self._layers(ENCODING + DECODING):
            if name in self._twins and type(layer) is self._kinds[name] and not is_hooked(layer):
                self._share(name, layer)

    def encode(self, x: Tensor) -> Tensor:
        if self._must_run_theirs(x, ENCODING):
            return self._own("_encode")(self._in_dtype(x, ENCODING))
        return super().encode(x)

    def tiled_encode(self, x: Tensor) -> Tensor:
        in_patches = x.shape[1] != self.ours.config.in_channels  # as diffusers calls it
        if in_patches or self._must_run_theirs(x, ENCODING):
            return self._own("tiled_encode")(self._in_dtype(x, ENCODING))
        return super().tiled_encode(x)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        if self._must_run_theirs(z, DECODING):
            (video,) = self._own("_decode")(self._in_dtype(z, DECODING), return_dict=False)
            return self._output(self._upscaled(video), return_dict)
        return super().decode(z, return_dict)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        if self._must_run_theirs(z, DECODING):
            (video,) = self._own("tiled_decode")(self._in_dtype(z, DECODING), return_dict=False)
            return self._output(self._upscaled(video), return_dict)
        return super().tiled_decode(z, return_dict)

    def _encode(self, x: Tensor, *, tiled: bool) -> Tensor:
        if not self._keeps_gradients(x, ENCODING, tiled):
            return super()._encode(x, tiled=tiled)
        self.ours.check_video(x)
        x = self._like_parameters(self._whole_groups(x), ENCODING)
        return self.ours.encode_step(x, None)[0]

    def _decode(self, z: Tensor, *, tiled: bool) -> Tensor:
        if not self._keeps_gradients(z, DECODING, tiled):
            return super()._decode(z, tiled=tiled)
        self.ours.check_latents(z)
        video, _ = self.ours.decode_step(self._like_parameters(z, DECODING), None)
        return video.clamp(-1, 1)

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
        reason = self._change(parts) or self._reason_for_theirs(x, parts)
        if reason is None:
            return False
        message = f"the VAE runs the code of diffusers, with its tiles, because {reason}"
        self._tell("diffusers", message)
        return True

    def _change(self, parts: Iterable[str]) -> str | None:
        self.share()
        return super()._change(parts)

    def _reason_for_theirs(self, x: Tensor, parts: Iterable[str]) -> str | None:
        """Returns why the code of diffusers must run with layers as they were, or None."""
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

    def _share(self, name: str, layer: nn.Module) -> None:
        """Gives the layers of both models the same parameters: those that came last."""
        twin = self.ours.get_submodule(self._twins[name])
        for leaf, theirs in layer.named_parameters(recurse=False):
            ours = getattr(twin, leaf)
            # A layer that our model only stores has buffers.
            if not isinstance(ours, nn.Parameter) or type(theirs) is not nn.Parameter:
                continue
            is_view = ours.dim() != theirs.dim() and place_of(ours) == place_of(theirs)
            differ = ours is not theirs and not is_view
            if differ and place_of(theirs) == self._places.get((name, leaf)):
                theirs = in_shape_of(theirs, ours)
                layer.register_parameter(leaf, theirs)
            elif differ:
                twin.register_parameter(leaf, in_shape_of(ours, theirs))
            self._places[name, leaf] = place_of(theirs)

    def _in_dtype(self, x: Tensor, parts: tuple[str, str]) -> Tensor:
        """Returns ``x`` in the dtype that these parts compute in."""
        return x.to(get_parameter_dtype(self._theirs.get_submodule(parts[0])))

    def _upscaled(self, video: Tensor) -> Tensor:
        """Returns a video of diffusers without the pixels of a larger video in its channels."""
        config = self.ours.config
        if video.shape[1] == config.out_channels:
            return video
        return Unpatchify(config.upscale_factor, rows_first=True)(video)


class PreviewBridge(Bridge[TinyAutoencoder]):
    """Runs a tiny autoencoder in place of the code of a diffusers VAE that has its layers.

    There is no code of diffusers for such layers, so what ours cannot do is an error.
    """

    def save_pretrained(self, *_: object, **__: object) -> None:
        """Raises UserError, because no class of diffusers could load the files."""
        raise UserError(
            "diffusers has no class for a tiny autoencoder, so the files could not be loaded: save "
            "it with save_pretrained of the TinyVAE, and a pipeline with the VAE of its model"
        )

    @torch.compiler.disable
    def _encode(self, x: Tensor, *, tiled: bool) -> Tensor:
        self._check(x, ENCODING)
        return super()._encode(x, tiled=tiled)

    @torch.compiler.disable
    def _decode(self, z: Tensor, *, tiled: bool) -> Tensor:
        self._check(z, DECODING)
        return super()._decode(z, tiled=tiled)

    def _check(self, x: Tensor, parts: Iterable[str]) -> None:
        change = self._change(parts)
        if change is not None:
            raise UserError(
                f"a tiny autoencoder cannot run because {change}; it is small, so leave it whole: "
                "without hooks, other layers and dtypes that only store"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise UserError(
                "a tiny autoencoder keeps no gradients; call it inside torch.no_grad(), or take "
                "the VAE of its model"
            )


def place_of(parameter: nn.Parameter) -> Place:
    """Returns what differs between parameters that do not share memory."""
    return parameter.data_ptr(), parameter.dtype, parameter.device


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
