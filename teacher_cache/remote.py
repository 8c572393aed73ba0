"""Caches behind a URL: object stores, web servers, whatever fsspec speaks. The only file that imports fsspec.

Writing needs a store whose uploads are atomic (a whole object appears or none), as S3, GCS and Azure are. A shard's
file is the unit of transfer: it is fetched whole when it is first read, into a temporary file that vanishes with its
last user, because a record's arrays lie in several places and a request costs tens of milliseconds wherever it goes.
"""

import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from teacher_cache.errors import StorageError
from teacher_cache.files import ShardFileReader
from teacher_cache.manifest import ShardFile
from teacher_cache.storage import VOLATILE

__all__ = ["RemoteStorage", "folders"]

REQUESTS = 16  # under way at once where many small files are read
PIECE = 16 << 20  # bytes of a large file asked for at a time while it is hashed
LOG_SECONDS = 30.0  # between uploads of the log, which an object store cannot append to
_READ_ONLY = ("http", "https")


class RemoteStorage:
    """The files of a cache below a URL. Options and credentials are fsspec's, from its configuration or environment."""

    remote = True

    def __init__(self, url: str) -> None:
        self.location: str = url
        self._lock = threading.Lock()
        self._held: tuple[int, Any, str] | None = None  # process, file system, path of the cache in it
        self._logs: dict[str, list[bytes]] = {}
        self._log_name, self._log_sent = "", 0.0
        self._fs()  # a URL that nothing speaks is found now

    def read(self, path: str) -> bytes:
        with self._asking(path) as (fs, base):
            return bytes(fs.cat_file(f"{base}/{path}"))

    def read_many(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        def read(path: str) -> bytes | None:
            try:
                return self.read(path)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="teacher-cache-requests") as pool:
            for start in range(0, len(paths), 64 * REQUESTS):  # so that answers do not pile up
                yield from pool.map(read, paths[start : start + 64 * REQUESTS])

    def sizes(self, *, few: bool = False) -> Callable[[str], int | None]:
        if self._lists and not few:
            return self._listing().get

        def size(path: str) -> int | None:
            try:
                with self._asking(path) as (fs, base):
                    return int(fs.size(f"{base}/{path}"))
            except FileNotFoundError:
                return None

        return size

    def open(self, path: str, shard: int) -> ShardFileReader:
        descriptor, name = tempfile.mkstemp(prefix="teacher-cache-")
        os.close(descriptor)
        try:
            with self._asking(path) as (fs, base):
                fs.get_file(f"{base}/{path}", name)
            return ShardFileReader(os.open(name, os.O_RDONLY | os.O_CLOEXEC), path, shard)
        except FileNotFoundError as error:
            raise ShardFileReader.missing(path, shard) from error
        finally:
            os.unlink(name)  # an open file stays readable

    def digest(self, path: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self._asking(path) as (fs, base):
            whole = int(fs.size(f"{base}/{path}"))
            while size < whole:
                piece = fs.cat_file(f"{base}/{path}", start=size, end=min(size + PIECE, whole))
                if not piece:
                    break
                digest.update(piece)
                size += len(piece)
        return size, digest.hexdigest()

    def names(self, folder: str) -> list[str]:
        if not self._lists:
            raise StorageError(
                f"{self.location}: expected a store that lists its files; a web server does not.\n"
                "  A finished cache can be read from here, an unfinished one where it is built."
            )
        with self._asking(folder) as (fs, base):
            try:
                entries = fs.ls(f"{base}/{folder}".rstrip("/"), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(_name(entry) for entry in entries if entry["type"] == "file" and _name(entry))

    def files(self) -> list[str] | None:
        if not self._lists:
            return None
        return sorted(path for path in self._listing() if path.partition("/")[0] not in VOLATILE)

    def prepare(self) -> list[str]:
        with self._asking("") as (fs, base):
            if _protocols(fs) & set(_READ_ONLY):
                raise StorageError(f"{self.location}: expected a store that takes files; a web server does not.")
            if not _is_object_store(fs):
                fs.makedirs(base, exist_ok=True)
        return []

    def tidy(self) -> None:
        """Nothing is only of use while a build goes on."""

    def write_documents(self, documents: Mapping[str, bytes]) -> None:
        for path, data in documents.items():
            try:
                same = self.read(path) == data
            except FileNotFoundError:
                same = False
            if not same:
                self._put(path, data)

    def write_new(self, path: str, data: bytes) -> bytes:
        try:
            return self.read(path)
        except FileNotFoundError:
            self._put(path, data)
            return data

    def commit(
        self,
        shard: int,
        files: Iterable[tuple[str, list[bytes]]],
        note: str,
        receipt: Callable[[list[ShardFile]], bytes],
        settled: Callable[[], bool],
    ) -> bool:
        written, withdrawn = [], False
        for path, pieces in files:
            data = b"".join(pieces)
            if not withdrawn:
                # As late as possible. A receipt that is there now is not of these files: without it, a crash between
                # these uploads leaves a shard to be built.
                if settled():
                    return False
                self.remove([note])
                withdrawn = True
            self._put(path, data)
            written.append(ShardFile(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        self._put(note, receipt(written))
        return True

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            with self._asking(path) as (fs, base):
                try:
                    fs.rm_file(f"{base}/{path}")
                except FileNotFoundError:
                    continue

    def append(self, path: str, line: bytes, *, flush: bool = False) -> None:
        if not self._log_name:
            # An object of its own for each builder: nothing can be added to one that is there.
            self._log_name = time.strftime("%Y%m%dT%H%M%S-", time.gmtime()) + secrets.token_hex(4)
        self._logs.setdefault(path, []).append(line)
        if flush or time.monotonic() - self._log_sent > LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        for path, lines in self._logs.items():
            stem, dot, suffix = path.rpartition(".")
            self._put(f"{stem}-{self._log_name}{dot}{suffix}", b"".join(lines))
        self._log_sent = time.monotonic()

    def __reduce__(self) -> Any:
        return type(self), (self.location,)

    @property
    def _lists(self) -> bool:
        return not _protocols(self._fs()[0]) & set(_READ_ONLY)

    def _listing(self) -> dict[str, int]:
        """Size of every file, by path relative to the cache: one listing."""
        with self._asking("") as (fs, base):
            try:
                found = fs.find(base, detail=True)
            except FileNotFoundError:
                return {}
        start = len(base.strip("/")) + 1
        return {name.strip("/")[start:]: int(entry["size"]) for name, entry in found.items() if entry["type"] == "file"}

    def _put(self, path: str, data: bytes) -> None:
        with self._asking(path) as (fs, base):
            parent = f"{base}/{path}".rpartition("/")[0]
            if not _is_object_store(fs):
                fs.makedirs(parent, exist_ok=True)
            try:
                fs.pipe_file(f"{base}/{path}", data)
            except FileNotFoundError as error:
                raise StorageError(
                    f"{self.location}/{path}: expected a place to put this ({error}).\n"
                    "  Make the bucket, or name one that is there."
                ) from error

    def _fs(self) -> tuple[Any, str]:
        with self._lock:
            if self._held is None or self._held[0] != os.getpid():  # file systems do not survive a fork
                self._held = (os.getpid(), *_file_system(self.location))
            return self._held[1], self._held[2]

    @contextmanager
    def _asking(self, path: str) -> Iterator[tuple[Any, str]]:
        """The file system and the cache's path in it; what it raises becomes one of our errors."""
        try:
            yield self._fs()
        except (FileNotFoundError, StorageError):
            raise
        except Exception as error:  # each store has a library of its own, and that its own errors
            said = f"{type(error).__name__}: {error}"
            raise StorageError(
                f"{self.location}/{path}: the store did not do what was asked ({said}).\n"
                "  Check the address, the credentials and the network; docs/object-stores.md says where they are set. "
                "What is committed is kept; run the same command again to go on."
            ) from error


def folders(url: str) -> list[str]:
    """URLs of the folders directly below a URL, sorted. Raises FileNotFoundError, StorageError."""
    storage = RemoteStorage(url)
    if not storage._lists:
        raise StorageError(f"{url}: expected a store that lists its files; a web server does not.")
    with storage._asking("") as (fs, base):
        entries = fs.ls(base, detail=True)
    return sorted(f"{url}/{_name(entry)}" for entry in entries if entry["type"] == "directory")


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        # Listings are asked for to see what is there now, so none is remembered.
        options = {} if "::" in url else {"use_listings_cache": False}
        fs, base = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"{url}: no installed package speaks this protocol ({error}).\n"
            "  s3:// needs s3fs and http:// needs aiohttp, both in `pip install 'i2p-pretrain[remote]'`; gs:// needs "
            "gcsfs, abfs:// needs adlfs."
        ) from error
    return fs, base.rstrip("/")


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _is_object_store(fs: Any) -> bool:
    """Stores without folders: making one first would cost a request, or make a bucket."""
    return bool(_protocols(fs) & {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl"})


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]
