"""Folders of videos, images and tar files: what is there, which clips, and their frames."""
