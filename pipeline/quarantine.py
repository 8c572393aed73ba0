"""Shapes that were refused by an earlier build: which of them can be used by now.

Whether a file changed is first asked of its size and times, which lie in logs/ beside the cache: of a thousand refused
files that nobody touched none is read again. What says nothing (a row of a file, a mesh in several files, a file that
was written while it was read) is tried again by every build.
"""

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.corpora import Corpus, ShapeError
from pipeline.corpora.faults import patiently
from pipeline.shard import read_shape
from teacher_cache import CacheError, CacheWriter, Receipt
from teacher_cache.layout import MANIFEST, receipt_path

__all__ = ["REFUSED", "note_refused", "release_mended"]

REFUSED = "logs/refused.json"
_SETTLED = 2.0  # seconds before a build began since which a file must not have changed for its times to be trusted
# Formats of the extra are not among them: their files may wait for a library, so they are tried again each time.
_IN_ONE_FILE = {".off", ".obj", ".ply", ".stl", ".glb", ".npy", ".npz", ".xyz", ".pts", ".txt", ".csv", ".pcd"}


def release_mended(
    writer: CacheWriter,
    corpus: Corpus,
    ids: Mapping[str, int],
    committed: dict[int, Receipt],
    *,
    everything: bool,
    threads: int,
) -> dict[int, list[str]]:
    """Make the shards that hold a refused shape which can be used by now count as not built; -> those ids, by shard.

    ids         of the corpus, with their places in it.
    committed   receipts by shard; those of the shards that are to be built again are taken out.
    everything  also try the files that did not change.

    A crash in between leaves an unfinished cache, which the next build finishes. Raises MachineFault, BuildError and
    CacheError.
    """
    noted = {} if everything else _noted(writer)
    suspects = [
        (shard, item.id)
        for shard, receipt in committed.items()
        for item in receipt.quarantined
        if item.id in ids and not _unchanged(corpus, ids[item.id], noted.get(item.id))
    ]
    if not suspects:
        return {}
    mended: dict[int, list[str]] = {}
    with ThreadPoolExecutor(min(threads, len(suspects)), thread_name_prefix="refused") as pool:
        usable = pool.map(lambda suspect: _usable(corpus, ids[suspect[1]]), suspects)
        for (shard, id), yes in zip(suspects, usable, strict=True):
            if yes:
                mended.setdefault(shard, []).append(id)
    if mended:
        writer.storage.remove([MANIFEST, *(receipt_path(shard) for shard in sorted(mended))])  # the manifest first
        for shard in mended:
            del committed[shard]
    return mended


def note_refused(writer: CacheWriter, corpus: Corpus, ids: Mapping[str, int], refused: list[str], begun: float) -> None:
    """Remember the sizes and times of the files of refused shapes.

    begun  time.time() before the first of them was read in this build.
    """
    stamps = {id: stamp for id in refused if id in ids and (stamp := _stamp(corpus, ids[id], begun - _SETTLED))}
    if not refused and not _noted(writer):
        return
    with suppress(OSError, CacheError):  # of a finished cache on a disk that is read only: then they are tried again
        writer.storage.write_documents({REFUSED: (json.dumps(stamps, indent=0, sort_keys=True) + "\n").encode()})


def _usable(corpus: Corpus, index: int) -> bool:
    try:
        patiently(partial(read_shape, corpus, index), corpus.source(index))
    except ShapeError:
        return False
    return True


def _unchanged(corpus: Corpus, index: int, noted: str | None) -> bool:
    return noted is not None and noted == _stamp(corpus, index, time.time())


def _stamp(corpus: Corpus, index: int, before: float) -> str:
    """Size and times of a shape's file; "" where they do not tell, or are not before a time."""
    path = Path(corpus.source(index))
    if path.suffix.lower() not in _IN_ONE_FILE:
        return ""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    if max(status.st_mtime, status.st_ctime) >= before:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _noted(writer: CacheWriter) -> dict[str, str]:
    try:
        found = json.loads(writer.storage.read(REFUSED))
    except (OSError, CacheError, ValueError, RecursionError):
        return {}
    return {id: stamp for id, stamp in found.items() if isinstance(stamp, str)} if isinstance(found, dict) else {}
