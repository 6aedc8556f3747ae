"""Data sets of latents: encoding folders of videos, and reading the latents for training."""
