"""Processes that read: what they return, what they raise, and that none outlives whoever asked."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.corpora import MachineFault, ShapeError
from pipeline.corpora.processes import single_threaded, spread
from tests.support.limits import HANG


def double(job: int) -> tuple[int, int, str]:
    time.sleep(0.01)
    return 2 * job, os.getpid(), os.environ["OMP_NUM_THREADS"]


def fail_at_seven(job: int) -> int:
    if job == 7:
        raise ShapeError("seven", f"is {job}")
    return job


def die_at_five(job: int) -> int:
    if job == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def leave(job: int) -> int:
    os._exit(3)


def unsendable(job: int) -> object:
    return lambda: job


def linger(job: int) -> int:
    time.sleep(HANG if job else 0)
    return job


def children() -> set[int]:
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if "resource_tracker" not in " ".join(child.cmdline())}


@pytest.fixture(autouse=True)
def no_child_is_left():
    """Other tests of this process may have left some, that are not meant."""
    before = children()
    yield
    assert children() <= before


def test_every_job_is_done_once_by_as_many_processes_with_one_thread_each():
    before = os.environ.get("OMP_NUM_THREADS")
    found = list(spread(double, iter(range(101)), 3, what="x"))
    assert sorted(value for value, _, _ in found) == list(range(0, 202, 2))
    assert len({process for _, process, _ in found}) == 3
    assert {threads for _, _, threads in found} == {"1"}
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_no_more_jobs_are_taken_than_processes_have():
    taken = []

    def jobs():
        for number in range(50):
            taken.append(number)
            yield number

    results = spread(double, jobs(), 2, what="x")
    next(results)
    assert len(taken) <= 4
    results.close()


def test_an_error_is_raised_as_it_was_and_ends_all():
    with pytest.raises(ShapeError, match="seven: is 7") as found:
        list(spread(fail_at_seven, range(1000), 2, what="x"))
    assert "fail_at_seven" in "".join(found.value.__notes__), "where it was raised"


def test_a_killed_process_is_the_machines_fault():
    with pytest.raises(MachineFault, match=r"the set: .*killed by signal 9.*(?s:.*)--workers 1"):
        list(spread(die_at_five, range(30), 2, what="the set"))


def test_a_process_that_dies_by_itself_says_so():
    with pytest.raises(MachineFault, match=r"(?s)the set: .*died with exit code 3.*__main__"):
        list(spread(leave, range(3), 2, what="the set"))


def test_what_cannot_be_pickled_is_an_error_with_a_name():
    with pytest.raises(RuntimeError, match=r"unsendable.*cannot be pickled"):
        list(spread(unsendable, range(3), 2, what="x"))


def test_closing_does_not_wait_for_what_is_under_way():
    results = spread(linger, range(4), 2, what="x")
    assert next(results) == 0
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < HANG / 2


def test_threads_of_the_environment_come_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with single_threaded():
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_an_interruption_waits_until_all_processes_are_started():
    """Also in an interpreter that has started none before: what tracks their resources unblocks signals then."""
    script = (
        "import signal\n"
        "from multiprocessing import get_context\n"
        "from pipeline.corpora.processes import _interrupts_held\n"
        "if __name__ == '__main__':\n"
        "    with _interrupts_held():\n"
        "        process = get_context('spawn').Process(target=int)\n"
        "        process.start()\n"
        "        held = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "    process.join()\n"
        "    print(held, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
