"""For all tests: one thread a process, and no time limits."""

import os

# pytest-xdist runs a process on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
