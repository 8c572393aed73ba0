"""What it costs to find out whether a corpus changed under its cache: ``python -m benchmarks changes``.

Files of 100 bytes in class folders; their receipts are made up, so that what is measured is the comparison alone.
The floor is one os.stat per file in the same process, the least that a comparison by times must do; the baseline reads
and hashes every file.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks._table import Row, Timing, print_table, write_json
from pipeline.build.changes import Stamps, compare_corpus, made_of
from pipeline.build.selection import OwnShapes
from pipeline.config import CorpusConfig
from pipeline.corpora import open_corpus
from teacher_cache.format.manifest import Receipt
from teacher_cache.location import resolve
from teacher_cache.storage.opening import storage_at

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "changes.jsonl"
SHARD = 256


def corpus_of(folder: Path, count: int) -> str:
    """Write `count` small files into class folders of 100 -> the corpus' URI."""
    for number in range(count):
        path = folder / f"class-{number // 100:05d}" / f"{number:07d}.xyz"
        if number % 100 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"%07d\n" % number * 12)
    return f"folder:{folder}"


def cases(count: int, seconds: float) -> list[Row]:
    """Compare a corpus of `count` files with made-up receipts of it, by times and by content."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        uri = corpus_of(place / "corpus", count)
        corpus = open_corpus(uri, points=64)
        ids = [corpus.id(index) for index in range(count)]
        own = OwnShapes.of(corpus, CorpusConfig(uri=uri))
        receipts = {
            shard: Receipt(
                shard=shard,
                ids=tuple(ids[start : start + SHARD]),
                labels=(0,) * len(ids[start : start + SHARD]),
                quarantined=(),
                files=(),
                shapes=tuple((ids[i], made_of(corpus, i)) for i in range(start, min(start + SHARD, count))),
            )
            for shard, start in enumerate(range(0, count, SHARD))
        }
        time.sleep(2.1)  # younger files are read whatever their times say
        (place / "cache").mkdir()
        stamps = Stamps(storage_at(resolve(place / "cache")))
        paths = [corpus.source(index) for index in range(count)]

        def compare(*, content: bool) -> None:
            changes = compare_corpus(corpus, own, receipts, stamps, content=content)
            if changes.stale or changes.same != count:
                raise AssertionError("nothing changed, and a change was found")

        compare(content=True)  # notes the stamps
        by_times, by_content, stat, opening = interleaved(
            [
                partial(compare, content=False),
                partial(compare, content=True),
                lambda: [os.stat(path) for path in paths],
                lambda: open_corpus(uri, points=64),
            ],
            seconds,
        )
    floor = stat.p50
    return [
        Row(
            case=f"{count:,} files, compare by times",
            floor=floor,
            ours=by_times,
            baseline_name="by content (--check-content)",
            baseline=by_content,
        ),
        Row(case=f"{count:,} files, open the folder", floor=floor, ours=opening, baseline_name="-", baseline=None),
    ]


def interleaved(calls: Sequence[Callable[[], object]], seconds: float) -> list[Timing]:
    """Time calls in turn, at least three times each, for about ``seconds`` in all."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < end:
        for call, noted in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            noted.append((time.perf_counter() - begun) * 1e3)
    return [
        Timing(p50=float(np.median(t)), p20=float(np.quantile(t, 0.2)), p80=float(np.quantile(t, 0.8))) for t in times
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=10.0, help="per count")
    given = parser.parse_args()
    logging.getLogger("pipeline.build.changes").setLevel(
        logging.ERROR
    )  # each comparison by content would warn of its cost
    rows = [row for count in given.counts for row in cases(count, given.seconds)]
    print_table("A corpus against its cache", rows)
    write_json(RESULTS, "A corpus against its cache", rows)


if __name__ == "__main__":
    main()
