"""Atomic commits (write aside, sync, rename into place) and the clean-up after dead processes.

Every process writes in a folder of its own under ``<cache>/tmp`` and holds a lock (flock) while it does, so a folder
whose lock can be taken belongs to a dead process. The kernel releases a lock when its process dies, however it dies;
unlike a stored process id, this also works across containers and machines. File systems without flock are refused.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from teacher_cache import system
from teacher_cache.errors import CacheError
from teacher_cache.storage.shard_files import ShardFile

__all__ = [
    "OWN_NAME",
    "is_current",
    "lock",
    "move_into_place",
    "open_log",
    "read_regular",
    "refuse_links",
    "remove_abandoned",
    "replace_file",
    "try_lock",
    "workspace",
    "write_documents",
    "write_file",
]

TEMPORARY = "tmp"

# Names of workspaces, and of locks of shards and of new documents. Other files in tmp/ are not ours to remove.
OWN_NAME = re.compile(r".+-\d+-[0-9a-f]{16}|shard-\d{6,}|new-[a-z]+\.json")

# Nothing can be removed here, and nothing was started here either: a read-only file system, or another user's cache.
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def refuse_links(root: Path, path: Path) -> None:
    """Raise CacheError if a folder on the way from ``root`` to ``path``, itself excluded, is a link.

    root  a cache's or a run's folder. Whoever made it chose where its links point: writing or removing through one
          would change other people's files. The folder itself may be a link; that was its user's choice.
    """
    folder = root
    for part in path.relative_to(root).parts[:-1]:
        folder = folder / part
        if folder.is_symlink():
            raise CacheError(
                f"{folder}: expected a folder, found a link to {os.readlink(folder)!r}; nothing is written or removed "
                f"through links within {root}.\n"
                "  Remove the link; move the files behind it here if they belong here."
            )


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably.

    After a crash either the old or the new file is there, never a part of it.

    What stands at ``path``, a link included, is replaced and not followed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            # Data before name: a rename that reaches the disk first would leave an empty file after a power cut.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    system.sync_directory(path.parent)  # the rename itself is durable only now


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file, at most ``limit`` + 1 bytes of it.

    More than ``limit`` bytes returned means that the file is too long.

    Raises FileNotFoundError also for a pipe, which would wait for a writer, and a device, which might never end.
    """
    try:
        descriptor = system.open_file(path, os.O_RDONLY, follow=True)
    except OSError as error:
        if error.errno != errno.ENXIO:  # a socket
            raise
        raise FileNotFoundError(errno.ENOENT, "expected a regular file, found another kind", str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "expected a regular file, found another kind", str(path))
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit + 1)


def open_log(path: Path) -> int:
    """Open a log file for appending, created if absent; -> descriptor. Raises CacheError for a link, pipe or device.

    A file that has a second name (a hard link: a snapshot's, or somebody else's) is copied first.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        descriptor = system.open_file(path, flags, follow=False)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:
            raise
        descriptor = -1
    if descriptor < 0 or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        if descriptor >= 0:
            os.close(descriptor)
        raise CacheError(f"{path}: expected a file of lines, found a link, a pipe or a device.\n  Remove it.")
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        replace_file(path, path.read_bytes())
        return system.open_file(path, flags, follow=False)
    return descriptor


@contextmanager
def lock(root: Path, name: str) -> Iterator[None]:
    """Hold ``tmp/<name>.lock`` exclusively, waiting for its holder. The file is removed at the end."""
    path = root / TEMPORARY / f"{name}.lock"
    refuse_links(root, path)
    descriptor = _acquire(path)
    try:
        yield
    finally:
        _release(path, descriptor)


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Create a folder under ``tmp`` that no one else touches; it is removed at the end with all its contents."""
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
    refuse_links(root, root / TEMPORARY / "any")
    try:
        names = sorted(name for name in os.listdir(root / TEMPORARY) if name.endswith(".lock"))
    except FileNotFoundError:
        return []  # it is not there, or another builder that ends has just removed it
    for path in (root / TEMPORARY / name for name in names):
        if not OWN_NAME.fullmatch(path.stem) or path.with_suffix("").is_symlink():
            continue
        try:
            descriptor = system.open_file(path, os.O_RDWR, follow=False)
        except OSError as error:
            # Its owner ended meanwhile; it is a link or a pipe and no lock; or nothing can be removed here.
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR} | _READ_ONLY:
                continue
            raise
        try:
            # A lock that can be taken has no living owner. But another process may have removed this file and created
            # a new one of its name since it was opened: a lock on the old one protects nothing.
            ours = try_lock(descriptor, wait=False) and is_current(descriptor, path)
            if ours:
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        except BaseException:
            os.close(descriptor)
            raise
        if ours:
            _release(path, descriptor)  # last, and not if the folder is still there: the lock's file leads to it
            removed.append(path.stem)
        else:
            os.close(descriptor)
    remove_temporary(root)
    return removed


