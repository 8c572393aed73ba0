"""Rate of the stream beside plain reads and loops, and the worth of a shuffle window: ``python -m benchmarks stream``.

Every case is measured in rounds, ours and its baselines in turn, and the fastest round of each counts: a machine that
others use too disturbs one round, not the ratio.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import teacher_cache
from benchmarks._table import environment
from teacher_cache import CacheConfig, CacheSchema
from teacher_cache.format.codecs import decompress_into, encode_record, pack
from teacher_cache.testing import make_recipe, make_record

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "stream.jsonl"
SIZES = {"ViT-B/16": 512, "embedded": 128}
"""channels of a teacher with 3 views of 14 x 14 patches"""
THREADS, READERS, BATCH, WINDOW, SHARD = 2, 1, 64, 32, 64
DISTINCT = 32  # records made up; a cache repeats them under other ids
SHARES = (0.3, 0.1, 0.03)
LOOP = 128  # records of the plain loops, which take milliseconds each
BLOCK = 1 << 20
SHAPENET = {"shards": 656, "classes": 55}  # 41,952 training shapes

Run = Callable[[], int]
"""does the work, -> the records it did"""


def make_cache(folder: Path, config: CacheConfig, channels: int, records: int) -> teacher_cache.Cache:
    schema = CacheSchema(points=2048, views=3, image_side=224, patch_side=16, channels=channels)
    writer = teacher_cache.create_cache(folder, make_recipe(config), schema, config)
    made = [make_record(i, schema) for i in range(DISTINCT)]
    for shard in range(records // SHARD):
        rows = range(shard * SHARD, (shard + 1) * SHARD)
        teacher_cache.write_shard(writer.handle, shard, [replace(made[i % DISTINCT], id=f"r{i}") for i in rows])
    writer.finish(planned=records)
    return teacher_cache.open(folder, threads=THREADS)


def data_files(cache: teacher_cache.Cache) -> list[Path]:
    return sorted(path for path in Path(cache.path).rglob("*") if path.is_file() and path.suffix != ".json")


def ours(cache: teacher_cache.Cache, window: int = WINDOW, readers: int = READERS) -> int:
    return sum(len(batch) for batch in teacher_cache.stream(cache, batch_size=BATCH, window=window, readers=readers))


def plain_read(cache: teacher_cache.Cache) -> int:
    """The bytes of the same files, one file after the other."""
    buffer = bytearray(BLOCK)
    for path in data_files(cache):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return len(cache)


def forget(cache: teacher_cache.Cache) -> None:
    """Ask the kernel to drop the files from the page cache; they are synced, so it can."""
    for path in data_files(cache):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def decoding_alone(cache: teacher_cache.Cache) -> Run:
    """zstd on the frames of a batch, in memory, by as many threads: what no reader of these bytes can beat."""
    config = cache._manifest.description.storage
    batch = cache.read(range(min(BATCH, DISTINCT)))
    work = [
        [(np.frombuffer(pack(array, config), np.uint8), np.empty_like(array)) for array in arrays.values()]
        for arrays in (encode_record(batch.record(row), config) for row in range(len(batch)))
    ]

    def decode(frames: list[Any]) -> None:
        for data, out in frames:
            decompress_into(data, out, config)

    pool = ThreadPoolExecutor(THREADS)

    def run() -> int:
        return len(list(pool.map(decode, work * 8)))

    return run


def plain_loop(cache: teacher_cache.Cache) -> Iterator[dict[str, Any]]:
    """Records as plain zarr or webdataset give them, features as numbers."""
    yield from (_zarr_loop if cache.format == "zarr" else _webdataset_loop)(Path(cache.path))


def _zarr_loop(folder: Path) -> Iterator[dict[str, Any]]:
    import zarr

    arrays = dict(zarr.open_group(folder, mode="r").arrays())
    names = [name for name in arrays if name not in {"valid", "id"}]
    for row in range(arrays["points"].shape[0]):
        yield _decoded({name: arrays[name][row] for name in names})


def _webdataset_loop(folder: Path) -> Iterator[dict[str, Any]]:
    import webdataset
    from numcodecs.zstd import decompress

    urls = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        found = {
            name.removesuffix(".npy.zst"): np.load(io.BytesIO(decompress(data)), allow_pickle=False)
            for name, data in sample.items()
            if name.endswith(".npy.zst")
        }
        about = json.loads(sample["json"])
        yield _decoded(found | {name: np.array(about[name]) for name in ("lo", "cell", "offset", "label")})


def _decoded(record: dict[str, Any]) -> dict[str, Any]:
    if "scale" in record:
        record["features"] = (record["features"] * record["scale"][..., None]).astype(np.float16)
    return record


def check(cache: teacher_cache.Cache) -> None:
    """The loops and the stream give the same numbers."""
    for row, record in enumerate(islice(plain_loop(cache), 3)):
        for name in ("points", "features", "saliency", "offset"):
            np.testing.assert_array_equal(record[name], getattr(cache[row], name))


def fastest(runs: dict[str, Run], rounds: int, before: Callable[[], None] | None = None) -> dict[str, float]:
    """Records a second of each, in its fastest round."""
    best = dict.fromkeys(runs, 0.0)
    for _ in range(rounds):
        for name, run in runs.items():
            if before is not None:
                before()
            begun = time.perf_counter()
            done = run()
            best[name] = max(best[name], done / (time.perf_counter() - begun))
    return best


def rates(folder: Path, records: int, rounds: int) -> Iterator[dict[str, Any]]:
    for size, channels in SIZES.items():
        for features in ("float16", "int8"):
            for format in ("zarr", "webdataset"):
                config = CacheConfig(format=format, features=features, shapes_per_shard=SHARD, depth="none")  # type: ignore[arg-type]
                cache = make_cache(folder / f"{format}-{features}-{channels}", config, channels, records)
                check(cache)
                runs: dict[str, Run] = {
                    "ours": lambda cache=cache: ours(cache),
                    "plain read": lambda cache=cache: plain_read(cache),
                    "decoding alone": decoding_alone(cache),
                    "plain loop": lambda cache=cache: sum(1 for _ in islice(plain_loop(cache), LOOP)),
                }
                found = fastest(runs, rounds)
                cold = fastest(
                    {name: runs[name] for name in ("ours", "plain read")}, 2, lambda cache=cache: forget(cache)
                )
                stored = sum(path.stat().st_size for path in data_files(cache)) / records
                decoded = sum(array.nbytes for array in vars(cache.read([0])).values() if hasattr(array, "nbytes"))
                yield {
                    "records of": size,
                    "features": features,
                    "format": format,
                    "stored": stored,
                    "decoded": decoded,
                    **found,
                    "cold": cold["ours"],
                    "cold plain read": cold["plain read"],
                }


def print_rates(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    print("\n### Stream: records and bytes a second, beside plain reads and loops\n")
    print(
        "| records of | features | format | kB stored | ours records/s | MB/s stored | MB/s decoded | plain read MB/s "
        "| ours of it | ours of decoding alone | plain loop records/s | ours to it | cold: ours of plain read, MB/s |"
    )
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    kept = []
    for row in rows:
        kept.append(row)
        stored, rate = row["stored"] / 1e6, row["ours"]
        print(
            f"| {row['records of']} | {row['features']} | {row['format']} | {row['stored'] / 1e3:.0f} | {rate:.0f} "
            f"| {rate * stored:.0f} | {rate * row['decoded'] / 1e6:.0f} | {row['plain read'] * stored:.0f} "
            f"| {rate / row['plain read']:.2f} | {rate / row['decoding alone']:.2f} | {row['plain loop']:.0f} "
            f"| {rate / row['plain loop']:.1f}x | {row['cold'] / row['cold plain read']:.2f}, "
            f"{row['cold'] * stored:.0f} of {row['cold plain read'] * stored:.0f} |",
            flush=True,
        )
    return kept


def windows(folder: Path, records: int, rounds: int) -> list[dict[str, Any]]:
    """Quality and rate by window: quality for a corpus of ShapeNet's size that is sorted by class."""
    shards = SHAPENET["shards"]
    labels = np.arange(shards * SHARD) * SHAPENET["classes"] // (shards * SHARD)
    caches = {}
    for format in ("zarr", "webdataset"):
        config = CacheConfig(format=format, features="int8", shapes_per_shard=SHARD, depth="none")  # type: ignore[arg-type]
        caches[format] = make_cache(folder / f"windows-{format}", config, SIZES["embedded"], records)
    rows = []
    print("\n### Shuffle by window\n")
    print(
        f"{shards} shards of {SHARD} shapes in {SHAPENET['classes']} classes, sorted by class; batches of {BATCH}.\n"
        f"Rates: embedded, int8, {records // SHARD} shards.\n"
    )
    print(
        "| window | displacement | spread | neighbours of one shard | uniform | class entropy, bits | uniform | of it "
        "| zarr records/s | webdataset records/s |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for window in (1, 4, 16, 32, 48, shards):
        found = teacher_cache.shuffle_quality([SHARD] * shards, window=window, batch_size=BATCH, labels=labels)
        runs: dict[str, Run] = {
            format: (lambda cache=cache, window=window: ours(cache, window=window)) for format, cache in caches.items()
        }
        speed = fastest(runs, rounds)
        rows.append({"window": window, **asdict(found), **speed})
        assert found.class_entropy is not None
        assert found.class_entropy_uniform is not None
        print(
            f"| {'all' if window == shards else window} | {found.displacement:.2f} | {found.spread:.3f} "
            f"| {found.same_shard:.4f} | {found.same_shard_uniform:.4f} | {found.class_entropy:.2f} "
            f"| {found.class_entropy_uniform:.2f} | {found.class_entropy / found.class_entropy_uniform:.0%} "
            f"| {speed['zarr']:.0f} | {speed['webdataset']:.0f} |",
            flush=True,
        )
    return rows


def selections(folder: Path, records: int, rounds: int) -> list[dict[str, Any]]:
    """Rate of some records of a cache beside all: shares spread over its shards, and its first tenth."""
    rows = []
    print("\n### Selections of a cache: records a second\n")
    names = ["whole", *(f"share {share}" for share in SHARES), "first tenth"]
    print("| records of | format | " + " | ".join(names) + " |")
    print("| --- | --- |" + " ---: |" * len(names))
    for size, channels in SIZES.items():
        for format in ("zarr", "webdataset"):
            config = CacheConfig(format=format, shapes_per_shard=SHARD, depth="none")  # type: ignore[arg-type]
            cache = make_cache(folder / f"selections-{format}-{channels}", config, channels, records)
            rng = np.random.default_rng(0)
            chosen: dict[str, Any] = {"whole": cache}
            for share in SHARES:
                some = rng.choice(cache.ids, round(share * records), replace=False).tolist()
                chosen[f"share {share}"] = teacher_cache.select(cache, some)
            chosen["first tenth"] = teacher_cache.first(cache, records // 10)
            runs: dict[str, Run] = {name: partial(_of_fresh, cache, some) for name, some in chosen.items()}
            found = fastest(runs, rounds)
            rows.append({"records of": size, "format": format, **found})
            print(f"| {size} | {format} | " + " | ".join(f"{found[name]:.0f}" for name in names) + " |", flush=True)
    return rows


def _of_fresh(cache: teacher_cache.Cache, chosen: Any) -> int:
    """An epoch with no shard open yet."""
    fresh = teacher_cache.open(cache.path, threads=THREADS)
    some = fresh if chosen is cache else teacher_cache.Selection(fresh, chosen.records, chosen.counts, chosen.digest)
    size = min(BATCH, len(some))
    batches = teacher_cache.stream(some, batch_size=size, window=WINDOW, readers=READERS, remainder="pad")
    return sum(map(len, batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=512, help="of each cache whose rate is measured")
    parser.add_argument("--shards", type=int, default=96, help="of the caches whose rate by window is measured")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"title": "stream", "environment": environment()}
    with tempfile.TemporaryDirectory() as folder:
        results["rates"] = print_rates(rates(Path(folder), arguments.records, arguments.rounds))
        results["selections"] = selections(Path(folder), arguments.shards * SHARD, arguments.rounds)
        results["windows"] = windows(Path(folder), arguments.shards * SHARD, arguments.rounds)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(results, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
