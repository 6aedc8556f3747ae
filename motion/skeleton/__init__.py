"""Skeletons, and motion as rotations of their joints."""
