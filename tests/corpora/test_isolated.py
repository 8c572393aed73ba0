"""The process that other people's decoders run in: what they do wrong refuses one file, and ours stays a bug."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.corpora.faults import is_machine_fault
from pipeline.corpora.formats import isolated
from pipeline.corpora.formats.geometry import Malformed, ReadOptions, Surface
from tests.support.limits import HANG

GREEDY = "tests.support.greedy"


def ask(function, data=b"twelve bytes"):
    return isolated.call(GREEDY, function, data, Path("a.x"), ReadOptions())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("memory", r"takes more than \d+ bytes of memory, too much for a file of 12 bytes"),
        ("crash", r"crashes the library that reads it \(SIGSEGV"),
        ("refuse", "^holds 12 bytes$"),
        ("panic", "^cannot be read by the library: PanicException: index out of bounds$"),
    ],
)
def test_what_a_decoder_does_wrong_refuses_the_file(function, reason):
    with pytest.raises(Malformed, match=reason):
        ask(function)


def test_time_without_end_refuses_the_file(monkeypatch):
    monkeypatch.setattr(isolated, "FREE_SECONDS", 2)
    with pytest.raises(Malformed, match="takes more than 2 s to read, too long for a file of 12 bytes"):
        ask("time")


def test_a_bug_is_no_fault_of_the_file():
    with pytest.raises(RuntimeError, match=r"a\.x in a process of its own failed(.|\n)*KeyError: 'a fault of our own'"):
        ask("bug")


def test_a_killed_process_is_the_machines_fault():
    with pytest.raises(MemoryError, match="was killed"):
        ask("killed")


def test_a_process_that_waits_for_the_machine_is_the_machines_fault(monkeypatch):
    monkeypatch.setattr(isolated, "FREE_SECONDS", 2)
    monkeypatch.setattr(isolated, "PATIENCE", 1)
    before = set(psutil.Process().children())
    with pytest.raises(OSError, match="did not get 2 s of processor time within 2 s") as told:
        ask("wait")
    assert told.value.errno == errno.ETIMEDOUT
    assert is_machine_fault(told.value)
    assert set(psutil.Process().children()) == before


def lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, what: str) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("threaded", [False, True])
def test_a_process_does_not_outlive_a_killed_parent(tmp_path, threaded):
    """Its own limit would let it run for half a minute."""
    told = tmp_path / "pid"
    code = (
        "import sys, threading\nfrom pathlib import Path\n"
        "from pipeline.corpora.formats import isolated\nfrom pipeline.corpora.formats.geometry import ReadOptions\n"
        "isolated.FREE_SECONDS = 3600\n"
        f"read = lambda: isolated.call({GREEDY!r}, 'tell', b'', Path(sys.argv[1]), ReadOptions())\n"
        + ("thread = threading.Thread(target=read)\nthread.start()\nthread.join()" if threaded else "read()")
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(told)], stderr=subprocess.DEVNULL)
    child = None
    try:
        wait_until(lambda: told.exists() or parent.poll() is not None, "nothing was read")
        child = int(told.read_text())
        assert lives(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not lives(child), f"process {child} lives on")
    finally:
        parent.kill()
        if child is not None and lives(child):
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_process_whose_parent_is_another_reads_nothing():
    """As when it was killed before the process asked the kernel."""
    command = [sys.executable, "-P", "-m", "pipeline.corpora.formats.isolated", str(os.getpid() + 1)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment(), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (isolated._ALONE, b"", b"")


def test_a_thread_may_ask():
    """The kernel follows the thread that started the process, not the process of that thread."""
    found = []

    def read():
        with pytest.raises(Malformed, match=r"^holds 12 bytes$") as told:
            ask("refuse")
        found.append(told)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert len(found) == 1


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def test_a_geometry_comes_back_as_it_is():
    found = isolated.decode(GREEDY, bytes(10**6), Path("a.x"), ReadOptions(parts="b"))
    assert isinstance(found, Surface)
    np.testing.assert_array_equal(found.vertices, np.arange(15.0).reshape(5, 3))
    assert (found.faces.tolist(), found.parts.tolist()) == ([[0, 1, 4], [2, 3, 4]], [1, 0])
    assert (found.part_names, found.notes) == (("a", "b"), {"x": 2})


def test_files_of_the_working_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "struct.py").write_text("raise SystemExit(9)")
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Malformed, match=r"^holds 12 bytes$"):
        ask("refuse")


def test_a_library_that_is_not_there_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "laspy", None)
    for name in ("laspy", "no_library_of_this_name"):
        with pytest.raises(
            Malformed, match=rf"is a file, and {name}, .* not installed: pip install .i2p-pretrain\[form"
        ):
            isolated.need(name, "is a file")
    isolated.need("numpy", "is a file")