def remove_temporary(root: Path) -> None:
    """Remove ``tmp`` itself if no one works there."""
    try:
        (root / TEMPORARY).rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST, errno.ENOTDIR} | _READ_ONLY:
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
        refuse_links(root, target)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            system.sync_directory(target.parent.parent)  # or a crash could lose the new folder with its files
        try:
            os.replace(folder / staged_name(file.path), target)
        except IsADirectoryError as error:
            raise CacheError(f"{target}: expected a file, found a folder.\n  Remove it.") from error
        if target.parent not in directories:
            directories.append(target.parent)
    # After all renames, once per directory. The caller renames the receipt in a later call, so it becomes durable after
    # the files that it vouches for.
    for directory in directories:
        system.sync_directory(directory)


def staged_name(path: str) -> str:
    """Return the name a file has in a workspace until it is moved to ``path``."""
    return path.replace("/", "-")


def write_documents(root: Path, documents: Mapping[str, bytes]) -> None:
    """Write small files in order, each atomically: a reader finds the old one or the new one, never a part.

    Files that already hold these bytes are left alone, so a build that has nothing to do touches nothing.
    """
    changed = {path: data for path, data in documents.items() if not _holds(root / path, data)}
    if changed:
        with workspace(root) as folder:
            for path, data in changed.items():
                move_into_place(root, folder, [write_file(folder / staged_name(path), [data], path)])
        remove_temporary(root)


def _holds(path: Path, data: bytes) -> bool:
    """Check whether a regular file with these bytes stands there; anything else is replaced, and not read."""
    try:
        descriptor = system.open_file(path, os.O_RDONLY, follow=False)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
            return False
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # asked first: a folder cannot be made a file, and its descriptor would stay
        os.close(descriptor)
        return False
    with os.fdopen(descriptor, "rb") as file:
        return status.st_size == len(data) and file.read(len(data) + 1) == data


def _acquire(path: Path) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if os.path.lexists(path.parent) and not path.parent.is_dir():
                raise
            continue  # tmp/ was there, and removed before mkdir looked whether it is a folder
        try:
            descriptor = system.open_file(path, os.O_RDWR | os.O_CREAT, 0o644, follow=False)
        except FileNotFoundError:
            continue  # tmp/ was removed, empty, between the two calls
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.EISDIR}:
                raise
            raise CacheError(f"{path}: expected a lock file, found a link or a folder.\n  Remove it.") from error
        try:
            if try_lock(descriptor, wait=True) and is_current(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before us removed the file: lock the one that is there now


def _release(path: Path, descriptor: int) -> None:
    """Remove a lock's file unless a failing disk kept its workspace: the next build finds the workspace by it."""
    try:
        kept = path.with_suffix("").is_dir()
    except BaseException:
        os.close(descriptor)
        raise
    system.end_lock(path, descriptor, remove=not kept)


def try_lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open lock file; -> False if someone else holds it. Raises CacheError without flock."""
    try:
        return system.try_lock(descriptor, wait=wait)
    except OSError as error:
        raise CacheError(
            f"expected a file system with flock; locking under {TEMPORARY}/ failed ({error}).\n"
            "  Build on a local disk or on NFS 4 and copy the finished cache; reading needs no locks."
        ) from error


def is_current(descriptor: int, path: Path) -> bool:
    """Check whether the open file is still the one at this path: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
