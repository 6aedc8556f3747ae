"""What the samples of pictures mean: primaries, transfer functions, and HDR as SDR."""
