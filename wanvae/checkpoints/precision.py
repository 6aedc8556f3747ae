"""Tensors that are stored in fewer bits than a model computes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from wanvae.engine.stored_tensors import StoredTensors
from wanvae.errors import UserError

FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
# What models are converted to if nobody asks for a dtype.
DEFAULT_DTYPE = torch.bfloat16
WEIGHT = "weight"
# Ends of the names of scales. The weight is what is stored times the scale.
SCALES = ("scale_weight", "weight_scale")
# Ends of the names of what only matters for computing in float8.
COMPUTING = ("scale_input", "input_scale", "comfy_quant", "scaled_fp8")


def is_scale(name: str) -> bool:
    """Returns whether a tensor is the scale of a weight, or belongs to a scale."""
    return name.rsplit(".", 1)[-1] in SCALES + COMPUTING


def scale_names(tensors: StoredTensors) -> dict[str, str]:
    """Returns the name of the scale of each scaled weight.

    Raises:
        UserError: the weight of a scale is missing, or does not fit it.
    """
    found: dict[str, str] = {}
    for name in tensors:
        layer, _, end = name.rpartition(".")
        if end in SCALES:
            weight = f"{layer}.{WEIGHT}" if layer else WEIGHT
            if weight not in tensors:
                raise UserError(f"{name} is the scale of {weight}, which is missing")
            check_scale(tensors.outline[weight], tensors.outline[name], weight)
            found[weight] = name
    return found


def storage_kinds(tensors: StoredTensors, quantized: Mapping[str, str]) -> Counter[str]:
    """Returns how many tensors are stored in each dtype or quantized type.

    Args:
        quantized: the types of quantized tensors by their names.
    """
    return Counter(
        quantized.get(name, str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.outline.items()
    )


def widen(
    tensors: StoredTensors, quantized: Mapping[str, str], dtype: torch.dtype | None
) -> tuple[StoredTensors, tuple[str, ...]]:
    """Returns tensors in a dtype that models compute in, without their scales, and notes.

    Nothing changes if no tensor is stored in float8, scaled or quantized.

    Args:
        quantized: the types of quantized tensors by their names.
        dtype: the dtype of all floating point tensors; None is bfloat16.

    Raises:
        UserError: a scale does not fit its weight.
    """
    scales = scale_names(tensors)
    reduced = {
        name: quantized.get(name, str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.outline.items()
        if name in quantized or name in scales or tensor.dtype in FLOAT8
    }
    model = tensors.renamed({name: name for name in tensors if not is_scale(name)})
    if not reduced.keys() & model.outline.keys():
        return model, ()
    target = dtype or DEFAULT_DTYPE

    def change(name: str, tensor: Tensor) -> Tensor:
        if name not in scales:
            return tensor.to(target)
        return scaled(tensor, tensors[scales[name]]).to(target)

    changing = [n for n, t in model.outline.items() if t.is_floating_point() or n in scales]
    kinds = ", ".join(sorted({reduced[name] for name in reduced if name in model.outline}))
    note = (
        f"precision: stored in {kinds}{', with scales that were applied' if scales else ''}; "
        f"converted to {str(target).removeprefix('torch.')}"
        f"{', because no dtype was asked for' if dtype is None else ''}"
    )
    return model.changed(dict.fromkeys(changing, target), change), (note,)


def check_scale(weight: Tensor, scale: Tensor, name: str) -> None:
    """Raises UserError if a scale is neither one number nor one for each output channel."""
    if scale.numel() != 1 and scale.numel() not in weight.shape[:1]:
        raise UserError(
            f"the scale of {name} has the shape {tuple(scale.shape)}, but the weight "
            f"{tuple(weight.shape)}"
        )


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns a weight times its scale, which is one number or one for each output channel."""
    if scale.numel() == 1:
        return weight.float() * scale.float().reshape(())
    return weight.float() * scale.float().reshape(-1, *(1,) * (weight.dim() - 1))
