"""The commands of ``wanvae-motion``: what each one does, from file to file."""
