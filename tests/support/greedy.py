"""Decoders that behave badly, for the process that decoders run in."""

import os
import signal
from pathlib import Path

import numpy as np

from pipeline.corpora.formats.geometry import Malformed, Surface
from pipeline.corpora.formats.isolated import errors_of


def memory(data, path, options):
    return np.ones(2**29).tolist()  # 4 GB


def time(data, path, options):
    while True:
        pass


def wait(data, path, options):
    signal.pause()


def tell(data, path, options):
    """Write who this is into a file, then use the processor without end."""
    part = Path(f"{path}.part")
    part.write_text(str(os.getpid()))
    part.rename(path)
    time(data, path, options)


def crash(data, path, options):
    os.kill(os.getpid(), signal.SIGSEGV)


def killed(data, path, options):
    os.kill(os.getpid(), signal.SIGKILL)


def bug(data, path, options):
    raise KeyError("a fault of our own")


def refuse(data, path, options):
    raise Malformed(f"holds {len(data)} bytes")


def panic(data, path, options):
    class PanicException(BaseException):
        """What Rust's panics are in Python."""

    with errors_of("the library"):
        raise PanicException("index out\nof bounds")


def decode(data, path, options):
    print("noise of a library")
    vertices = np.arange(15.0).reshape(5, 3)
    return Surface(
        vertices, np.array([[0, 1, 4], [2, 3, 4]]), np.array([1, 0]), part_names=("a", options.parts), notes={"x": 2}
    )
