"""Checkpoints of motion tokenizers: their layouts, and the architecture that tensors tell."""
