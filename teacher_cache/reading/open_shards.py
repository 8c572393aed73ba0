"""Shards of one cache that are open in this process, and those that are being fetched."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from teacher_cache.format import paths
from teacher_cache.format.manifest import Description
from teacher_cache.storage.base import Storage
from teacher_cache.storage.shard_files import ShardEntry

__all__ = ["OPEN_REMOTE_SHARDS", "OpenShards"]

OPEN_SHARDS = 48  # kept open at a time; a zarr shard holds three or four descriptors, processes often get 1024
OPEN_REMOTE_SHARDS = 96  # the same, where an open shard is one that needs not be fetched again
FETCHING = 8  # shards under way at once


class OpenShards:
    """The open shards and the threads of a cache in this process; a pickled or forked copy starts with none.

    Any thread may call it. At most OPEN_SHARDS stay open, of a remote storage OPEN_REMOTE_SHARDS; those used last stay.
    """

    def __init__(self, storage: Storage, description: Description) -> None:
        self._storage = storage
        self._description = description
        self._lock = threading.Lock()
        self._shards: OrderedDict[int, paths.ShardReader] = OrderedDict()
        self._coming: dict[int, Future[paths.ShardReader]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._fetchers: ThreadPoolExecutor | None = None
        self._process = os.getpid()  # last: a second thread must not pass the check below with the old lock

    def get(self, entry: ShardEntry) -> paths.ShardReader:
        """Return the reader of a shard, opened now if it is not open. Raises ShardDamaged, StorageError."""
        self._check_process()
        with self._lock:
            found = self._shards.get(entry.shard)
            if found is not None:
                self._shards.move_to_end(entry.shard)
                return found
            coming = self._coming.get(entry.shard)
        if coming is not None:
            return coming.result()
        # Opened outside the lock, so that one slow disk does not stop all threads; the first to finish is kept.
        return self._keep(
            entry, paths.open_shard(self._storage.of_shard(entry), self._description, entry.shard, entry.records)
        )

    def prepare(self, entries: Sequence[ShardEntry]) -> None:
        """Start opening the shards that are neither open nor being opened."""
        self._check_process()
        with self._lock:
            for entry in entries:
                if entry.shard in self._shards:
                    self._shards.move_to_end(entry.shard)  # its turn comes: nothing prepared now may push it out
                elif entry.shard not in self._coming and len(self._coming) < 2 * FETCHING:
                    if self._fetchers is None:
                        self._fetchers = ThreadPoolExecutor(FETCHING, thread_name_prefix="teacher-cache-fetch")
                    self._coming[entry.shard] = self._fetchers.submit(self._fetch, entry)

    def _fetch(self, entry: ShardEntry) -> paths.ShardReader:
        try:
            opened = paths.open_shard(self._storage.of_shard(entry), self._description, entry.shard, entry.records)
            opened.load()
            return self._keep(entry, opened)  # before it leaves `_coming`, so that no reader fetches it a second time
        finally:
            with self._lock:
                self._coming.pop(entry.shard, None)

    def _keep(self, entry: ShardEntry, opened: paths.ShardReader) -> paths.ShardReader:
        with self._lock:
            found = self._shards.setdefault(entry.shard, opened)
            while len(self._shards) > (OPEN_REMOTE_SHARDS if self._storage.remote else OPEN_SHARDS):
                self._shards.popitem(last=False)  # its files close when its last reader is done
        return found

    def pool(self, threads: int) -> ThreadPoolExecutor:
        """Return the threads that decode; the first call decides how many."""
        self._check_process()
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(threads, thread_name_prefix="teacher-cache")
            return self._pool

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # Threads do not survive a fork, and a lock may have been held across it: begin with new ones.
            self.__init__(self._storage, self._description)  # type: ignore[misc]

    def __reduce__(self) -> Any:
        return type(self), (self._storage, self._description)
