"""Retry of shapes that an earlier build refused."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.build.shard import read_shape
from pipeline.corpora import Corpus, ShapeError
from pipeline.corpora.faults import patiently
from teacher_cache import CacheWriter, Receipt

__all__ = ["release_mended"]


def release_mended(
    writer: CacheWriter,
    corpus: Corpus,
    ids: Mapping[str, int],
    committed: dict[int, Receipt],
    suspects: Mapping[int, tuple[str, ...]] | None,
    *,
    threads: int,
) -> dict[int, list[str]]:
    """Withdraw the shards that hold a refused shape which can be used now; -> those ids, by shard.

    ids        of the corpus, with their indices.
    committed  receipts by shard; those of withdrawn shards are removed.
    suspects   the refused ids worth reading again, by shard, as in `Changes.suspects`; None: all.

    Raises MachineFault and CacheError; nothing is withdrawn then.
    """
    again = [
        (shard, item.id)
        for shard, receipt in committed.items()
        for item in receipt.quarantined
        if item.id in ids and (suspects is None or item.id in suspects.get(shard, ()))
    ]
    if not again:
        return {}
    mended: dict[int, list[str]] = {}
    with ThreadPoolExecutor(min(threads, len(again)), thread_name_prefix="refused") as pool:
        usable = pool.map(lambda suspect: _usable(corpus, ids[suspect[1]]), again)
        for (shard, id), yes in zip(again, usable, strict=True):
            if yes:
                mended.setdefault(shard, []).append(id)
    if mended:
        writer.withdraw(sorted(mended))
        for shard in mended:
            del committed[shard]
    return mended


def _usable(corpus: Corpus, index: int) -> bool:
    try:
        patiently(partial(read_shape, corpus, index), corpus.source(index))
    except ShapeError:
        return False
    return True
