"""Running a network of layers: in pieces of time, in tiles, within memory, over processes."""
