"""Cost and peak memory of a folder of many small files: ``python -m benchmarks folder``.

Stages: opening the folder, the plan of a build, and the build of a cache that is complete, as the first build on this
machine finds it (every file is read and hashed once) and as every later one does (every file is examined once). Each
runs in a process of its own; memory is the largest resident size less that after the imports.

The cache is complete without a teacher's work: made-up records are written under the names and hashes of the files.
Files hold 32 points. What a stage costs a shape is flat if the last column does not grow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._table import environment
from benchmarks.bench_scale import ARCHITECTURE, SHARD, peak

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "folder.jsonl"
POINTS, PER_CLASS = 32, 1000
STAGES = ("open", "plan", "complete, first", "complete")


def write_files(folder: Path, count: int) -> None:
    """Clouds of POINTS points in folders of PER_CLASS, the last three numbers of each its own."""
    folder.mkdir()
    points = np.random.default_rng(0).normal(size=(POINTS, 3)).astype(np.float32)
    np.save(folder / "first.npy", points)
    head = (folder / "first.npy").read_bytes()[:-12]
    (folder / "first.npy").unlink()
    for index in range(count):
        if index % PER_CLASS == 0:
            (folder / f"class{index // PER_CLASS:04d}").mkdir()
        own = np.array([index / count, 0, 0], np.float32).tobytes()
        (folder / f"class{index // PER_CLASS:04d}" / f"shape-{index:08d}.npy").write_bytes(head + own)


def settings(folder: Path) -> tuple[Any, ...]:
    from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig
    from teacher_cache import CacheConfig

    architecture = folder / "teacher.json"
    architecture.write_text(json.dumps(ARCHITECTURE))
    return (
        CorpusConfig(uri=f"folder:{folder / 'files'}", points=POINTS),
        ProjectionConfig(image_side=32, patch_side=8, splat=3),
        TeacherConfig(architecture=str(architecture), pretrained="random", device="cpu", batch_size=48),
        CacheConfig(root=str(folder / "caches"), name="scale", shapes_per_shard=SHARD, format="webdataset"),
        BuildConfig(),
    )


def write_cache(folder: Path) -> None:
    """The complete cache of the files, its records made up."""
    from dataclasses import replace

    import teacher_cache
    from pipeline.build.changes import made_of
    from pipeline.build.driver import cache_of
    from pipeline.corpora import open_corpus
    from teacher_cache import CacheSchema
    from teacher_cache.testing import make_record

    corpus, projection, teacher, cache, _ = settings(folder)
    recipe, place = cache_of(corpus, projection, teacher, cache)
    schema = CacheSchema(points=POINTS, views=3, image_side=32, patch_side=8, channels=ARCHITECTURE["embed_dim"])
    source = open_corpus(corpus.uri, points=POINTS)
    writer = teacher_cache.create_cache(place, recipe, schema, cache, label_names=source.label_names)
    records = [make_record(i, schema) for i in range(64)]
    for shard, start in enumerate(range(0, len(source), SHARD)):
        rows = range(start, min(len(source), start + SHARD))
        named = [replace(records[i % len(records)], id=source.id(i), label=source.label(i) or 0) for i in rows]
        shapes = [(source.id(i), made_of(source, i)) for i in rows]
        teacher_cache.write_shard(writer.handle, shard, named, shapes=shapes)
    writer.finish(planned=len(source))


def stage(name: str, folder: Path) -> Callable[[], object]:
    """Import what a stage needs; -> the stage."""
    from pipeline.corpora import open_corpus

    uri = f"folder:{folder / 'files'}"
    if name in ("open", "plan"):  # without torch, whose import takes more memory than they do, and would hide it
        from pipeline.build.plan import plan_shards

        open_corpus(f"folder:{folder / 'one'}", points=POINTS)  # and what is imported on first use is there
        if name == "open":
            return lambda: open_corpus(uri, points=POINTS)
        source = open_corpus(uri, points=POINTS)
        return lambda: plan_shards([source.id(i) for i in range(len(source))], {}, shapes_per_shard=SHARD)
    from pipeline.build.driver import build_cache

    corpus, projection, teacher, cache, build = settings(folder)

    def complete() -> None:
        report = build_cache(corpus, projection, teacher, cache, build)
        assert report.already_complete

    return complete


def run_stage(name: str, folder: Path) -> dict[str, float]:
    work = stage(name, folder)
    before, begun, used = peak(), time.perf_counter(), time.process_time()
    held = work()
    return {
        "seconds": time.perf_counter() - begun,
        "cpu": time.process_time() - used,
        "memory": peak() - before,
        "held": float(held is not None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=int, nargs="*", help="files, two sizes at least (default 10000 30000 100000)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(run_stage(arguments.stage, arguments.folder)))
        return
    counts = sorted(set(arguments.counts or (10_000, 30_000, 100_000)))
    if len(counts) < 2:
        parser.error("two sizes at least are needed to see how a cost grows")
    rows: list[dict[str, Any]] = []
    print(f"\n### A folder of small files, {SHARD} shapes a shard\n")
    print("| files | stage | s | processor s | memory it added MB | us a further file | bytes a further file |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    before: dict[str, dict[str, Any]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_files(folder / "one", 1)
            write_files(folder / "files", count)
            write_cache(folder)
            for each in STAGES:
                command = [sys.executable, "-m", "benchmarks.bench_folder", "--stage", each, "--folder", str(folder)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = {"files": count, "stage": each, **json.loads(done.stdout.splitlines()[-1])}
                rows.append(row)
                further = ["", ""]
                if each in before:
                    more = count - before[each]["files"]
                    further = [
                        f"{(row[key] - before[each][key]) / more * 1e6:.{digits}f}"
                        for key, digits in (("cpu", 1), ("memory", 0))
                    ]
                before[each] = row
                print(
                    f"| {count} | {each} | {row['seconds']:.3f} | {row['cpu']:.3f} | {row['memory']:.0f} "
                    f"| {further[0]} | {further[1]} |",
                    flush=True,
                )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        result = {"title": "folder", "environment": environment(), "rows": rows}
        file.write(json.dumps(result, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
