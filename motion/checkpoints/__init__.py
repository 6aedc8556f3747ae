"""Checkpoints of motion tokenizers: their layouts, and the architecture read from their tensors."""
