"""Third-party decoders, each file in a process of its own: a crash or runaway costs one shape.

The decoders of the extra `formats` are native code that was not made for untrusted bytes. The process may take memory
and processor time in proportion to the file; a signal that ends it refuses the file, and does not end a build. On Linux
it does not outlive the process that asked, not even one that is killed.
"""

import ctypes
import errno
import importlib
import importlib.util
import io
import json
import os
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.formats.geometry import Cloud, Malformed, ReaderMissing, ReadOptions, Surface

__all__ = ["MAX_MESSAGE", "call", "decode", "errors_of", "need"]

FREE_MEMORY = 2**30  # bytes that any file may use beyond what its decoder needs to start
MEMORY_SHARE = 64  # more bytes for each byte of the file, as for what is packed elsewhere (entrance.unpacking_fault)
FREE_SECONDS = 30  # of processor time
BYTES_A_SECOND = 200_000  # what the slowest of the decoders gets through, ten times over
PATIENCE = 10  # times as many seconds of the clock: less than a tenth of a core is the machine's fault
MAX_MESSAGE = 300
_BUG, _MEMORY, _ALONE = 70, 71, 72  # exit codes of the process
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def need(module: str, what: str) -> None:
    """Raise ReaderMissing, with the remedy, where the library that reads such files is not installed."""
    if sys.modules.get(module, True) is None or importlib.util.find_spec(module) is None:
        raise ReaderMissing(
            f"{what}, and {module}, which reads it, is not installed: pip install 'i2p-pretrain[formats]'"
        )


@contextmanager
def errors_of(library: str) -> Iterator[None]:
    """Convert whatever a library raises to Malformed: that is how it reports a faulty file."""
    try:
        yield
    except (Malformed, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust code is not an Exception
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise Malformed(f"cannot be read by {library}: {said}"[:MAX_MESSAGE]) from error


def decode(module: str, data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Run ``decode(data, path, options)`` of a module, by its full name, in a process; -> the geometry.

    Raises Malformed for what it raises so, and for a file that takes more than its bytes justify or ends the process.
    """
    found = call(module, "decode", data, path, options)
    if not isinstance(found, Surface | Cloud):
        raise TypeError(f"{module}.decode returned {type(found).__name__}")
    return found


def call(module: str, function: str, data: bytes, path: Path, options: ReadOptions) -> Any:
    """Run a function of a module in a process; -> a geometry, or anything that JSON holds.

    Raises Malformed as `decode` does, MemoryError where the machine had no memory left, OSError (ETIMEDOUT) where it
    gave the process too little processor time or a disk kept it waiting, RuntimeError with the traceback for a fault of
    the function.
    """
    seconds = FREE_SECONDS + len(data) // BYTES_A_SECOND
    head = {
        "module": module,
        "function": function,
        "path": str(path),
        "columns": options.columns,
        "parts": options.parts,
        "up": options.up,
        "memory": FREE_MEMORY + MEMORY_SHARE * len(data),
        "seconds": seconds,
    }
    text = json.dumps(head).encode()
    # The paths of this process and, by -P, no others: the same code. One thread, as many files are read at once.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pipeline.corpora.formats.isolated", str(os.getpid())],
            input=struct.pack("<Q", len(text)) + text + data,
            capture_output=True,
            env=environment,
            check=False,
            timeout=PATIENCE * seconds,
        )
    except subprocess.TimeoutExpired as error:  # the process is gone: run kills it
        said = f"the process that read the file did not get {seconds} s of processor time within {error.timeout:.0f} s"
        raise OSError(errno.ETIMEDOUT, said) from None
    if done.returncode == _MEMORY:
        raise Malformed(f"takes more than {head['memory']} bytes of memory, too much for a file of {len(data)} bytes")
    if done.returncode == -getattr(signal, "SIGXCPU", 0) != 0:
        raise Malformed(f"takes more than {seconds} s to read, too long for a file of {len(data)} bytes")
    if done.returncode == -getattr(signal, "SIGKILL", 0) != 0:
        raise MemoryError("the process that read the file was killed")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise Malformed(f"crashes the library that reads it ({name}); it is damaged, or expands too much")
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace")[-4000:]
        raise RuntimeError(f"reading {path} in a process of its own failed with exit {done.returncode}\n{said}")
    return _unpacked(done.stdout)


def _unpacked(data: bytes) -> Any:
    size = struct.unpack_from("<Q", data)[0]
    head = json.loads(data[8 : 8 + size])
    if "malformed" in head:
        raise Malformed(head["malformed"])
    if "value" in head:
        return head["value"]
    with np.load(io.BytesIO(data[8 + size :]), allow_pickle=False) as arrays:
        held = dict(arrays)
    kind = Surface if "faces" in held else Cloud
    return kind(**held, part_names=tuple(head["part_names"]), notes=head["notes"])


def _packed(found: Any) -> bytes:
    body = io.BytesIO()
    if isinstance(found, Surface | Cloud):
        head = {"part_names": found.part_names, "notes": dict(found.notes)}
        names = ("vertices", "faces", "parts") if isinstance(found, Surface) else ("points", "parts")
        np.savez(body, **{name: getattr(found, name) for name in names if getattr(found, name) is not None})
    else:
        head = {"value": found}
    return _message(head) + body.getvalue()


def _message(head: dict[str, Any]) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text


def _main(parent: int) -> int:
    """One request from standard input, its answer on standard output.

    parent  the process that asks, without which this one ends.
    """
    if not _die_with(parent):
        return _ALONE
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries print
    size = struct.unpack("<Q", sys.stdin.buffer.read(8))[0]
    head = json.loads(sys.stdin.buffer.read(size))
    data = sys.stdin.buffer.read()
    try:
        module = importlib.import_module(head["module"])
        getattr(module, "prepare", lambda: None)()  # imports what it needs, before memory is counted
        _limit(head["memory"], head["seconds"])
        options = ReadOptions(columns=tuple(head["columns"]), parts=head["parts"], up=head["up"])
        told_back = _packed(getattr(module, head["function"])(data, Path(head["path"]), options))
    except Malformed as error:
        told_back = _message({"malformed": str(error)})
    except MemoryError:
        return _MEMORY
    except Exception:
        traceback.print_exc()
        return _BUG
    with os.fdopen(answer, "wb") as out:
        out.write(told_back)
    return 0


def _die_with(parent: int) -> bool:
    """Have the kernel kill this process when ``parent`` ends, however it does; False where it has ended already.

    Linux alone can; elsewhere the limits of `_limit` end the process. The signal follows the thread that started this
    process, which waits for its answer in `call`.
    """
    if sys.platform != "linux":
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel does not tie this process to its parent")
    return os.getppid() == parent  # a parent that died before gave it away, and no signal comes


def _limit(memory: int, seconds: int) -> None:
    """Bound this process' memory and time from here on. Address space stands for memory: only it can be bounded."""
    try:
        import resource
    except ImportError:  # Windows bounds neither
        return
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        pages = 0  # no such file on this system; the bound is then from zero, and decoders start within FREE_MEMORY
    most = pages * resource.getpagesize() + memory
    for kind, wanted in ((resource.RLIMIT_AS, most), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        try:
            resource.setrlimit(kind, (wanted, hard))
        except (OSError, ValueError):  # macOS bounds no address space
            continue


if __name__ == "__main__":
    status = _main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(status)  # libraries that were interrupted crash when they are unloaded
