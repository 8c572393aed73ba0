"""Building a cache, against one shape at a time: ``python -m benchmarks.bench_build``.

Ours is `build_cache` on all cores with clouds that are ready in memory order on disk (an npz file); the baseline does
what a script would: for each shape in turn it reads, projects, asks open_clip's tower for patch tokens and for the full
attention weights of its last block, and keeps the records of a shard until it writes them, on torch's own threads. Both
write the same format through the same writer. The floor is the floating-point operations of the teacher's matrix
products, counted in its forward pass, over the rate of a large float32 matrix product with one thread a core, measured
first. ViT-B/16 has random weights: time does not depend on them. Times are of whole builds, loading included.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import teacher_cache
from benchmarks._table import Row, Timing, environment, print_table, write_json
from pipeline.build.driver import BuildReport, build_cache
from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig
from pipeline.corpora import normalise, open_corpus
from pipeline.teacher.tower import Teacher, load_teacher
from pipeline.views import VIEWS, render_views
from teacher_cache import CacheConfig
from teacher_cache.format.records import TeacherRecord
from teacher_cache.writer import create_cache, write_shard

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "build.jsonl"
POINTS = 2048
SIDE = 1536  # of the matrix product that says how fast this machine is
EMBEDDED = TeacherConfig(architecture="i2p-vit-tiny-16", pretrained="embedded", device="cpu")
VIT_B = TeacherConfig(architecture="ViT-B-16", pretrained="random", device="cpu")
TEACHERS = {"embedded": EMBEDDED, "ViT-B/16": VIT_B}
SHAPES = {"embedded": 192, "ViT-B/16": 16}  # of ours; the baseline builds a quarter as many
PER_SHARD = {"embedded": 32, "ViT-B/16": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=TEACHERS, action="append", help="default: both")
    parser.add_argument("--repeats", type=int, default=3, help="builds of each case (default 3)")
    arguments = parser.parse_args()
    for name, value in environment().items():
        print(f"{name}: {value}")
    rate = product_rate()
    print(f"floors: {rate / 1e9:.0f} Gflop/s of large float32 matrix products, one a core")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.teacher or TEACHERS:
            uri = clouds(Path(folder), SHAPES[name])
            flop = operations(load_teacher(TEACHERS[name])) * VIEWS
            print(f"\n{name}: {flop / 1e9:.1f} Gflop a shape")
            for format in ("zarr", "webdataset"):
                rows.append(bench(name, format, uri, Path(folder), flop / rate * 1e3, arguments.repeats))
    print_table("Building a cache, ms a shape", rows)
    write_json(RESULTS, "build", rows)


def bench(name: str, format: str, uri: str, folder: Path, floor: float, repeats: int) -> Row:
    """One row, in ms a shape."""
    corpus = CorpusConfig(uri=uri, points=POINTS)
    cache = CacheConfig(format=format, shapes_per_shard=PER_SHARD[name])
    reports, ours, theirs = [], [], []
    for repeat in range(repeats):
        root = folder / f"{name.replace('/', '')}-{format}-{repeat}"
        reports.append(build(corpus, TEACHERS[name], cache, root / "ours"))
        ours.append(reports[-1].seconds / reports[-1].shapes * 1e3)
        built = teacher_cache.open(reports[0].path)
        if repeat == 0:
            check(corpus, TEACHERS[name], built)
        few = SHAPES[name] // 4
        theirs.append(one_by_one(corpus, TEACHERS[name], cache, root / "theirs", few, built) / few * 1e3)
    best = min(reports, key=lambda report: report.seconds)
    work = ", ".join(f"{stage} {share:.1%}" for stage, share in best.shares.items())
    print(
        f"{name}, {format}: {best.shapes / best.seconds:.2f} shapes/s; {work}; "
        f"the teacher had {best.taught:.1%} of the wall time of {best.teachers} lanes"
    )
    return Row(
        case=f"{name}, {format}",
        floor=floor,
        ours=spread(ours),
        baseline_name="one shape at a time",
        baseline=spread(theirs),
        note=work,
    )


def spread(times: list[float]) -> Timing:
    p20, p50, p80 = np.quantile(times, (0.2, 0.5, 0.8))
    return Timing(p50=float(p50), p20=float(p20), p80=float(p80))


def build(corpus: CorpusConfig, teacher: TeacherConfig, cache: CacheConfig, root: Path, **where: Any) -> BuildReport:
    settings = CacheConfig(root=str(root), format=cache.format, shapes_per_shard=cache.shapes_per_shard)
    return build_cache(corpus, ProjectionConfig(), teacher, settings, BuildConfig(**where))


def clouds(folder: Path, count: int) -> str:
    """A corpus that costs next to nothing to read: synthetic shapes, made beforehand -> its URI."""
    corpus = open_corpus(f"synthetic:?count={count}&seed=0", points=POINTS)
    target = folder / f"clouds-{count}"
    if not target.exists():
        for index in range(count):
            shape = corpus[index]
            file = target / "thing" / f"{index:05d}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, shape.points)
    return f"folder:{target}"


def product_rate() -> float:
    """Float32 operations a second of large matrix products, one on each of torch's threads at once."""
    threads = torch.get_num_threads()

    def products() -> float:
        torch.set_num_threads(1)
        a = torch.randn(SIDE, SIDE)
        for _ in range(2):
            a @ a
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < 2:
            a @ a
            done += 1
        return 2 * SIDE**3 * done / (time.perf_counter() - begun)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(lambda _: products(), range(threads)))
    finally:
        torch.set_num_threads(threads)


