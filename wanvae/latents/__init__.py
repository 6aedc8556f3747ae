"""Files of latents."""
