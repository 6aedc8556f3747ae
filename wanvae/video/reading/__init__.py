"""Frames of video and image files, and what is lost or assumed on the way."""
