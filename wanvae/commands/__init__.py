"""The commands of ``wanvae``: their options, what they do, and what they print."""
