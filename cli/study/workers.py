"""A pool of single-threaded processes for runs; a process that dies is replaced."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from pipeline.corpora.processes import single_threaded

__all__ = ["WorkerError", "do_all"]

Job = TypeVar("Job")


class WorkerError(Exception):
    """A job failed in its process, or its process died; the text says how."""


def do_all(
    function: Callable[..., Any], jobs: Sequence[tuple[Job, tuple[Any, ...]]], workers: int
) -> Generator[tuple[Job, Any], None, None]:
    """Call function(*arguments) for each (job, arguments), begun in order; -> (job, its result) as they end.

    The result is the value, or a WorkerError. Jobs go to `workers` processes that live as long as they can, so that
    their in-memory state serves the next job. Closing the iterator ends the processes.
    """
    idle: SimpleQueue[_Worker] = SimpleQueue()
    crew = [_Worker(function) for _ in range(workers)]
    for worker in crew:
        idle.put(worker)

    def do(arguments: tuple[Any, ...]) -> Any:
        worker = idle.get()
        try:
            return worker.do(arguments)
        except WorkerError as error:
            return error
        finally:
            idle.put(worker)

    with single_threaded():
        pool = ThreadPoolExecutor(workers, thread_name_prefix="study")
        try:
            waiting = {pool.submit(do, arguments): job for job, arguments in jobs}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in crew:  # also wakes the threads that wait for an answer
                worker.stop()


class _Worker:
    """One process at a time, started when there is something to do."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._process: Any = None
        self._stopped = False

    def do(self, arguments: tuple[Any, ...]) -> Any:
        if self._process is None:
            self._start()
        try:
            self._pipe.send(arguments)
            done, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            raise WorkerError(f"its process died with exit code {code}") from None
        if not done:
            raise WorkerError(answer)
        return answer

    def stop(self) -> None:
        self._stopped = True
        process = self._process
        if process is not None:
            process.terminate()
            process.join()

    def _start(self) -> None:
        if self._stopped:
            raise WorkerError("stopped")
        # Fresh processes: forking one that has run numba and torch's thread pools is not safe.
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the death of the process is the end of the pipe


def _serve(function: Callable[..., Any], pipe: Connection) -> None:
    """Serve jobs in a worker's process."""
    import torch

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except Exception as error:  # one job's failure is reported, and the process continues with the next
            answer = False, f"{type(error).__name__}: {error}"
        pipe.send(answer)


def _end_with_parent() -> None:
    """End with the parent: a killed study must not leave processes that keep training in its folders."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
