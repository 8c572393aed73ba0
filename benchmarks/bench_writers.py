"""Writing features as a build does beside clip-retrieval's writer: ``python -m benchmarks.bench_writers``.

The same features, [shapes, views x tokens, channels], go into shards of a cache (both formats, float16, every record
with checksums, every shard atomically and fsynced) and into clip-retrieval's batches: one .npy of float16 and one
Parquet file of names and labels, neither atomic nor fsynced. The casts to float16 are included in both.

``--clip-retrieval DIR`` runs that package's own writer, installed without its dependencies by
``pip install --no-deps --target DIR clip-retrieval pandas``; without it the same files are written with numpy and
pyarrow, and the table says so. With ``--kills`` each writer is killed that many times, and what is left is examined.
"""

import argparse
import importlib.util
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import teacher_cache
from benchmarks._table import Row, Timing, environment, print_table, write_json
from teacher_cache import CacheConfig, CacheSchema
from teacher_cache.format.records import TeacherRecord
from teacher_cache.testing import make_recipe, make_record

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "writers.jsonl"
SCHEMA = CacheSchema(points=64, views=3, image_side=224, patch_side=16, channels=512)
BATCH = 32  # shapes of a shard, and of a batch
Write = Callable[[Path, list[TeacherRecord]], None]


def ours(folder: Path, records: list[TeacherRecord], format: str) -> None:
    """Write what is missing; a cache that was stopped is resumed."""
    config = CacheConfig(format=format, features="float16", depth="none", shapes_per_shard=BATCH)  # type: ignore[arg-type]
    writer = teacher_cache.create_cache(folder, make_recipe(config), SCHEMA, config)
    committed = writer.committed()
    for shard, start in enumerate(range(0, len(records), BATCH)):
        if shard not in committed:
            teacher_cache.write_shard(writer.handle, shard, records[start : start + BATCH])
    writer.finish(planned=len(records))


def zarr(folder: Path, records: list[TeacherRecord]) -> None:
    ours(folder, records, "zarr")


def webdataset(folder: Path, records: list[TeacherRecord]) -> None:
    ours(folder, records, "webdataset")


def their_files(folder: Path, records: list[TeacherRecord]) -> None:
    """The files of clip-retrieval's writer, by numpy and pyarrow."""
    import pyarrow
    import pyarrow.parquet

    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for batch, start in enumerate(range(0, len(records), BATCH)):
        some = records[start : start + BATCH]
        np.save(folder / "img_emb" / f"img_emb_{batch:03d}.npy", np.stack([_half(record) for record in some]))
        table = pyarrow.table({"image_path": [r.id for r in some], "label": [r.label for r in some]})
        pyarrow.parquet.write_table(table, folder / "metadata" / f"metadata_{batch:03d}.parquet")


