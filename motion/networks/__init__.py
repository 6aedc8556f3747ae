"""The encoder and the decoder, and how padding and receptive fields pass through their layers."""
