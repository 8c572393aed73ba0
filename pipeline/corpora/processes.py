"""Work for several processes: fresh single-threaded interpreters that end with the caller or an interruption.

Unlike the pools of the standard library it reports when a process was killed (as a machine out of memory does), takes
jobs from an iterator as they are needed, and ends at once.
"""

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pipeline.corpora.base import MachineFault

__all__ = ["cores", "single_threaded", "spread"]

Job = TypeVar("Job")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(function: Callable[[Job], Any], jobs: Iterable[Job], processes: int, *, what: str) -> Iterator[Any]:
    """Yield function(job) for each job in order of completion, which is not the jobs' order.

    function, jobs and results are pickled. At most one job a process is under way. `what` is read, for the message.

    Raises what the function raises, and MachineFault for a process that was killed. Closing the iterator, or an
    exception, ends the processes at once.
    """
    context = get_context("spawn")  # a fork of a process with threads is not safe
    queue = iter(jobs)
    crew: dict[Connection, BaseProcess] = {}
    busy: set[Connection] = set()

    def give(pipe: Connection) -> None:
        for job in queue:
            pipe.send(job)
            busy.add(pipe)
            return

    try:
        with single_threaded(), _interrupts_held():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs,), daemon=True)
                process.start()
                theirs.close()  # so that the death of the process is the end of the pipe
                crew[ours] = process
        for pipe in crew:
            try:
                pipe.send(function)
                give(pipe)
            except OSError:
                raise _killed(crew[pipe], what) from None
        while busy:
            for ready in wait(list(busy)):
                pipe = next(pipe for pipe in busy if pipe is ready)
                busy.remove(pipe)
                try:
                    failed, result = pipe.recv()
                    if not failed:
                        give(pipe)
                except (EOFError, OSError):
                    raise _killed(crew[pipe], what) from None
                if failed:
                    raise result
                yield result
    finally:
        for pipe, member in crew.items():
            pipe.close()
            member.terminate()
        for member in crew.values():
            member.join()


def _serve(pipe: Connection) -> None:
    """Serve jobs in a process until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    try:
        function = pipe.recv()
        while True:
            job = pipe.recv()
            try:
                answer = False, function(job)
            except Exception as error:
                error.add_note(traceback.format_exc())  # which pickling loses
                answer = True, error
            try:
                pipe.send(answer)
            except (pickle.PicklingError, TypeError, AttributeError):  # what pickle raises for objects it cannot handle
                pipe.send((True, RuntimeError(f"{answer[1]!r:.200} cannot be pickled")))
    except (EOFError, OSError):
        return


def _killed(process: BaseProcess, what: str) -> MachineFault:
    process.join(10)
    code = process.exitcode
    if code is not None and code < 0:
        remedy = "The usual cause is memory: use fewer processes (--workers 1)."
        return MachineFault(what, f"a reader process was killed by signal {-code}", remedy)
    remedy = "Its output says why; a script that reads with processes needs `if __name__ == '__main__':`."
    return MachineFault(what, f"a reader process died with exit code {code}", remedy)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Make processes that start meanwhile use one thread each; libraries read this when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back meanwhile; it never reaches processes that are started, which inherit the mask."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first process started would start it, and that lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
