"""One thread for each test process: pytest-xdist runs one on each core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
