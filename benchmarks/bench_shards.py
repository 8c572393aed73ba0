"""Reading a corpus from tar shards beside reading its files: ``python -m benchmarks.bench_shards``.

The same clouds as .npy files in a folder (the baseline), packed as files and packed as clouds. In every round each is
read whole in turn, on one core, and ratios are of medians. Every cloud read is compared once with the folder's.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._table import Row, Timing, environment, print_table, write_json
from pipeline.corpora import open_corpus
from pipeline.corpora.base import Corpus
from pipeline.corpora.packing import pack

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "shards.jsonl"
POINTS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=600, help="clouds (default 600)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is read (default 5)")
    parser.add_argument("--processes", type=int, default=2, help="that pack (default 2)")
    arguments = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as folder:
        corpora = packed(Path(folder), arguments.shapes, arguments.processes)
        rows = read(corpora, arguments.rounds)
    print_table("Corpora in shards, ms a shape", rows)
    write_json(RESULTS, "shards", rows)


def packed(folder: Path, shapes: int, processes: int) -> dict[str, Corpus]:
    """The corpora by name, the folder first; prints how fast they were packed."""
    source = open_corpus(f"synthetic:?count={shapes}&seed=0", points=POINTS)
    (folder / "files" / "thing").mkdir(parents=True)
    for index in range(shapes):
        np.save(folder / "files" / "thing" / f"{index:06d}.npy", source[index].points)
    found: dict[str, Corpus] = {"folder": open_corpus(f"folder:{folder / 'files'}", points=POINTS)}
    for stored in ("files", "clouds"):
        begun = time.perf_counter()
        pack(found["folder"], folder / stored / "packed", stored=stored, shapes_per_shard=100, processes=processes)
        spent = time.perf_counter() - begun
        print(f"packed as {stored} by {processes} processes: {shapes / spent:.0f} shapes/s, their start included")
        found[f"shards of {stored}"] = open_corpus(f"shards:{folder / stored / 'packed'}", points=POINTS)
    for corpus in list(found.values())[1:]:
        for index in range(shapes):
            assert np.array_equal(corpus[index].points, found["folder"][index].points)
    return found


def read(corpora: dict[str, Corpus], rounds: int) -> list[Row]:
    spent: dict[str, list[float]] = {name: [] for name in corpora}
    for _ in range(rounds):
        for name, corpus in corpora.items():
            begun = time.perf_counter()
            for index in range(len(corpus)):
                corpus[index]
            spent[name].append((time.perf_counter() - begun) / len(corpus) * 1e3)
    found = {name: Timing(*np.percentile(times, (50, 20, 80)).tolist()) for name, times in spent.items()}
    base = found.pop("folder")
    return [
        Row(case=name, floor=None, ours=timing, baseline_name="folder of .npy", baseline=base)
        for name, timing in found.items()
    ]


if __name__ == "__main__":
    main()
