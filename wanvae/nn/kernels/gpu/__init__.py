"""Operators for GPUs, which do in one pass through memory what takes PyTorch several.

``operators`` names them, ``plain`` says in PyTorch's operations what each one computes,
``programs`` computes the same in Triton, which comes with PyTorch on Linux, and ``fused`` uses them
for layers.
"""