def operations(teacher: Teacher) -> float:
    """Floating-point operations of the matrix products of one image."""
    S, blocks = teacher.image_side, teacher._tower.transformer.resblocks
    with FlopCounterMode(display=False) as counter:
        teacher.encode(torch.zeros(1, 3, S, S))
    # The counter does not know the CPU's fused attention: two products of [T + 1, T + 1, D] in each block.
    attention = 4 * (teacher.tokens + 1) ** 2 * teacher._tower.transformer.width * len(blocks)
    return float(counter.get_total_flops()) + attention


def one_by_one(
    corpus: CorpusConfig, config: TeacherConfig, cache: CacheConfig, root: Path, count: int, built: teacher_cache.Cache
) -> float:
    """The baseline: a loop over shapes on torch's own threads, for a cache like `built` -> seconds with loading."""
    begun = time.perf_counter()
    source = open_corpus(corpus.uri, points=corpus.points)
    teacher = load_teacher(config)
    look = naive_tower(teacher._tower)
    settings = CacheConfig(root=str(root), format=cache.format, shapes_per_shard=cache.shapes_per_shard)
    writer = create_cache(root / "cache", built.recipe, built.schema, settings, label_names=source.label_names)
    records: list[TeacherRecord] = []
    for index in range(count):
        records.append(record(source[index], look))
        if len(records) == cache.shapes_per_shard or index == count - 1:
            write_shard(writer.handle, index // cache.shapes_per_shard, records)
            records = []
    writer.finish()
    return time.perf_counter() - begun


def record(shape: Any, look: Callable[[Tensor], tuple[Tensor, Tensor]]) -> TeacherRecord:
    points = normalise(shape.points)
    views = render_views(torch.from_numpy(points)[None], ProjectionConfig())
    features, saliency = look(views.images)
    geometry = views.geometry
    return TeacherRecord(
        id=shape.id,
        label=-1 if shape.label is None else int(shape.label),
        points=points,
        lo=geometry.lo[0].numpy(),
        cell=geometry.cell[0].numpy(),
        offset=geometry.offset[0].numpy(),
        depth=views.depth[0].numpy(),
        features=features.numpy(),
        saliency=saliency.numpy(),
    )


def naive_tower(tower: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """open_clip's own forward, with hooks: the last block's input gives its attention weights once more, whole."""
    tower.output_tokens = True
    block = tower.transformer.resblocks[-1]
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    @torch.no_grad()
    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.clear()
        _, tokens = tower(images)
        normed = block.ln_1(seen[0])
        attention: nn.MultiheadAttention = block.attn
        _, weights = attention(normed, normed, normed, need_weights=True, average_attn_weights=True)
        return tokens @ tower.proj, weights[:, 0, 1:]

    return look


def check(corpus: CorpusConfig, teacher: TeacherConfig, built: teacher_cache.Cache) -> None:
    """Both ways tell the same of a shape."""
    ours, look = built[0], naive_tower(load_teacher(teacher)._tower)
    theirs = record(open_corpus(corpus.uri, points=POINTS)[0], look)
    assert np.allclose(ours.features, theirs.features, atol=2e-3 * np.abs(theirs.features).max())  # float16 is stored
    assert np.allclose(ours.saliency, theirs.saliency, atol=1e-6)


if __name__ == "__main__":
    main()
