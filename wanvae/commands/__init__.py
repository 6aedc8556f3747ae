"""The commands of ``wanvae``: what each one does, from file to file."""
