"""Cost and peak memory of a cache's life by number of shapes: ``python -m benchmarks scale``.

A random two-block teacher looks at images of 32 pixels, so that what is measured is everything but the teacher; with
``--made-up`` there is neither corpus nor teacher, and the cache's own part can be followed further. Each stage runs in
a process of its own; its memory is the largest resident size less that after the imports. A cost that is in proportion
to the shapes has the exponent 1, memory that does not grow 0. Exponents are those of processor time, which other users
of the machine disturb less than the clock.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._table import environment

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "scale.jsonl"
ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
}
POINTS, BATCH, SHARD = 64, 64, 256
STAGES = ("build", "rebuild", "open", "ids", "verify", "stream")


def build(folder: Path, count: int) -> Callable[[], object]:
    """The whole build of `count` shapes; of a complete cache, what finding that out costs."""
    from pipeline.build.driver import build_cache
    from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig
    from teacher_cache import CacheConfig

    architecture = folder / "teacher.json"
    architecture.write_text(json.dumps(ARCHITECTURE))
    return lambda: build_cache(
        CorpusConfig(uri=f"synthetic:?count={count}&seed=0", points=POINTS),
        ProjectionConfig(image_side=32, patch_side=8, splat=3),
        TeacherConfig(architecture=str(architecture), pretrained="random", device="cpu", batch_size=48),
        CacheConfig(root=str(folder / "caches"), name="scale", shapes_per_shard=SHARD),
        BuildConfig(),
    )


def write(folder: Path, count: int) -> Callable[[], object]:
    """The cache's part of a build: made-up records written shard by shard, and the manifest; or nothing to be done."""
    from dataclasses import replace

    import teacher_cache
    from teacher_cache import CacheConfig, CacheSchema
    from teacher_cache.testing import make_recipe, make_record

    config = CacheConfig(shapes_per_shard=SHARD)
    schema = CacheSchema(points=POINTS, views=3, image_side=32, patch_side=8, channels=ARCHITECTURE["embed_dim"])
    records = [make_record(i, schema) for i in range(64)]

    def run() -> None:
        writer = teacher_cache.create_cache(folder / "caches" / "scale", make_recipe(config), schema, config)
        committed = writer.committed()
        for shard, start in enumerate(range(0, count, SHARD)):
            if shard not in committed:
                rows = range(start, min(count, start + SHARD))
                named = [replace(records[i % len(records)], id=f"made-up/{i:08d}") for i in rows]
                teacher_cache.write_shard(writer.handle, shard, named)
        writer.finish(planned=count)

    return run


def cache_of(folder: Path) -> Path:
    (path,) = (folder / "caches").iterdir()
    return path


def open_it(folder: Path, count: int) -> Callable[[], object]:
    import teacher_cache

    path = cache_of(folder)

    def run() -> None:
        assert len(teacher_cache.open(path)) == count

    return run


def ids(folder: Path, count: int) -> Callable[[], object]:
    """Every id and label, from the receipts."""
    import teacher_cache

    cache = teacher_cache.open(cache_of(folder))

    def run() -> None:
        assert len(cache.ids) == len(cache.labels) == count

    return run


def verify(folder: Path, count: int) -> Callable[[], object]:
    import teacher_cache

    path = cache_of(folder)

    def run() -> None:
        assert teacher_cache.verify(path) == []

    return run


def stream(folder: Path, count: int) -> Callable[[], object]:
    """One epoch in shuffled batches."""
    import teacher_cache

    cache = teacher_cache.open(cache_of(folder))

    def run() -> None:
        batches = teacher_cache.stream(cache, batch_size=BATCH, remainder="pad")
        assert sum(int((~batch.padded).sum()) for batch in batches) == count

    return run


def peak() -> float:
    """Largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def stage(name: str, folder: Path, count: int, made_up: bool) -> dict[str, float]:
    """Run one stage in this process."""
    make = write if made_up else build
    run = {"build": make, "rebuild": make, "open": open_it, "ids": ids, "verify": verify, "stream": stream}[name](
        folder, count
    )
    before, begun, used = peak(), time.perf_counter(), time.process_time()
    run()
    return {
        "seconds": time.perf_counter() - begun,
        "cpu": time.process_time() - used,
        "memory": peak() - before,
        "peak": peak(),
    }


def measured(name: str, folder: Path, count: int, made_up: bool) -> dict[str, float]:
    """Run one stage in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_scale", "--stage", name, "--folder", str(folder), str(count)]
    command += ["--made-up"] if made_up else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each stage the exponents of processor time and of peak memory in the number of shapes, fitted to all sizes
    in logarithms; time and bytes for each further shape from the second largest size to the largest."""
    fitted = []
    for name in STAGES:
        own = sorted((row for row in rows if row["stage"] == name), key=lambda row: row["shapes"])
        shapes = np.log([row["shapes"] for row in own])
        last, before = own[-1], own[-2]
        more = last["shapes"] - before["shapes"]
        fitted.append(
            {
                "stage": name,
                "cpu exponent": float(np.polyfit(shapes, np.log([row["cpu"] for row in own]), 1)[0]),
                "peak exponent": float(np.polyfit(shapes, np.log([row["peak"] for row in own]), 1)[0]),
                "further us": (last["cpu"] - before["cpu"]) / more * 1e6,
                "further bytes": (last["peak"] - before["peak"]) / more * 1e6,
            }
        )
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=int, nargs="*", help="shapes, two sizes at least (default 1000 10000)")
    parser.add_argument("--made-up", action="store_true", help="made-up records instead of a corpus and a teacher")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(stage(arguments.stage, arguments.folder, arguments.counts[0], arguments.made_up)))
        return
    counts = sorted(set(arguments.counts or (1000, 10_000)))
    if len(counts) < 2:
        parser.error("two sizes at least are needed to see how a cost grows")
    rows: list[dict[str, Any]] = []
    kind = "made-up records" if arguments.made_up else "synthetic corpus, random teacher"
    print(f"\n### Cost by number of shapes: {kind}, {SHARD} a shard\n")
    print("| shapes | stage | s | processor s | of it us a shape | memory it added MB | peak MB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            for name in STAGES:
                found = measured(name, Path(folder), count, arguments.made_up)
                rows.append({"shapes": count, "stage": name, **found})
                print(
                    f"| {count} | {name} | {found['seconds']:.3f} | {found['cpu']:.3f} "
                    f"| {found['cpu'] / count * 1e6:.1f} | {found['memory']:.0f} | {found['peak']:.0f} |",
                    flush=True,
                )
    fitted = slopes(rows)
    print("\n| stage | processor time as shapes to the | peak memory as shapes to the | us a further shape | bytes |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in fitted:
        print(
            f"| {row['stage']} | {row['cpu exponent']:.2f} | {row['peak exponent']:.3f} | {row['further us']:.1f} "
            f"| {row['further bytes']:.0f} |"
        )
    result = {"title": "scale", "made_up": arguments.made_up, "environment": environment()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result | {"rows": rows, "slopes": fitted}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
