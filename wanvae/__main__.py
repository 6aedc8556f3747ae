"""``python -m wanvae``: the command line."""

import sys

from wanvae.cli import main

sys.exit(main())
