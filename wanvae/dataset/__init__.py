"""Data sets of latents: a folder of videos encoded by any number of processes, and read back."""
