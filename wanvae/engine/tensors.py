"""Tensors and dtypes as people give them."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from wanvae.errors import UserError

FLOATING = ("float32", "bfloat16", "float16", "float64")


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Returns a floating point dtype that is given as such, or as text like "bfloat16".

    Raises:
        UserError: it is neither.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is None:
        return None
    if not isinstance(dtype, torch.dtype | str) or name not in FLOATING:
        raise UserError(f"dtype must be one of {', '.join(FLOATING)}, not {dtype!r}")
    return getattr(torch, name)


def parse_given_dtype(
    dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None
) -> torch.dtype | None:
    """Returns the dtype that is given under one of its two names.

    Raises:
        UserError: both are given, or the dtype is unknown.
    """
    if dtype is not None and torch_dtype is not None:
        raise UserError("dtype and torch_dtype are the same: give one of them")
    return parse_dtype(torch_dtype if dtype is None else dtype)


def widest(*dtypes: torch.dtype | None) -> torch.dtype | None:
    """Returns the dtype that holds the values of all of ``dtypes`` except None; None if all are."""
    given = [dtype for dtype in dtypes if dtype is not None]
    return reduce(torch.promote_types, given) if given else None


def check_is_tensor(x: object, name: str) -> None:
    """Raises UserError, with what to do, if ``x`` is not a floating point tensor."""
    if not isinstance(x, Tensor):
        raise no_tensor(x, name)
    if not x.is_floating_point():
        raise UserError(f"{name} must be floating point, not {x.dtype}")


def check_is_indices(x: object, name: str) -> None:
    """Raises UserError, with what to do, if ``x`` is not a tensor of whole numbers."""
    if not isinstance(x, Tensor):
        raise no_tensor(x, name)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise UserError(f"{name} must be whole numbers, not {x.dtype}")


def no_tensor(x: object, name: str) -> UserError:
    """The error for something that is given instead of a tensor."""
    kind = type(x).__name__
    hint = f"give {name} as a torch.Tensor"
    if kind == "ndarray":
        hint = f"give torch.from_numpy({name})"
    elif hasattr(x, "mode") and hasattr(x, "sample"):
        hint = "give its mode() or sample()"
    return UserError(f"{name} must be a tensor, not {kind}: {hint}")
