"""Run a nogil numba kernel over a range of work items on several threads.

Numba's own thread layers do not fit a library: ``workqueue`` aborts the process when two Python threads launch at once
(Dask threads do), GNU OpenMP aborts in a forked child (a DataLoader worker), and TBB is an extra install. Our kernels
are serial, release the GIL and take a range of items, so plain Python threads are enough: they may be called from any
number of threads at once, nest, and survive a fork. How the items are divided never changes a result.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["for_each"]

_CHUNKS_PER_THREAD = 4  # items differ in cost, so threads take chunks as they finish

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def for_each(items: int, kernel: Callable[..., None], *args: Any) -> None:
    """Call ``kernel(begin, end, *args)`` for ranges that cover ``0..items``.

    Up to ``torch.get_num_threads()`` threads do so at once. The calling thread takes part and takes over whatever the
    helpers have not begun, so a busy pool costs time and never blocks. ``torch.set_num_threads(1)``, as in DataLoader
    workers, runs everything in the caller.
    """
    if items <= 0:
        return
    threads = min(torch.get_num_threads(), items)
    if threads <= 1:
        kernel(0, items, *args)
        return
    chunks = min(items, threads * _CHUNKS_PER_THREAD)
    bounds = [items * i // chunks for i in range(chunks + 1)]
    turn = itertools.count()  # next() on it is atomic

    def work() -> None:
        while (i := next(turn)) < chunks:
            kernel(bounds[i], bounds[i + 1], *args)

    helpers = [_executor(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        pending = [helper for helper in helpers if not helper.cancel()]
        for helper in pending:
            helper.result()


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            # The smaller pool is left to finish what it has; its idle threads end when it is collected.
            _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="cuda-twin"), size
        return _pool


def _forget_pool() -> None:
    # Threads do not survive a fork, and the lock may have been held in the parent.
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
