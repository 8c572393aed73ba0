"""The stream beside litData's and MosaicML Streaming's: ``python -m benchmarks peer_streams``.

Rates: samples a second over the same records, local files in the page cache, shuffled, in batches; all take turns.
Resume: an epoch is left in the middle and resumed from the library's state, with as many or other ranks and workers;
every rank is a process. What counts is which records the two runs together gave: some never (lost), some more than once
(repeated); and whether each batch after the resume holds, over all ranks, the records that it holds in an epoch that
nobody interrupts.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._peers import CLOCKS, available, in_turn, ratio, timing
from benchmarks._record_streams import LIBRARIES, Records
from benchmarks._table import environment
from teacher_cache import CacheSchema

__all__ = ["lost_and_repeated", "main"]

RESULTS = Path(__file__).parent / "results" / "peer_streams.jsonl"
SCHEMA = CacheSchema(points=1024, views=3, image_side=224, patch_side=16, channels=128)
SMALL = CacheSchema(points=8, views=3, image_side=16, patch_side=8, channels=4)  # a resume is about order only
BATCH = 64
EPOCHS = ({"records": 1024, "shard": 32, "before": 12}, {"records": 1000, "shard": 30, "before": 13})
"""how many records in how large shards, and the batches before the interruption: round numbers, and others"""
RESUME_BATCH = 32
FIRST = (2, 2)
AFTER = ((2, 2), (2, 1), (2, 3), (1, 2), (4, 2))
"""ranks, workers a rank"""
HANG = 240  # seconds that one run of all ranks may take

Batches = list[list[int]]
"""of each step, the records of all ranks"""


# -- rates -------------------------------------------------------------------------------------------------------------


def epoch(name: str, folder: Path, workers: int) -> int:
    library = LIBRARIES[name]
    loader = library.loader(folder, batch=BATCH, ranks=1, rank=0, workers=workers)
    return sum(len(library.ids(batch)) for batch in loader)


def rates(folder: Path, names: Sequence[str], count: int, rounds: int, clock: str) -> list[dict[str, Any]]:
    records = Records(SCHEMA, count, distinct=32)
    runs: dict[str, Callable[[], object]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name in names:
        for compression in LIBRARIES[name].compressions:
            where = folder / f"{name}-{compression}"
            LIBRARIES[name].write(where, records, 64, compression)
            stored = sum(path.stat().st_size for path in where.rglob("*") if path.is_file()) / count
            # The processor time of other processes is not counted, so none are started then.
            for workers in (1,) if name == "ours" else (0,) if clock == "processor" else (0, 2):
                case = f"{name}, {compression}, {workers} worker{'' if workers == 1 else 's'}"
                runs[case] = partial(epoch, name, where, workers)
                about[case] = {"case": case, "compression": compression, "stored kB": stored / 1e3}
                done = runs[case]()
                if done != count // BATCH * BATCH:
                    raise ValueError(f"{case} gave {done} records of {count}; its rate would not be comparable")
    spent = in_turn(runs, rounds, clock=clock, warmup=0)
    ours = {row["compression"]: case for case, row in about.items() if case.startswith("ours")}
    return [
        about[case]
        | {
            "samples/s": count // BATCH * BATCH / timing(spent[case]).p50 * 1e3,
            "ratio": vars(ratio(spent[case], spent[ours[about[case]["compression"]]])),
        }
        for case in runs
    ]


def print_rates(rows: Sequence[dict[str, Any]], clock: str) -> None:
    print(f"\n### Samples a second ({clock} time)\n")
    print("| library, compression, workers | kB stored | samples/s | ours, of that compression, is (p20-p80) |")
    print("| --- | ---: | ---: | ---: |")
    for row in rows:
        times = row["ratio"]
        print(
            f"| {row['case']} | {row['stored kB']:.0f} | {row['samples/s']:.0f} "
            f"| {times['p50']:.1f}x ({times['p20']:.1f}-{times['p80']:.1f}) |"
        )


# -- resume ------------------------------------------------------------------------------------------------------------


def one_rank(
    name: str, folder: Path, ranks: int, rank: int, workers: int, state: Any, stop: int | None, port: int, answers: Any
) -> None:
    """Put rank, its batches and its state after ``stop`` of them into ``answers``; instead of batches, an error."""
    import torch

    alike = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in alike.items()} | {"MASTER_ADDR": "127.0.0.1"})
    library = LIBRARIES[name]
    batches: list[list[int]] = []
    after = None
    try:
        if ranks > 1:
            torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
        loader = library.loader(folder, batch=RESUME_BATCH, ranks=ranks, rank=rank, workers=workers, state=state)
        for batch in loader:
            batches.append(library.ids(batch))
            if len(batches) == stop:
                after = library.state(loader, batch)
                break
    except Exception as error:  # a refusal is an answer, of whatever class
        answers.put((rank, f"{type(error).__name__}: {error}", None))
    else:
        answers.put((rank, batches, after))
    answers.close()
    answers.join_thread()
    os._exit(0)  # neither library's threads nor the process group need to end in order


def all_ranks(
    name: str, folder: Path, ranks: int, workers: int, state: Any = None, stop: int | None = None
) -> tuple[Batches | str, Any]:
    """The batches of a run, joined over its ranks, and rank 0's state; or the first rank's error."""
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=one_rank, args=(name, folder, ranks, rank, workers, state, stop, port, answers))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found: dict[int, tuple[Any, Any]] = {}
    try:
        while len(found) < ranks:
            rank, batches, after = answers.get(timeout=HANG)
            found[rank] = batches, after
            if isinstance(batches, str):  # the others may wait for this rank
                return batches, None
    except queue.Empty:
        return f"no answer within {HANG} s", None
    finally:
        for process in processes:
            process.join(timeout=1 if len(found) == ranks else 0)
            process.kill()
            process.join()
    steps = max(len(batches) for batches, _ in found.values())
    joined = [[i for rank in range(ranks) for i in _at(found[rank][0], step)] for step in range(steps)]
    return joined, found[0][1]


def _at(batches: Batches, step: int) -> list[int]:
    return batches[step] if step < len(batches) else []


def lost_and_repeated(seen: Batches, whole: Batches) -> tuple[int, int]:
    """How many times records of a whole epoch are missing in what was seen, and how many times too often any came."""
    got, planned = (Counter(index for batch in batches for index in batch) for batches in (seen, whole))
    return (planned - got).total(), (got - planned).total()


def resumes(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for number, settings in enumerate(EPOCHS):
        records = Records(SMALL, settings["records"], distinct=32)
        for name in names:
            where = folder / f"{name}-resume-{number}"
            LIBRARIES[name].write(where, records, settings["shard"], LIBRARIES[name].compressions[0])
            whole, _ = all_ranks(name, where, *FIRST)
            before, state = all_ranks(name, where, *FIRST, stop=settings["before"])
            for ranks, workers in AFTER:
                row: dict[str, Any] = settings | {"library": name, "ranks": ranks, "workers": workers}
                if isinstance(whole, str) or isinstance(before, str):
                    rows.append(row | {"refused": f"before any resume: {whole if isinstance(whole, str) else before}"})
                    continue
                after, _ = all_ranks(name, where, ranks, workers, state=state)
                if isinstance(after, str):
                    rows.append(row | {"refused": after})
                    continue
                lost, repeated = lost_and_repeated(before + after, whole)
                planned = [sorted(batch) for batch in whole[settings["before"] :]]
                alike = sum(sorted(got) == batch for got, batch in zip(after, planned, strict=False))
                of = {"in a whole epoch": sum(map(len, whole)), "batches": len(planned)}
                rows.append(row | of | {"lost": lost, "repeated": repeated, "same batches": alike})
    return rows


def print_resumes(rows: Sequence[dict[str, Any]]) -> None:
    ranks, workers = FIRST
    print(f"\n### Resumed in an epoch: batches of {RESUME_BATCH}, {ranks} ranks of {workers} workers first\n")
    print("| library | records, interrupted after | a whole epoch gives | ranks, workers after ", end="")
    print("| lost | repeated | batches as in a whole epoch |")
    print("| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for row in rows:
        head = f"| {row['library']} | {row['records']}, {row['before']} batches "
        after = f"| {row['ranks']}, {row['workers']} "
        if "refused" in row:
            print(f"{head}| {after}| refused: {' '.join(row['refused'].split())[:200]} | | |")
        else:
            share = f"{row['same batches']} of {row['batches']}"
            print(f"{head}| {row['in a whole epoch']} {after}| {row['lost']} | {row['repeated']} | {share} |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_peer_streams", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--records", type=int, default=1024, help="whose rate is measured (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="in each of which all read them once (default 5)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what is measured (default wall)")
    parser.add_argument("--only", choices=("rates", "resume"), help="one of the two tables")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 2 or chosen.records < BATCH:
        parser.error(f"--records {chosen.records} --rounds {chosen.rounds}: {BATCH} records and 2 rounds at least")
    for name, value in environment().items():
        print(f"{name}: {value}")
    names = ["ours", *available(("litdata", "mosaicml-streaming"))]
    results: dict[str, Any] = {"title": "peer streams", "clock": chosen.clock, "environment": environment()}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if chosen.only != "resume":
            results["rates"] = rates(Path(folder), names, chosen.records, chosen.rounds, chosen.clock)
            print_rates(results["rates"], chosen.clock)
        if chosen.only != "rates":
            results["resume"] = resumes(Path(folder), names)
            print_resumes(results["resume"])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(results, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
