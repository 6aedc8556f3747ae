"""Running a network of layers: piece by piece in time, in tiles, within memory, on processes."""
