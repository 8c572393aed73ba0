"""Running the command line inside the test's process."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cli.main import main

ROOMS = ("benchmarks", "cli", "pipeline", "pipeline.teacher.tower", "teacher_cache", "trainer", "cuda")


@dataclass
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str


Main = Callable[[Sequence[str]], None]


def run(capsys: pytest.CaptureFixture[str], *arguments: object, program: Main = main) -> Outcome:
    """``i2p ARGUMENTS``, or those of another program; everything is turned to text first."""
    capsys.readouterr()
    code = call([str(argument) for argument in arguments], program)
    said = capsys.readouterr()
    return Outcome(code, said.out, said.err)


def call(arguments: Sequence[str], program: Main = main) -> int:
    """The exit code of ``i2p ARGUMENTS``; what the command does to logging is undone, for the tests that follow."""
    with _logging_kept(), pytest.raises(SystemExit) as stop:
        program(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


@contextmanager
def _logging_kept() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ROOMS}
    dask = os.environ.get("DASK_LOGGING__DISTRIBUTED")  # set for the processes that a command starts
    root.handlers.clear()  # or logging.basicConfig(force=True) would close them
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, kept in levels.items():
            logging.getLogger(name).setLevel(kept)
        os.environ.pop("DASK_LOGGING__DISTRIBUTED", None)
        if dask is not None:
            os.environ["DASK_LOGGING__DISTRIBUTED"] = dask
