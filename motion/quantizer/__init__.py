"""The residual vector quantizer and its codebooks."""
