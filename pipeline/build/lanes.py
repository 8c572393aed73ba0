"""Computing threads of a process, one per usable core, shared by all shards in work.

A shard's own thread reads and writes; heavy computation goes through the lanes, lowest shard first. So shards finish
one after the other, and while one is written and others are read, the lanes work on those in between.
"""

import heapq
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, TypeVar

__all__ = ["Lanes"]

T = TypeVar("T")


class Lanes:
    """Threads that execute waiting calls, lowest order first, and first come first served among equals.

    threads  at least 1. They start with the first call and are daemons: none keeps a process alive.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"Lanes: threads = {threads}; expected 1 or more")
        self.count = threads
        self._waiting: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        self._came = count()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, order: int, call: Callable[[], T]) -> Future[T]:
        """Queue ``call`` for a lane -> its future. Raises RuntimeError after ``close``."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("these lanes are closed")
            # The running number breaks ties of order, so that futures and calls are never compared.
            heapq.heappush(self._waiting, (order, next(self._came), future, call))
            if len(self._threads) < self.count:
                thread = threading.Thread(target=self._run, name=f"lane-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Cancel waiting calls, let running ones finish, and end the threads. A second call does nothing."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for _, _, future, _ in waiting:
            future.cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a lane that closed its own pool would wait for itself
                thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                _, _, future, call = heapq.heappop(self._waiting)
            # Outside the condition's lock from here on: a call may take seconds, and others submit meanwhile.
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # the exception belongs to whoever waits for the future
                future.set_exception(error)
            del future, call  # a result must not outlive its reader because a thread sleeps
