"""This process as if on Windows, as far as a process on Linux can be: what is missing there is missing here."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

# https://docs.python.org/3/library/os.html and the other modules' pages: "Availability: Unix", "not Windows"
MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
OF_OS = (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "SEEK_DATA", "SEEK_HOLE", "fork", "forkpty", "geteuid",
    "getuid", "killpg", "memfd_create", "pread", "preadv", "pwrite", "pwritev", "register_at_fork",
    "sched_getaffinity", "sysconf",
)  # fmt: skip
OF_SIGNAL = ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGXCPU", "pthread_sigmask")
# Libraries look at the system while they are loaded, and are not what is tested.
FOR_CACHES = ("google_crc32c", "multiprocessing", "numcodecs", "webdataset", "zarr")
FOR_ALL = (
    "asyncio", "click", "cupy", "dask", "dask.array", "distributed", "fsspec", "h5py", "matplotlib", "multiprocessing",
    "multiprocessing.connection", "numba", "numcodecs", "open_clip", "sklearn.svm", "tensorboard", "torch",
    "torch.utils.tensorboard", "tqdm", "webdataset", "zarr",
)  # fmt: skip


def hide(libraries: Sequence[str]) -> None:
    """Load libraries, then take away what Windows does not have. `msvcrt` locks as there, by flock beneath."""
    import fcntl

    for name in libraries:
        importlib.import_module(name)
    sys.modules["msvcrt"] = _msvcrt(fcntl)  # type: ignore[assignment]
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for owner, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names:
            delattr(owner, name)


def _msvcrt(fcntl: Any) -> SimpleNamespace:
    """`locking` with its errors: EACCES at once for LK_NBLCK, EDEADLK for LK_LOCK after ten tries."""

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (os.lseek(descriptor, 0, os.SEEK_CUR), count) == (0, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            number = errno.EDEADLK if mode == 1 else errno.EACCES
            raise OSError(number, os.strerror(number)) from None

    return SimpleNamespace(locking=locking, LK_LOCK=1, LK_NBLCK=2)
