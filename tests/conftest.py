"""Before torch is imported: each worker of the tests computes on one thread, and so they do not contend."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
