"""Worker processes: values and failures come back, the dead are replaced, none outlives the study."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from cli.study.workers import WorkerError, do_all
from tests.support.limits import HANG

# Functions of the standard library, because a fresh process must be able to import what it is to do.


def outcome(function, *arguments, workers=2):
    return dict(do_all(function, [(job, job) for job in arguments], workers))


def test_values_and_failures_come_back_for_their_own_job():
    found = outcome(divmod, (7, 2), (1, 0), (9, 4))
    assert found[7, 2] == (3, 1)
    assert found[9, 4] == (2, 1)
    assert isinstance(found[1, 0], WorkerError)
    assert "ZeroDivisionError" in str(found[1, 0])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_costs_its_own_job_only(workers):
    found = outcome(eval, ("6 * 7",), ("__import__('os').kill(__import__('os').getpid(), 9)",), ("1 + 1",),
                    workers=workers)  # fmt: skip
    first, died, last = found[("6 * 7",)], next(v for v in found.values() if not isinstance(v, int)), found[("1 + 1",)]
    assert (first, last) == (42, 2)
    assert "died with exit code -9" in str(died)


def test_jobs_of_one_process_find_what_it_keeps():
    assert (
        len(set(outcome(eval, ("__import__('os').getpid()",), ("int(__import__('os').getpid())",), workers=1).values()))
        == 1
    )


def test_processes_have_one_thread_and_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    asked = ("__import__('torch').get_num_threads()", "int(__import__('os').environ['OMP_NUM_THREADS'])")
    assert set(outcome(eval, *((text,) for text in asked)).values()) == {1}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_closing_ends_the_processes_at_once():
    jobs = [("quick", ("__import__('os').getpid()",)), ("slow", ("__import__('time').sleep(10**6)",))]
    with closing(do_all(eval, jobs, 2)) as ended:
        assert next(ended)[0] == "quick"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("study") and _stays(thread)]


def _stays(thread):
    thread.join(HANG)
    return thread.is_alive()


def test_processes_end_with_a_study_that_is_killed(tmp_path):
    told = tmp_path / "pid"
    job = f"open({str(told)!r}, 'w').write(str(__import__('os').getpid())) and __import__('time').sleep(10**6)"
    script = f"""
from cli.study.workers import do_all
if __name__ == "__main__":
    list(do_all(eval, [(0, ({job!r},))], 1))
"""
    (tmp_path / "study.py").write_text(script)
    study = subprocess.Popen([sys.executable, tmp_path / "study.py"], env={**os.environ, "PYTHONPATH": os.getcwd()})
    _until(lambda: told.is_file() and told.read_text())
    study.send_signal(signal.SIGKILL)
    study.wait()
    _until(lambda: not _runs(int(told.read_text())))


def _until(condition, seconds=HANG):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
