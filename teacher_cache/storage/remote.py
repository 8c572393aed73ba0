"""Caches behind a URL: object stores, web servers, whatever fsspec speaks. The only file that imports fsspec.

Writing needs a store whose uploads are atomic (a whole object appears or none), as S3, GCS and Azure are. A shard's
file is the unit of transfer: it is fetched whole when it is first read, into a temporary file that vanishes with its
last user, because a record's arrays lie in several places and a request costs tens of milliseconds wherever it goes.
"""

import errno
import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from teacher_cache.errors import ManifestError, ShardDamaged, StorageError
from teacher_cache.storage.base import VOLATILE, ShardFiles
from teacher_cache.storage.kept_files import split_keeping
from teacher_cache.storage.remote_read import TooLarge, client_options, part, persist, stream
from teacher_cache.storage.shard_files import ShardEntry, ShardFile, ShardFileReader
from teacher_cache.system import open_file

__all__ = ["MAX_DOCUMENT", "RemoteStorage", "folders"]

T = TypeVar("T")

REQUESTS = 16  # under way at once where many small files are read
MAX_DOCUMENT = 1 << 28  # bytes of a document that a store may send; a manifest of ten million shapes is about 30 MB
LOG_SECONDS = 30.0  # between uploads of the log, which an object store cannot append to
_READ_ONLY = ("http", "https")
# Of the Hub, which its client tells as a file that is missing, as a finished cache's manifest may be.
_NO_REPOSITORY = {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "HFValidationError"}
_OF_THIS_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}  # of the file that is fetched into


