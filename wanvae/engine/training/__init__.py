"""The training loop, for any model: accelerate, checkpoints, resume."""
