"""Preloaded by the server that builders are forked from: what every build imports, and its compiled routines.

No thread may run in the server, or a fork could copy a lock that is held: builders check THREADS.
"""

import os

import distributed  # noqa: F401
import numpy as np
import open_clip  # noqa: F401
import torch

from pipeline.views import render_views
from tests.support.builds import small_build  # noqa: F401
from tests.support.teachers import TINY_PROJECTION

torch.set_num_threads(1)
render_views(torch.from_numpy(np.eye(3, dtype=np.float32).repeat(30, axis=0)[None]), TINY_PROJECTION)
THREADS = len(os.listdir("/proc/self/task"))
