"""Distinction between faults of the machine and faults of the data, decided here only.

A file that is cut, malformed or empty is data: ``ShapeError``, and a build quarantines it. A lost disk, a full table of
open files, no memory, a broken network: these say nothing about the shape. Such reads are retried a few times, and then
``MachineFault`` stops the reader, because a cache without these shapes would look complete.

Readers open files by ``read_file``. Where a library opens them, the call goes through ``patiently``, which also finds
the fault that an error was raised `from`.
"""

import errno
import os
import random
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.corpora.base import MachineFault, ShapeError
from pipeline.corpora.entrance import FREE_BYTES, MAX_EXPANSION
from teacher_cache.errors import causes
from teacher_cache.system import open_file

__all__ = ["check_present", "file_stamp", "is_machine_fault", "machine_fault_in", "patiently", "read_file"]

T = TypeVar("T")

PAUSES = (0.1, 0.4, 1.6)  # seconds before a read is tried again, each drawn from half to one and a half of this

# What says something about the file itself: it is a folder or a socket, its name or its links are impossible, or an
# offset that was read from it lies before its start (EINVAL). Every other error number is the machine's.
_OF_THE_DATA = {
    errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG
}  # fmt: skip
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_DENIED = {errno.EACCES, errno.EPERM}
_HDF5_NUMBER = re.compile(r"\berrno = (\d+)")  # h5py keeps HDF5's own text, and sets errno for some of it only

_REMEDIES = {
    **dict.fromkeys(_ABSENT, "It existed when the corpus was listed. Is its disk still mounted?"),
    **dict.fromkeys(_DENIED, "Give this user permission to read it, and every folder above it."),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Raise the limit on open files (`ulimit -n 4096`)."),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free space on the disk."),
    errno.ENOMEM: "Lower build.workers, cache.shapes_per_shard or teacher.batch_size, or use a larger machine.",
}
_REMEDY = "Check the disk, the mount or the network (`dmesg` often says more)."


def is_machine_fault(error: BaseException) -> bool:
    """Check whether an exception is the machine's: memory, network, or an OSError that is not about the file."""
    if isinstance(error, MachineFault | MemoryError):
        return True
    if not isinstance(error, OSError):
        return False
    number = _number(error)
    if number is None:  # of a library: only these classes are certain
        return isinstance(error, ConnectionError | TimeoutError | InterruptedError | BlockingIOError)
    return number not in _OF_THE_DATA


def machine_fault_in(error: BaseException) -> BaseException | None:
    """Return the machine's fault in an exception's chain of causes; None if there is none."""
    for link in causes(error):
        # A MemoryError further down is most often Python's own parser, which says so of text that nests too deep.
        if is_machine_fault(link) and (link is error or not isinstance(link, MemoryError)):
            return link
    return None


def patiently(call: Callable[[], T], source: str) -> T:
    """Return the result of ``call``; faults of the machine are retried after each of PAUSES.

    source  what is read, for the message. Raises MachineFault at the end, and at once whatever else ``call`` raises.
    """
    for pause in (*PAUSES, None):
        try:
            return call()
        except Exception as error:
            fault = machine_fault_in(error)
            if fault is None or (fault is error and isinstance(fault, MachineFault)):
                raise
            if isinstance(fault, MachineFault):  # tried often enough further down, and then wrapped
                raise fault from None
            if pause is None:
                raise _as_machine_fault(fault, source) from error
        time.sleep(pause * random.uniform(0.5, 1.5))  # not all threads at the same moment
    raise AssertionError("unreachable")


def read_file(path: Path, *, first: int | None = None) -> bytes:
    """Read a regular file, or the first so many bytes of it.

    Raises ShapeError for other kinds of file and for one closed to this user by its own mode, MachineFault for faults
    of the machine. Pipes, sockets and devices are not opened.
    """
    return patiently(lambda: _bytes(path, first), str(path))


def file_stamp(path: Path | str) -> str:
    """Return a file's change time, size and modification time, as text ``changed:size:modified`` in ns.

    For a file that cannot be examined it is the error's name: whoever reads the file reports more.

    The first is st_ctime, which no program can set back: a content of the same size under an old date still shows.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return f"{max(status.st_ctime_ns, status.st_mtime_ns)}:{status.st_size}:{status.st_mtime_ns}"


def check_present(path: Path) -> None:
    """Raise MachineFault if a file that existed is gone: then a failure says nothing about the file."""
    patiently(lambda: os.stat(path), str(path))


def _bytes(path: Path, first: int | None) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ShapeError(str(path), "is not a regular file (a folder, pipe, socket or device)")
        size = status.st_size if first is None else min(first, status.st_size)
        if size > FREE_BYTES and not _is_backed(path, status.st_size):
            reason = f"has a size of {status.st_size} bytes, nearly all of them holes that were never written"
            raise ShapeError(str(path), f"{reason}; was the copy truncated?")
        if first is None:
            return path.read_bytes()
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        if error.errno in _DENIED and _closed(path):
            mode = stat.S_IMODE(os.stat(path).st_mode)
            reason = f"permission denied: its mode is {mode:04o}; `chmod u+r` it, or run as a user who may read it"
            raise ShapeError(str(path), reason) from None  # settled here: `from` would make it the machine's
        if is_machine_fault(error):
            raise
        raise ShapeError(str(path), f"cannot be read: {error.strerror or error}") from error


def _is_backed(path: Path, size: int) -> bool:
    """Check whether a file's bytes were written: a sparse one may claim a terabyte, and would be read in full."""
    if not hasattr(os, "SEEK_DATA"):
        return True
    file = open_file(path, os.O_RDONLY, follow=True)
    try:
        at = data = 0
        while at < size:
            try:
                start = os.lseek(file, at, os.SEEK_DATA)
                at = os.lseek(file, start, os.SEEK_HOLE)
            except OSError as error:
                return error.errno != errno.ENXIO  # nothing but a hole from here on; else a disk that knows of none
            data += at - start
            if data * MAX_EXPANSION + FREE_BYTES >= size:
                return True
        return False
    finally:
        os.close(file)


def _closed(path: Path) -> bool:
    """Check whether a file's own mode closes it to this user, in an open folder: a fact about the corpus."""
    try:
        os.stat(path)
    except OSError:
        return False
    return os.access(path.parent, os.R_OK | os.X_OK) and not os.access(path, os.R_OK)


def _as_machine_fault(error: BaseException, source: str) -> MachineFault:
    number = errno.ENOMEM if isinstance(error, MemoryError) else _number(error) if isinstance(error, OSError) else None
    if number is not None and number > 0:
        said = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    else:
        said = f"{type(error).__name__}: {error}"
    return MachineFault(source, said, _REMEDY if number is None else _REMEDIES.get(number, _REMEDY))


def _number(error: OSError) -> int | None:
    if error.errno is not None:
        return error.errno
    found = _HDF5_NUMBER.search(str(error))
    return int(found.group(1)) or None if found else None
