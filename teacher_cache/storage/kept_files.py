"""Shard files fetched once and kept on disk, as ``simplecache::``, ``filecache::`` and ``blockcache::`` URLs ask for.

fsspec's own caches of these names key a file by its address. A cache that grows or is repaired rewrites some addresses,
so a copy could be stale without anyone noticing. Here a file is keyed by the SHA-256 in its receipt and compared with
it when it is opened: a damaged copy is fetched again, and documents are never kept.
"""

import hashlib
import multiprocessing.util
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any, Protocol

from teacher_cache.documents import decode_document
from teacher_cache.errors import ShardDamaged
from teacher_cache.storage.shard_files import ShardEntry, ShardFile, ShardFileReader
from teacher_cache.system import open_file

__all__ = ["KeptFiles", "split_keeping"]

_KEEPING = ("simplecache", "filecache", "blockcache", "cached")
_RECEIPT = "receipts/{:06d}.json"
_BLOCK = 1 << 20


class Fetches(Protocol):
    """A store that files are fetched from."""

    @property
    def location(self) -> str: ...

    def read(self, path: str) -> bytes:
        """Read a whole file. Raises FileNotFoundError."""

    def fetch(self, path: str, shard: int, limit: int, folder: str | None = None) -> tuple[str, str]:
        """Fetch a shard's file into a new temporary one; -> its name, and its SHA-256. Raises ShardDamaged."""


def split_keeping(url: str) -> "tuple[KeptFiles | None, str]":
    """Split a URL into the file keeper that its first words ask for, or None, and the URL without them."""
    words = url.split("::")
    rest = words
    while len(rest) > 1 and rest[0] in _KEEPING:
        rest = rest[1:]
    if rest is words:
        return None, url
    return KeptFiles(words[0]), "::".join(rest)


class KeptFiles:
    """Shard files on a disk by the SHA-256 of their bytes. Safe from several threads and processes.

    protocol  whose ``cache_storage`` in fsspec's configuration names the folder; without one, a temporary folder of
              this process.
    """

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._compared: set[tuple[int, ...]] = (
            set()
        )  # copies found sound by this process, as the file system knows them

    def of_shard(self, storage: "Fetches", entry: ShardEntry) -> "_KeptShard":
        return _KeptShard(self, storage, entry)

    def open(self, storage: "Fetches", file: ShardFile, shard: int) -> ShardFileReader:
        """Open a file of a shard: its copy on disk, or fetched now and kept. Raises ShardDamaged."""
        folder = self._folder()
        kept = folder / file.sha256
        reader = self._sound_copy(kept, file, shard)
        if reader is not None:
            return reader
        name, digest = storage.fetch(file.path, shard, file.bytes, str(folder))
        try:
            reader = ShardFileReader(open_file(name, os.O_RDONLY, follow=True), file.path, shard)
            if digest == file.sha256:
                os.replace(name, kept)  # atomic: processes that fetch the same file at once put equal bytes there
        finally:
            Path(name).unlink(missing_ok=True)  # damage is the reader's to find, and not worth a place
        return reader

    def _sound_copy(self, kept: Path, file: ShardFile, shard: int) -> ShardFileReader | None:
        try:
            descriptor = open_file(kept, os.O_RDONLY, follow=False)
        except OSError:
            return None
        reader = ShardFileReader(descriptor, file.path, shard)
        status = os.fstat(descriptor)
        # What was compared is remembered by the file's identity, not its name: a name may get another file.
        known = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if reader.size != file.bytes:
            return None
        if known not in self._compared:
            digest = hashlib.sha256()
            for at in range(0, reader.size, _BLOCK):
                digest.update(reader.read(at, min(_BLOCK, reader.size - at)).data)
            if digest.hexdigest() != file.sha256:
                return None
            self._compared.add(known)
        return reader

    def _folder(self) -> Path:
        from fsspec.config import conf

        given: Any = (conf.get(self._protocol) or {}).get("cache_storage", "TMP")
        place = str(given[-1] if isinstance(given, list | tuple) else given)
        if place == "TMP":
            return _temporary_folder()
        folder = Path(place).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class _KeptShard:
    """The files of one shard, as its receipt lists them."""

    def __init__(self, kept: KeptFiles, storage: "Fetches", entry: ShardEntry) -> None:
        self._kept, self._storage, self._entry = kept, storage, entry
        self._files: dict[str, ShardFile] | None = None

    def open(self, path: str, shard: int) -> ShardFileReader:
        if self._files is None:
            self._files = _listed(self._storage, self._entry)
        if path not in self._files:
            raise ShardDamaged("its receipt does not list this file", shard=shard, file=path)
        return self._kept.open(self._storage, self._files[path], shard)


_lock = threading.Lock()
_made: tuple[int, Path] | None = None


def _temporary_folder() -> Path:
    """Create a folder that is removed when this process ends.

    This includes forked processes, which run multiprocessing's exit handlers but not `atexit`.
    """
    global _made
    with _lock:
        if _made is None or _made[0] != os.getpid():
            _made = (os.getpid(), Path(tempfile.mkdtemp(prefix="teacher-cache-kept-")))
            multiprocessing.util.Finalize(None, shutil.rmtree, (_made[1], True), exitpriority=0)
        return _made[1]


def _listed(storage: "Fetches", entry: ShardEntry) -> dict[str, ShardFile]:
    """Return the files that the receipt of a shard lists, by path. Raises ShardDamaged unless it is the manifest's."""
    name = _RECEIPT.format(entry.shard)
    try:
        data = storage.read(name)
    except FileNotFoundError as error:
        raise ShardDamaged("expected a receipt here, found none", shard=entry.shard, file=name) from error
    if hashlib.sha256(data).hexdigest() != entry.receipt:
        raise ShardDamaged("its SHA-256 differs from the one in the manifest", shard=entry.shard, file=name)
    return {
        item.text("path"): ShardFile(
            path=item.text("path"), bytes=item.integer("bytes", 0, entry.bytes), sha256=item.digest("sha256")
        )
        for item in decode_document(data, f"{storage.location}/{name}").objects("files")
    }
