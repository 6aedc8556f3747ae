"""Training a video VAE: ``accelerate launch -m wanvae.train``."""
