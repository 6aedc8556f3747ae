"""Convert a Wan VAE checkpoint to another layout, as ``wanvae convert`` does."""

import sys

from wanvae.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
