"""Motion files: BVH, SMPL-X and arrays of numbers."""
