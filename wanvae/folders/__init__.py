"""Folders of videos, images and tar files: their index, clips to cut out of them, and frames."""
