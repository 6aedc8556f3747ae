"""How layers are computed in training on CPUs, with backward passes of their own."""
