"""``python -m motion``: the command line."""

import sys

from motion.cli import main

sys.exit(main())
