"""What programs compute for each value, in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_floats(pointer, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Reads one value for each of some channels, the same for all rows; zeros if there are none."""
    if pointer is None:
        values = tl.full((ROWS, channels.shape[0]), 0, tl.float32)
    else:
        # In the layout of the rows, so that no thread needs values of another one.
        pointers = tl.broadcast_to((pointer + channels)[None, :], (ROWS, channels.shape[0]))
        mask = tl.broadcast_to((channels < CHANNELS)[None, :], (ROWS, channels.shape[0]))
        values = tl.load(pointers, mask=mask, other=0).to(tl.float32)
    return values


@triton.jit
def invert_norm(squares):
    """Returns ``1 / max(norm, 1e-12)`` from sums of squares."""
    # Unlike a maximum, this keeps NaN.
    return tl.rsqrt(tl.where(squares < 1e-24, 1e-24, squares))


@triton.jit
def norm_slope(squares):
    """Returns 1 where ``invert_norm`` follows the norm, and 0 where it is at its limit."""
    return tl.where(squares < 1e-24, 0.0, 1.0)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Applies "none", "silu" or "relu"."""
    if ACTIVATION == "silu":
        x = x * sigmoid(x)
    elif ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    else:
        tl.static_assert(ACTIVATION == "none")
    return x


@triton.jit
def differentiate(x, ACTIVATION: tl.constexpr):
    """Returns the derivative of ``activate`` at ``x``."""
    if ACTIVATION == "silu":
        gate = sigmoid(x)
        slope = gate * (1 + x * (1 - gate))
    elif ACTIVATION == "relu":
        slope = tl.where(x > 0, 1.0, 0.0)
    else:
        tl.static_assert(ACTIVATION == "none")
        slope = tl.full(x.shape, 1, tl.float32)
    return slope


@triton.jit
def sigmoid(x):
    """Returns ``1 / (1 + exp(-x))``."""
    # A division takes more instructions.
    root = tl.rsqrt(1 + tl.exp(-x))
    return root * root
