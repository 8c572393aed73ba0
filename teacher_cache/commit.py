"""How bytes become part of a cache: written aside, synced, renamed into place; and who may clean up what was left.

Every process writes in a folder of its own under ``<cache>/tmp`` and holds a lock (flock) while it does, so a folder
whose lock can be taken belongs to a process that is gone. The kernel drops a lock when its process dies, however it
dies, and process ids in containers or on other machines do not matter. File systems without flock are refused.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from teacher_cache.errors import CacheError
from teacher_cache.manifest import ShardFile

__all__ = [
    "is_current",
    "lock",
    "move_into_place",
    "remove_abandoned",
    "sync_directory",
    "try_lock",
    "workspace",
    "write_documents",
    "write_file",
]

TEMPORARY = "tmp"


@contextmanager
def lock(root: Path, name: str) -> Iterator[None]:
    """Hold ``tmp/<name>.lock`` alone, waiting for whoever holds it. The file is removed again at the end."""
    path = root / TEMPORARY / f"{name}.lock"
    descriptor = _acquire(path)
    try:
        yield
    finally:
        try:
            _release(path)  # while held: a waiter finds the file gone and starts afresh
        finally:
            os.close(descriptor)


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """A new folder under ``tmp`` that no one else touches, removed at the end with whatever it still holds."""
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    with lock(root, token):
        folder = root / TEMPORARY / token
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(root: Path) -> list[str]:
    """Remove what dead processes left under ``tmp``; what a living one holds stays. -> names removed."""
    removed = []
    try:
        names = sorted(name for name in os.listdir(root / TEMPORARY) if name.endswith(".lock"))
    except FileNotFoundError:
        return []  # it is not there, or another builder that ends has just removed it
    for path in (root / TEMPORARY / name for name in names):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its owner ended meanwhile
        try:
            if try_lock(descriptor, wait=False) and is_current(descriptor, path):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                _release(path)
                removed.append(path.stem)
        finally:
            os.close(descriptor)
    remove_temporary(root)
    return removed


def remove_temporary(root: Path) -> None:
    """Remove ``tmp`` itself if no one works there."""
    try:
        (root / TEMPORARY).rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST}:
            raise


def write_file(path: Path, pieces: Iterable[bytes], name: str) -> ShardFile:
    """Write and sync a new file; -> its size and SHA-256 under the committed path ``name``."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return ShardFile(path=name, bytes=size, sha256=digest.hexdigest())


def move_into_place(root: Path, folder: Path, files: Iterable[ShardFile]) -> None:
    """Rename the files of ``folder`` (flat, / written as -) to their paths under ``root`` and sync the directories."""
    directories = []
    for file in files:
        target = root / file.path
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            sync_directory(target.parent.parent)
        os.replace(folder / staged_name(file.path), target)
        if target.parent not in directories:
            directories.append(target.parent)
    for directory in directories:
        sync_directory(directory)


def staged_name(path: str) -> str:
    """The name a file has in a workspace until it is moved to ``path``."""
    return path.replace("/", "-")


def write_documents(root: Path, documents: Mapping[str, bytes]) -> None:
    """Put small files at their paths, one after the other, each atomically: the old one or the new one is there, whole.

    Files that hold these bytes already are left alone, so a build that has nothing to do touches nothing.
    """
    changed = {path: data for path, data in documents.items() if _content(root / path) != data}
    if changed:
        with workspace(root) as folder:
            for path, data in changed.items():
                move_into_place(root, folder, [write_file(folder / staged_name(path), [data], path)])


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def sync_directory(path: Path) -> None:
    """Make renames within a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if os.path.lexists(path.parent) and not path.parent.is_dir():
                raise
            continue  # tmp/ was there, and removed before mkdir looked whether it is a folder
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # tmp/ was removed, empty, between the two calls
        try:
            if try_lock(descriptor, wait=True) and is_current(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before us removed the file: lock the one that is there now


def _release(path: Path) -> None:
    """Remove a lock's file, but for that of a workspace that a failing disk kept: the next build finds it by that."""
    if not path.with_suffix("").is_dir():
        path.unlink(missing_ok=True)


def try_lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open lock file; -> False where someone else holds it. Raises CacheError without flock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return False
        raise CacheError(
            f"expected a file system with flock; locking under {TEMPORARY}/ failed ({error}).\n"
            "  Build on a local disk or on NFS 4 and copy the finished cache; reading needs no locks."
        ) from error
    return True


def is_current(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at this path: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
