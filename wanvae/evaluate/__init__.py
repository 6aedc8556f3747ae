"""Judging models on a folder of videos, as ``wanvae evaluate`` does."""
