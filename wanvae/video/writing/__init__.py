"""Frames into video and image files."""