class RemoteStorage:
    """The files of a cache below a URL. Options and credentials are fsspec's, from its configuration or environment."""

    remote = True

    def __init__(self, url: str) -> None:
        self.location: str = url
        self.kept, self._url = split_keeping(url)
        self._lock = threading.Lock()
        self._held: tuple[int, Any, str] | None = None  # process, file system, path of the cache in it
        self._logs: dict[str, list[bytes]] = {}
        self._log_name, self._log_sent = "", 0.0
        self._fs()  # fails now for a URL whose protocol no package supports

    def read(self, path: str) -> bytes:
        pieces: list[bytes] = []

        def begin() -> Callable[[bytes], object]:
            pieces.clear()
            return pieces.append

        try:
            self._fetch(path, MAX_DOCUMENT, begin)
        except TooLarge:
            raise ManifestError(
                f"{self.location}/{path}: the store sends more than {MAX_DOCUMENT} bytes, the limit for a document of "
                "a cache.\n"
                "  Check the address."
            ) from None
        return b"".join(pieces)

    def read_range(self, file: ShardFile, offset: int, size: int) -> bytes:
        if self.kept is not None:
            reader = self.kept.open(self, file, 0)
            start = min(offset, reader.size)
            return reader.read(start, min(size, reader.size - start)).tobytes()
        return self._ask(file.path, lambda fs, base: part(fs, f"{base}/{file.path}", offset, size))

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
                return self._ask(path, lambda fs, base: int(fs.size(f"{base}/{path}")))
            except FileNotFoundError:
                return None

        return size

    def of_shard(self, entry: ShardEntry) -> ShardFiles:
        return _FilesOfShard(self, entry) if self.kept is None else self.kept.of_shard(self, entry)

    def digest(self, path: str, limit: int) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0

        def begin() -> Callable[[bytes], object]:
            nonlocal digest
            digest = hashlib.sha256()
            return digest.update

        try:
            size = self._fetch(path, limit, begin)
        except TooLarge:
            return limit + 1, ""
        return size, digest.hexdigest()

    def fetch(self, path: str, shard: int, limit: int, folder: str | None = None) -> tuple[str, str]:
        """Fetch a shard's file of at most ``limit`` bytes into a new temporary one; -> its name and SHA-256.

        folder  for it; None is TMPDIR. Raises ShardDamaged where the store has none, or a longer one.
        """
        descriptor, name = tempfile.mkstemp(prefix="teacher-cache-", dir=folder)
        digest = hashlib.sha256()

        def begin() -> Callable[[bytes], object]:
            nonlocal digest
            # A retry starts afresh: pieces of the failed attempt must neither stay in the file nor in the hash.
            digest = hashlib.sha256()
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)

            def take(piece: bytes) -> None:
                digest.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]

            return take

        try:
            self._fetch(path, limit, begin)
        except FileNotFoundError as error:
            os.unlink(name)
            raise ShardFileReader.missing(path, shard) from error
        except TooLarge:
            os.unlink(name)
            what = f"expected at most {limit} bytes, as in the manifest; the store sends more"
            raise ShardDamaged(what, shard=shard, file=path) from None
        except BaseException:
            os.unlink(name)
            raise
        finally:
            os.close(descriptor)
        return name, digest.hexdigest()

    def names(self, folder: str) -> list[str]:
        if not self._lists:
            raise StorageError(
                f"{self.location}: expected a store that lists its files; a web server does not.\n"
                "  Only a finished cache can be read from here."
            )
        try:
            entries = self._ask(folder, lambda fs, base: fs.ls(f"{base}/{folder}".rstrip("/"), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(_name(entry) for entry in entries if entry["type"] == "file" and _name(entry))

    def files(self) -> list[str] | None:
        if not self._lists:
            return None
        return sorted(path for path in self._listing() if path.partition("/")[0] not in VOLATILE)

    def prepare(self) -> list[str]:
        fs, base = self._fs()
        if _protocols(fs) & set(_READ_ONLY):
            raise StorageError(f"{self.location}: expected a writable store; a web server is read-only.")
        if not _is_object_store(fs):
            self._ask("", lambda fs, base: fs.makedirs(base, exist_ok=True))
        return []

    def tidy(self) -> None:
        """Do nothing: a store holds nothing that is only needed during a build."""

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
            # Hashed from memory, not read back: a store that corrupts the upload is found by `verify`.
            written.append(ShardFile(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        self._put(note, receipt(written))  # last: with it the shard counts
        return True

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                self._ask(path, lambda fs, base, path=path: fs.rm_file(f"{base}/{path}"))  # type: ignore[misc]

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
        """List every file with its size, by path relative to the cache, in one request."""
        base = self._fs()[1]
        try:
            found = self._ask("", lambda fs, base: fs.find(base, detail=True))
        except FileNotFoundError:
            return {}
        start = len(base.strip("/")) + 1
        return {name.strip("/")[start:]: int(entry["size"]) for name, entry in found.items() if entry["type"] == "file"}

    def _put(self, path: str, data: bytes) -> None:
        def put(fs: Any, base: str) -> None:
            if not _is_object_store(fs):
                fs.makedirs(f"{base}/{path}".rpartition("/")[0], exist_ok=True)
            fs.pipe_file(f"{base}/{path}", data)

        try:
            self._ask(path, put)
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.location}/{path}: cannot be written, because its bucket or folder does not exist ({error}).\n"
                "  Create the bucket, or use an existing one."
            ) from error

    def _fs(self) -> tuple[Any, str]:
        with self._lock:
            if self._held is None or self._held[0] != os.getpid():  # file systems do not survive a fork
                self._held = (os.getpid(), *_file_system(self._url))
            return self._held[1], self._held[2]

    def _fetch(self, path: str, limit: int, begin: Callable[[], Callable[[bytes], object]]) -> int:
        """Pass a file to the function that ``begin`` returns; -> its size.

        ``begin`` is called once per attempt, so that a retry starts afresh. Raises TooLarge.
        """
        return self._ask(path, lambda fs, base: stream(fs, f"{base}/{path}", limit, begin()))

    def _ask(self, path: str, call: Callable[[Any, str], T]) -> T:
        """Call ``call`` with the file system and the cache's path in it, and retry where that may help.

        Raises FileNotFoundError for a missing file; any other error of the store's client becomes one of ours.
        """
        fs, base = self._fs()
        try:
            return persist(lambda: call(fs, base))
        except (FileNotFoundError, NotADirectoryError, StorageError, TooLarge) as error:
            if isinstance(error.__cause__, Exception) and type(error.__cause__).__name__ in _NO_REPOSITORY:
                raise StorageError(
                    f"{self.location}: the repository does not exist, or the token in use may not read it "
                    f"({type(error.__cause__).__name__}).\n"
                    "  Check the address, and HF_TOKEN or `hf auth login` if it is private."
                ) from error
            raise
        except OSError as error:
            if error.errno in _OF_THIS_MACHINE:
                raise
            raise self._refused(path, error) from error
        except Exception as error:  # each store has its own client library, with its own errors
            raise self._refused(path, error) from error

    def _refused(self, path: str, error: Exception) -> StorageError:
        reason = ", ".join([f"{type(error).__name__}: {error}".removeprefix("HttpStatus: "), *_notes(error)])
        return StorageError(
            f"{self.location}/{path}: the request to the store failed ({reason}).\n"
            "  Check the address, the credentials and the network; docs/object-stores.md says where they are set. "
            "Committed shards are kept; run the same command again to resume."
        )


class _FilesOfShard:
    """Access to the files of one shard; together they have the size in the manifest, and no more is fetched."""

    def __init__(self, storage: RemoteStorage, entry: ShardEntry) -> None:
        self._storage = storage
        self._left = entry.bytes

    def open(self, path: str, shard: int) -> ShardFileReader:
        name, _ = self._storage.fetch(path, shard, self._left)
        try:
            reader = ShardFileReader(open_file(name, os.O_RDONLY, follow=True), path, shard)
        finally:
            os.unlink(name)  # an open file stays readable
        self._left -= reader.size
        return reader


def _notes(error: Exception) -> list[str]:
    return list(getattr(error, "__notes__", []))


def folders(url: str) -> list[str]:
    """List the URLs of the folders directly below a URL, sorted. Raises FileNotFoundError, StorageError."""
    storage = RemoteStorage(url)
    if not storage._lists:
        raise StorageError(f"{url}: expected a store that lists its files; a web server does not.")
    entries = storage._ask("", lambda fs, base: fs.ls(base, detail=True))
    return sorted(f"{url}/{_name(entry)}" for entry in entries if entry["type"] == "directory")


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.config import conf
        from fsspec.core import url_to_fs

        # Listings are asked for to see what is there now, so none is remembered.
        options: dict[str, Any] = {}
        if "::" not in url:
            protocol = url.partition("://")[0]
            options = {"use_listings_cache": False} | client_options(protocol, conf.get(protocol) or {})
        fs, base = url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(
            f"{url}: no installed package supports this protocol ({error}).\n"
            "  s3:// needs s3fs and http:// needs aiohttp, both in `pip install 'i2p-pretrain[remote]'`; gs:// needs "
            "gcsfs, abfs:// needs adlfs."
        ) from error
    return fs, base.rstrip("/")


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _is_object_store(fs: Any) -> bool:
    """Check for a store without folders: making one first would cost a request, or make a bucket."""
    return bool(_protocols(fs) & {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl"})


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]
