"""Ordered read-ahead: threads compute results in order, never more than a few items ahead of the consumer."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_ahead"]

In = TypeVar("In")
Out = TypeVar("Out")


def read_ahead(
    function: Callable[[In], Out], items: Iterable[In], *, threads: int, ahead: int
) -> Generator[Out, None, None]:
    """function(item) for each item, in order, computed by `threads` threads, at most `ahead` items ahead.

    An exception is raised at its place in the order. threads = 0 computes each item on demand. Threads, not processes:
    decoding a shard releases the interpreter lock, nothing is copied between processes, and forking a process that has
    run numba, CUDA or zarr's event loop is not safe.
    """
    if threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Out]] = deque()
    source = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        # Backpressure: a new item is submitted only when one is taken, so at most `ahead` results are in memory.
        for item in source:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                break
        while waiting:
            done = waiting.popleft().result()
            # Before the yield: the threads work on while the consumer uses what it got.
            for item in source:
                waiting.append(pool.submit(function, item))
                break
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
