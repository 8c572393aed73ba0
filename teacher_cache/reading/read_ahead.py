"""Work done ahead of whoever asks for it, in order, by threads, and never more than a few items ahead."""

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

    An exception comes out at its place in the order. threads = 0 computes each when it is asked for. Threads, not
    processes: decoding a shard leaves the interpreter lock, nothing is copied between processes, and forking one that
    has run numba, CUDA or zarr's event loop is not safe.
    """
    if threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Out]] = deque()
    source = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        for item in source:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                break
        while waiting:
            done = waiting.popleft().result()
            for item in source:
                waiting.append(pool.submit(function, item))
                break
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
