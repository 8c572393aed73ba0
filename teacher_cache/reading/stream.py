"""Batches of an epoch: record order, shared among ranks and workers, resumable at any batch.

Batch b of an epoch is the records order[b * G : (b + 1) * G], G = batch_size; rank r reads the r-th of equal,
contiguous parts of it. Loader workers alternate: worker w of W reads batches start + w, start + w + W, and so on, the
order in which torch's DataLoader asks them. So the content of a batch follows from the order and its number alone, and
an epoch can resume with another number of ranks, workers or threads.

Nothing here needs torch: `trainer.pretraining.data.Loader` is built on it, and so can other loaders be.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import CacheError, ShardDamaged
from teacher_cache.format.codecs import crc32c
from teacher_cache.format.records import RecordBatch
from teacher_cache.reading.order import epoch_order
from teacher_cache.reading.read_ahead import read_ahead
from teacher_cache.reading.selection import Selection

__all__ = ["NothingSound", "Stream", "StreamBatch", "stream"]

logger = logging.getLogger(__name__)


class NothingSound(CacheError):
    """Every record of the order is damaged, and damaged records are to be skipped."""


class Readable(Protocol):
    """The part of a cache that a stream needs. `read` may be called by several threads at once."""

    def read(self, indices: NDArray[np.int64], *, depth: bool = ...) -> RecordBatch: ...


class Shuffled(Readable, Protocol):
    """The part of a cache that a shuffled stream needs: `Readable`, and the records of each shard."""

    @property
    def counts(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamBatch:
    """One rank's share of one batch; B rows.

    step       number of the batch in the epoch, from 0.
    records    [B] int64, positions in the cache, or in the selection of it that is streamed.
    content    what is stored of them.
    stand_ins  [B] bool, True where a record stands in for a damaged one.
    padded     [B] bool, True where the epoch begins again to fill its last batch.
    state      keyword arguments of the stream that begins with the next batch; plain JSON values.
    """

    step: int
    records: NDArray[np.int64]
    content: RecordBatch
    stand_ins: NDArray[np.bool_]
    padded: NDArray[np.bool_]
    state: dict[str, Any]

    def __len__(self) -> int:
        return int(self.records.size)


def stream(
    cache: Shuffled, *, batch_size: int, seed: int = 0, epoch: int = 0, window: int = 32, **options: Any
) -> "Stream":
    """Stream one epoch of a cache in batches, every record once, shuffled by ``epoch_order(seed, epoch, window)``.

    options  those of ``Stream``, which also documents the errors.

    `batch.state` holds all that decides what comes after a batch: ``stream(cache, **state)`` resumes with the next one,
    in another process, on another machine, or with other ranks, workers and readers. It refuses a cache whose records
    are not in the same order, as one that has grown, and another selection of its shapes.
    """
    order = epoch_order(cache.counts, seed=seed, epoch=epoch, window=window)
    settings = {"seed": int(seed), "epoch": int(epoch), "window": int(window)}
    return Stream(cache, order, batch_size=batch_size, settings=settings, **options)


class Stream:
    """An iterator over the batches of an order; ``stream`` makes one of the usual order.

    cache       open for reading, or a selection of its shapes (`teacher_cache.select`).
    order       [n] integers, records of the cache in the order in which they are wanted; n >= 1.
    batch_size  records of a batch over all ranks, a multiple of `ranks`.
    rank        0..ranks - 1: whose part of each batch is read.
    worker      0..workers - 1: whose turns are read.
    start       the batch to begin with, 0..steps.
    remainder   how an incomplete last batch is handled: "drop" leaves them out of this epoch; "pad" fills
                up from the beginning of the order, and marks these rows as padded.
    damaged     a record that fails its checksum "raise"s ShardDamaged at its batch; "skip" puts the next sound record
                of the order (which wraps around) in its place, so that batches keep their size whoever reads them.
    depth       also read depth images.
    readers     threads that read ahead; 0 reads when asked.
    prefetch    batches that are ready or being read at most, >= 1: with the one in use, all that is in memory.
    apply       called with each StreamBatch in the thread that read it; its results are yielded instead of the batches.
    order_crc32c  of a state: the order it belongs to.
    known_damage  records known to be damaged, which the stream adds to: pass one set to all epochs of a run, so that
                  none is tried twice. The first to find a record damaged logs a warning.
    settings    of the order, handed on in the states.

    steps    batches of the epoch.
    skipped  stand-ins in the batches yielded so far.

    Close it, or use it in a `with`, when leaving before the end: its threads end then. Raises ValueError for arguments,
    an order that is too short for one batch, and a state of another order. While iterating: ShardDamaged, where all is
    damaged NothingSound, OSError of a failing disk, and what `apply` raises, each at its batch.
    """

    def __init__(
        self,
        cache: Readable,
        order: NDArray[np.integer[Any]],
        *,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        worker: int = 0,
        workers: int = 1,
        start: int = 0,
        remainder: Literal["drop", "pad"] = "drop",
        damaged: Literal["raise", "skip"] = "raise",
        depth: bool = False,
        readers: int = 1,
        prefetch: int = 4,
        apply: Callable[[StreamBatch], Any] | None = None,
        order_crc32c: int | None = None,
        known_damage: set[int] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        wanted: NDArray[np.int64] = np.ascontiguousarray(order, np.int64)
        for name, number, count in (("rank", rank, ranks), ("worker", worker, workers)):
            if not 0 <= number < count:
                raise ValueError(f"stream: {name} = {number} of {name}s = {count}; expected 0..{name}s - 1")
        if batch_size < 1 or batch_size % ranks:
            raise ValueError(f"stream: batch_size = {batch_size} is not a multiple of ranks = {ranks}, 1 or more")
        if remainder not in ("drop", "pad") or damaged not in ("raise", "skip"):
            raise ValueError(
                f"stream: remainder = {remainder!r}, damaged = {damaged!r}; expected drop or pad, raise or skip"
            )
        if readers < 0 or prefetch < 1:
            raise ValueError(f"stream: readers = {readers}, prefetch = {prefetch}; expected 0 or more, 1 or more")
        least = batch_size if remainder == "drop" else 1
        if wanted.ndim != 1 or wanted.size < least:
            raise ValueError(
                f"stream: the order has shape {list(wanted.shape)}; expected at least {least} records in a row.\n"
                '  Lower batch_size, or fill the last batch with remainder = "pad".'
            )
        self.steps: int = wanted.size // batch_size if remainder == "drop" else -(-wanted.size // batch_size)
        if not 0 <= start <= self.steps:
            raise ValueError(f"stream: start = {start}; this epoch has batches 0..{self.steps - 1}")
        # Of the cache's own records: two selections may have as many records in as many shards.
        checksum = crc32c(cache.stored(wanted) if isinstance(cache, Selection) else wanted)
        if order_crc32c is not None and order_crc32c != checksum:
            raise ValueError(
                f"stream: the records of this epoch are in another order (CRC-32C {checksum}) than those of the state "
                f"({order_crc32c}).\n"
                "  Resume with the cache, seed, epoch and window of the state; after a cache has grown, begin a new "
                "epoch."
            )
        self.skipped = 0
        reader = _Reader(
            cache=cache,
            order=wanted,
            batch_size=batch_size,
            share=batch_size // ranks,
            rank=rank,
            skip=damaged == "skip",
            depth=depth,
            apply=apply,
            known=set() if known_damage is None else known_damage,
            state={
                **(settings or {}),
                "batch_size": int(batch_size),
                "remainder": remainder,
                "damaged": damaged,
                "depth": depth,
                "order_crc32c": checksum,
            },
        )
        turns = range(start + worker, self.steps, workers)
        self._left = len(turns)
        self._results = read_ahead(reader.batch, turns, threads=readers, ahead=prefetch)

    def __len__(self) -> int:
        """Return the number of batches still to come."""
        return self._left

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        """Return the next StreamBatch, or the result of `apply` on it."""
        result, skipped = next(self._results)
        self._left -= 1
        self.skipped += skipped
        return result

    def close(self) -> None:
        """End the threads; what was read ahead is dropped."""
        self._results.close()
        self._left = 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_logging_damage = threading.Lock()


@dataclass(kw_only=True, eq=False)
class _Reader:
    """Reads any batch of an order; used by several threads."""

    cache: Readable
    order: NDArray[np.int64]
    batch_size: int
    share: int
    rank: int
    skip: bool
    depth: bool
    apply: Callable[[StreamBatch], Any] | None
    known: set[int]
    state: dict[str, Any]

    def batch(self, step: int) -> tuple[Any, int]:
        """Read batch `step`; -> it, or the result of `apply` on it, and its number of stand-ins."""
        places = step * self.batch_size + self.rank * self.share + np.arange(self.share)
        wanted = self.order[places % self.order.size]
        if hasattr(self.cache, "prepare"):  # a cache behind a URL fetches ahead
            self.cache.prepare(self.order[places[0] :])
        records, content = self._read(wanted, places)
        stand_ins = records != wanted
        result = StreamBatch(
            step=step,
            records=records,
            content=content,
            stand_ins=stand_ins,
            padded=places >= self.order.size,
            state={**self.state, "start": step + 1},
        )
        return (result if self.apply is None else self.apply(result)), int(stand_ins.sum())

    def _read(self, wanted: NDArray[np.int64], places: NDArray[np.int64]) -> tuple[NDArray[np.int64], RecordBatch]:
        if not self.skip:
            return wanted, self._load(wanted)
        records = self._replaced(places, tried=False) if self.known else wanted
        try:
            return records, self._load(records)
        except ShardDamaged:
            records = self._replaced(places, tried=True)  # one of them is damaged: find out which
        return records, self._load(records)

    def _load(self, records: NDArray[np.int64]) -> RecordBatch:
        return self.cache.read(records, depth=True) if self.depth else self.cache.read(records)

    def _replaced(self, places: NDArray[np.int64], *, tried: bool) -> NDArray[np.int64]:
        """Return, for each place, the next record of the order that is not known to be damaged.

        tried  read it first, to know.
        """
        return np.array([self._first(place, tried=tried) for place in places.tolist()], np.int64)

    def _first(self, place: int, *, tried: bool) -> int:
        for step in range(self.order.size):
            record = int(self.order[(place + step) % self.order.size])
            if record not in self.known and (not tried or self._sound(record)):
                return record
        raise NothingSound(
            "every record of the cache is damaged. Copy the cache again from where it came from, or run `i2p cache "
            "repair` on it."
        )

    def _sound(self, record: int) -> bool:
        try:
            self._load(np.array([record]))
        except ShardDamaged as error:
            with _logging_damage:  # two readers may find the same record; only one of them warns
                if record not in self.known:
                    self.known.add(record)
                    logger.warning("record %d is skipped: %s", record, error)
            return False
        return True
