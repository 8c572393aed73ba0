"""Differences between operating systems: file locks, flags of open, durable folders, positional reads.

Linux and macOS have all of it. Windows locks by `msvcrt`, has no folder that could be synced, follows links unless they
are looked for first, and removes no file that is open.
"""

import errno
import importlib
import os
import threading
from contextlib import suppress
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["end_lock", "open_file", "read_at", "remove_open", "sync_directory", "try_lock"]


def _flags(*names: str) -> int:
    return reduce(or_, (getattr(os, name, 0) for name in names))


# Descriptors are not inherited, bytes are taken as they are, and a pipe is not waited for.
_ALWAYS = _flags("O_CLOEXEC", "O_NOINHERIT", "O_BINARY", "O_NONBLOCK")
_NOFOLLOW = _flags("O_NOFOLLOW")
_DIRECTORY = _flags("O_DIRECTORY")
_REMOVES_OPEN = os.name != "nt"

_moving = threading.Lock()  # held while a descriptor's position is moved and used, where reads cannot name theirs


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o666, *, follow: bool) -> int:
    """Call `os.open` without inheritance by child processes and without waiting for a pipe's writer; -> a descriptor.

    flags   os.O_RDONLY and the like; system-dependent flags are added here.
    follow  whether `path` may be a link. Where the system cannot refuse one, it is checked just before.

    Raises OSError as `os.open` does, ELOOP for a link that may not be followed.
    """
    if follow:
        return os.open(path, flags | _ALWAYS, mode)
    if not _NOFOLLOW and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return os.open(path, flags | _ALWAYS | _NOFOLLOW, mode)


def try_lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file exclusively; -> False if another holds it. The lock ends with the descriptor or the process.

    wait  for the holder, as long as that takes.

    Raises OSError where the file system has no locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        else:
            _lock_first_byte(descriptor, wait)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return False
        raise
    return True


def _lock_first_byte(descriptor: int, wait: bool) -> None:
    # https://docs.python.org/3/library/msvcrt.html: from the descriptor's position, which may be at the end of the
    # file; LK_LOCK tries ten times within ten seconds. The byte is locked against reading too, and nobody reads it.
    msvcrt: Any = importlib.import_module("msvcrt")
    while True:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            return msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if not wait or error.errno != errno.EDEADLK:
                raise


def end_lock(path: Path, descriptor: int, *, remove: bool) -> None:
    """Close a lock that this process holds and, with `remove`, remove its file.

    The file is removed while the lock is held: whoever waits for it then finds another file, or none, at its path. If
    open files cannot be removed, it is removed afterwards, unless someone has it open, who then locks that file.
    """
    try:
        if remove:
            remove_open(path)
    finally:
        os.close(descriptor)
    if remove and not _REMOVES_OPEN:
        with suppress(PermissionError):
            path.unlink(missing_ok=True)


def remove_open(path: Path) -> None:
    """Remove a lock's file that this process has open; where that is impossible, leave it to the next clean-up."""
    if _REMOVES_OPEN:
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make renames within a directory durable, where directories can be opened to be synced."""
    if not _DIRECTORY:
        return  # Windows; NTFS keeps renames in its own journal
    descriptor = os.open(path, os.O_RDONLY | _DIRECTORY | _ALWAYS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Read bytes starting at `offset` of a file, safe from several threads; -> how many were read, 0 at the end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [into], offset)
    with _moving:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(into))
    into[: len(data)] = data
    return len(data)
