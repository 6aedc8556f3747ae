"""Checkpoints of video VAEs: their layouts, their architectures, and the Hub."""
