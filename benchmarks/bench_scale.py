"""Cost and peak memory of build, rebuild, open, verify and stream by number of shapes: ``python -m benchmarks scale``.

A random two-block teacher looks at images of 32 pixels, so that what is measured is everything but the teacher. Each
stage runs in a process of its own; its memory is the largest resident size less that after the imports.
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

from benchmarks._table import environment

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "scale.jsonl"
ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
}
POINTS, BATCH, SHARD = 64, 64, 256
STAGES = ("build", "rebuild", "open", "verify", "stream")


def build(folder: Path, count: int) -> Callable[[], object]:
    """The whole build of `count` shapes; of a complete cache, what finding that out costs."""
    from pipeline.build import build_cache
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


def cache_of(folder: Path) -> Path:
    (path,) = (folder / "caches").iterdir()
    return path


def open_it(folder: Path, count: int) -> Callable[[], object]:
    import teacher_cache

    path = cache_of(folder)

    def run() -> None:
        assert len(teacher_cache.open(path)) == count

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
        order = teacher_cache.epoch_order(cache.counts, seed=0, epoch=0, window=16)
        seen = sum(len(cache.read(order[start : start + BATCH])) for start in range(0, count, BATCH))
        assert seen == count

    return run


def peak() -> float:
    """Largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def stage(name: str, folder: Path, count: int) -> dict[str, float]:
    """Run one stage in this process."""
    run = {"build": build, "rebuild": build, "open": open_it, "verify": verify, "stream": stream}[name](folder, count)
    before, begun = peak(), time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - begun, "memory": peak() - before, "peak": peak()}


def measured(name: str, folder: Path, count: int) -> dict[str, float]:
    """Run one stage in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_scale", "--stage", name, "--folder", str(folder), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=int, nargs="*", help="shapes (default 1000 10000)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(stage(arguments.stage, arguments.folder, arguments.counts[0])))
        return
    rows: list[dict[str, Any]] = []
    print("\n### Cost by number of shapes\n")
    print("| shapes | stage | s | us a shape | memory it added MB | peak MB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for count in arguments.counts or (1000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            for name in STAGES:
                found = measured(name, Path(folder), count)
                rows.append({"shapes": count, "stage": name, **found})
                print(
                    f"| {count} | {name} | {found['seconds']:.3f} | {found['seconds'] / count * 1e6:.1f} "
                    f"| {found['memory']:.0f} | {found['peak']:.0f} |",
                    flush=True,
                )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"title": "scale", "environment": environment(), "rows": rows}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