class TheirWriter:
    """clip-retrieval's own writer, of the package in a folder."""

    def __init__(self, package: Path) -> None:
        self.package = package

    def __call__(self, folder: Path, records: list[TeacherRecord]) -> None:
        sys.path.append(str(self.package))  # for pandas
        place = self.package / "clip_retrieval" / "clip_inference" / "writer.py"
        spec = importlib.util.spec_from_file_location("clip_retrieval_writer", place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        count = -(-len(records) // BATCH)
        for batch, start in enumerate(range(0, len(records), BATCH)):
            some = records[start : start + BATCH]
            writer = module.NumpyWriter(batch, str(folder), False, True, True, count)
            writer(
                {
                    "image_embs": np.stack([_half(record) for record in some]),
                    "image_filename": [record.id for record in some],
                    "metadata": [f'{{"label": {record.label}}}' for record in some],
                }
            )
            writer.flush()


def _half(record: TeacherRecord) -> np.ndarray:
    return np.asarray(record.features).astype(np.float16).reshape(-1)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def whole_batches(folder: Path) -> tuple[dict[str, int], int]:
    """Return, for each batch of which all can be read, when its last file was written, and how many files that stand
    under their final names cannot be read."""
    import pyarrow
    import pyarrow.parquet

    whole: dict[str, int] = {}
    damaged = 0
    if (folder / "recipe.json").exists():
        cache = teacher_cache.open(folder, allow_incomplete=True)
        for receipt in sorted((folder / "receipts").glob("*.json")):
            first = int(receipt.stem) * BATCH
            try:
                for index in range(first, first + BATCH):
                    cache[index]
                whole[receipt.name] = receipt.stat().st_mtime_ns
            except (teacher_cache.ShardDamaged, IndexError):
                damaged += 1
        return whole, damaged
    for path in sorted((folder / "img_emb").glob("*.npy")):
        parquet = folder / "metadata" / (path.stem.replace("img_emb", "metadata") + ".parquet")
        try:
            np.load(path, mmap_mode="r")
            if parquet.exists():
                pyarrow.parquet.read_table(parquet)
                whole[path.name] = parquet.stat().st_mtime_ns
        except (ValueError, EOFError, OSError, pyarrow.ArrowInvalid):
            damaged += 1
    return whole, damaged


def kills(writers: dict[str, Write], records: list[TeacherRecord], spent: dict[str, float], times: int) -> None:
    """Kill each writer, look at what is there, and let it finish; print sums."""
    draw = random.Random(0)
    print(f"\n{times} kills each, of {len(records) // BATCH} batches; sums")
    for name, write in writers.items():
        kept = damaged = again = 0
        for _ in range(times):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "out"
                process = multiprocessing.get_context("fork").Process(target=write, args=(folder, records))
                process.start()
                time.sleep(draw.uniform(0.2, 0.9) * spent[name])
                process.kill()
                process.join()
                before, odd = whole_batches(folder)
                write(folder, records)
                after, _ = whole_batches(folder)
                assert len(after) * BATCH == len(records)
                kept, damaged = kept + len(before), damaged + odd
                again += sum(after[batch] != moment for batch, moment in before.items())
        print(f"{name}: {kept} batches whole, {damaged} damaged files, {again} whole batches written again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=192, help="a multiple of 32 (default 192, 0.6 MB each)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each writes them (default 5)")
    parser.add_argument("--clip-retrieval", type=Path, help="folder that the package was installed into")
    parser.add_argument("--kills", type=int, default=0, help="times that each is killed (default 0)")
    arguments = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    made = [make_record(index, SCHEMA) for index in range(8)]
    records = [replace(made[k % len(made)], id=f"made-up/{k:06d}") for k in range(arguments.shapes)]
    package = arguments.clip_retrieval
    theirs = "clip-retrieval's layout" if package is None else "clip-retrieval's writer"
    writers: dict[str, Write] = {
        theirs: their_files if package is None else TheirWriter(package),
        "cache, zarr": zarr,
        "cache, webdataset": webdataset,
    }
    spent: dict[str, list[float]] = {name: [] for name in writers}
    sizes: dict[str, int] = {}
    for turn in range(arguments.rounds + 1):
        for name, write in writers.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                write(Path(folder) / "out", records)
                if turn:  # the first warms up
                    spent[name].append((time.perf_counter() - begun) / len(records) * 1e3)
                sizes[name] = size(Path(folder) / "out")
    found = {name: Timing(*np.percentile(times, (50, 20, 80)).tolist()) for name, times in spent.items()}
    base = found[theirs]
    rows = [
        Row(case=name, floor=None, ours=timing, baseline_name=theirs, baseline=base)
        for name, timing in found.items()
        if name != theirs
    ]
    print_table("Writers of features, ms a shape", rows)
    for name, count in sizes.items():
        print(f"{name}: {count / len(records) / 1e3:.1f} kB a shape, {count / sizes[theirs]:.3f} of theirs")
    write_json(RESULTS, "writers", rows)
    if arguments.kills:
        kills(writers, records, {name: found[name].p50 * len(records) / 1e3 for name in writers}, arguments.kills)


if __name__ == "__main__":
    main()
