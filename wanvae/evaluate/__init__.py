"""Judges how well models reconstruct a folder of videos, with a report."""
