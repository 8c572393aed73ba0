"""Caches in a folder of this machine."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from teacher_cache.documents import MAX_DOCUMENT
from teacher_cache.errors import ManifestError
from teacher_cache.storage import atomic
from teacher_cache.storage.base import VOLATILE, ShardFiles
from teacher_cache.storage.shard_files import ShardEntry, ShardFile, ShardFileReader
from teacher_cache.system import open_file, sync_directory

__all__ = ["LocalStorage"]

_BLOCK = 1 << 20
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}  # ELOOP: a link to itself; ENXIO: a socket


class LocalStorage:
    """A folder of this machine, or of a network file system that has locks."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.location: Path = root

    def read(self, path: str) -> bytes:
        with self._opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_DOCUMENT:
                raise ManifestError(f"{self.location / path}: {size} bytes; expected at most {MAX_DOCUMENT}")
            return file.read()

    def read_range(self, file: ShardFile, offset: int, size: int) -> bytes:
        with self._opened(file.path) as opened:
            # Asked first: a buffer of the size wanted would be made, however little the file holds.
            held = os.fstat(opened.fileno()).st_size
            opened.seek(min(offset, held))
            return opened.read(max(0, min(size, held - offset)))

    def read_many(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        for path in paths:
            try:
                yield self.read(path)
            except FileNotFoundError:
                yield None

    def sizes(self, *, few: bool = False) -> Callable[[str], int | None]:
        def size(path: str) -> int | None:
            try:
                return os.stat(self.location / path).st_size
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise

        return size

    def of_shard(self, entry: ShardEntry) -> ShardFiles:
        return self

    def open(self, path: str, shard: int) -> ShardFileReader:
        try:
            return ShardFileReader(self._descriptor(path), path, shard)
        except FileNotFoundError as error:
            raise ShardFileReader.missing(path, shard) from error

    def digest(self, path: str, limit: int) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self._opened(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
                if size > limit:
                    return size, ""
        return size, digest.hexdigest()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.location / folder) if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self) -> list[str]:
        found = []
        for folder, folders, names in os.walk(self.location):
            relative = Path(folder).relative_to(self.location)
            if relative == Path("."):
                folders[:] = [name for name in folders if name not in VOLATILE]
            found += [(relative / name).as_posix() for name in names]
        return sorted(found)

    def prepare(self) -> list[str]:
        if not self.location.is_dir():
            self.location.mkdir(parents=True, exist_ok=True)
            sync_directory(self.location.parent)
        return atomic.remove_abandoned(self.location)

    def tidy(self) -> None:
        atomic.remove_abandoned(self.location)  # of builders that died while this one worked, too

    def write_documents(self, documents: Mapping[str, bytes]) -> None:
        atomic.write_documents(self.location, documents)

    def write_new(self, path: str, data: bytes) -> bytes:
        with atomic.lock(self.location, "new-" + atomic.staged_name(path)):
            try:
                return self.read(path)
            except FileNotFoundError:
                self.write_documents({path: data})
                return data

    def commit(
        self,
        shard: int,
        files: Iterable[tuple[str, list[bytes]]],
        note: str,
        receipt: Callable[[list[ShardFile]], bytes],
        settled: Callable[[], bool],
    ) -> bool:
        root = self.location
        # Encoding and syncing, the slow part, happen before the lock: builders of one shard only queue for the renames.
        with atomic.workspace(root) as folder:
            written = [atomic.write_file(folder / atomic.staged_name(path), pieces, path) for path, pieces in files]
            last = atomic.write_file(folder / atomic.staged_name(note), [receipt(written)], note)
            with atomic.lock(root, f"shard-{shard:06d}"):
                if settled():  # asked under the lock: the first receipt wins, and this work is discarded
                    return False
                # Whatever receipt is there is not of these files: without it, a crash now leaves a shard to be built.
                atomic.refuse_links(root, root / note)
                (root / note).unlink(missing_ok=True)
                # Two calls: the files are synced in place before the receipt that makes them count appears.
                atomic.move_into_place(root, folder, written)
                atomic.move_into_place(root, folder, [last])
        return True

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            target = self.location / path
            atomic.refuse_links(self.location, target)
            target.unlink(missing_ok=True)
            # Synced one by one, so that removals reach the disk in the order given: the manifest before its receipts.
            if target.parent.is_dir():
                sync_directory(target.parent)

    def append(self, path: str, line: bytes, *, flush: bool = False) -> None:
        target = self.location / path
        atomic.refuse_links(self.location, target)
        target.parent.mkdir(exist_ok=True)
        descriptor = atomic.open_log(target)
        try:
            os.write(descriptor, line)  # one write: lines of two builders do not mix
        finally:
            os.close(descriptor)

    def flush(self) -> None:
        """Do nothing: no line is held back."""

    def _opened(self, path: str) -> BinaryIO:
        return os.fdopen(self._descriptor(path), "rb")

    def _descriptor(self, path: str) -> int:
        """Open a regular file for reading. A folder, pipe or device counts as absent: it is no file of a cache."""
        target = self.location / path
        try:
            descriptor = open_file(target, os.O_RDONLY, follow=True)
        except OSError as error:
            if error.errno in _ABSENT:
                raise FileNotFoundError(errno.ENOENT, "expected a file", str(target)) from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "expected a regular file, found another kind", str(target))
        return descriptor
