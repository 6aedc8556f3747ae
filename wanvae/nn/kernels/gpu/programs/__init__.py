"""The operators in Triton, for tensors of a GPU in float32, bfloat16 and float16.

Each operator is one program, except ``norm_activate_backward``, which adds up parts of a gradient
at its end. A program reads each value of its inputs once and writes each value of its outputs once.
It computes in float32 and rounds once. Inputs may have any strides; outputs have their channels
innermost. The settings of a program, which are chosen by time, never change its numbers.
"""

from wanvae.nn.kernels.gpu.programs.adding import add_
from wanvae.nn.kernels.gpu.programs.gradients import norm_activate_backward
from wanvae.nn.kernels.gpu.programs.interleaving import interleave, interleave_frames
from wanvae.nn.kernels.gpu.programs.joining import join
from wanvae.nn.kernels.gpu.programs.phases import make_phases

__all__ = [
    "add_",
    "interleave",
    "interleave_frames",
    "join",
    "make_phases",
    "norm_activate_backward",
]
