"""Files of latents, written and read piece by piece."""
