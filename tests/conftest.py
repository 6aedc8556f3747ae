"""For all tests: one thread a process, no time limits, and Ctrl-C that is heard."""

import os
import signal

# pytest-xdist runs a process on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Shells let what they start in the background ignore it, which processes under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
