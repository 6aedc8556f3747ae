"""Figures that tell how close a reconstruction is to the original video."""
