"""The parts of the GPU report: each computes something, compares it, and returns its numbers."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._table import Timing

__all__ = ["PARTS", "ROOT", "Disagreement", "Numbers", "Where", "touch"]

ROOT = Path(__file__).resolve().parents[2]
Numbers = dict[str, Any]


class Disagreement(Exception):
    """Two computations that must give the same did not."""


@dataclass(frozen=True)
class Where:
    """What a part runs on: "cuda:0", or "cpu" for a dry run of small sizes."""

    device: str

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def sized(self, real: int, dry: int) -> int:
        return dry if self.dry else real


def timed(call: Callable[[], object], where: Where, *, repeats: int = 30, inner: int = 1) -> Timing:
    """Time a call by events of the GPU's own clock; `inner` calls in a row share one, for calls of microseconds.

    On the CPU (a dry run) by the wall clock, few times.
    """
    for _ in range(3 if not where.dry else 1):
        call()
    times: list[float] = []
    for _ in range(repeats if not where.dry else 5):
        if where.dry:
            begun = time.perf_counter()
            call()
            times.append((time.perf_counter() - begun) * 1e3)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inner)
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    return Timing(p50=statistics.median(times), p20=p20, p80=p80)


# -- kernels -----------------------------------------------------------------------------------------------------------


def kernels(where: Where) -> Numbers:
    """Run the tests of the kernels that need a GPU; in a dry run, a few of the host build's."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = (
            ["tests/kernels/test_gather.py", "-k", "host and not backwards"]
            if where.dry
            else ["tests/kernels", "tests/build/test_teacher.py", "-k", "cuda"]
        )
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        # The tests' own conftest counts unexpected skips in CI only.
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            raise Disagreement(f"pytest did not run: {(run.stderr or run.stdout).strip()[-500:]}")
        suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    found: Numbers = {"passed": passed, **counts}
    if counts["failures"] or counts["errors"] or not passed:
        raise Disagreement(f"{counts}: {run.stdout.strip()[-2000:]}")
    sanitizer = shutil.which("compute-sanitizer")
    if where.dry or sanitizer is None:
        found["compute-sanitizer"] = "not run: " + ("a dry run" if where.dry else "not installed")
        return found
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu"]
        run = subprocess.run([*command, "--part", "touch"], cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode:
            raise Disagreement(f"compute-sanitizer {tool}: {run.stdout.strip()[-2000:]}")
        found[f"compute-sanitizer {tool}"] = "no error"
    return found


def touch(where: Where) -> Numbers:
    """Launch every kernel once, forwards and backwards, at sizes that fill no block: what compute-sanitizer watches."""
    from benchmarks.bench_kernels import surfaces
    from cuda.backproject import backproject
    from cuda.chamfer import chamfer
    from cuda.fps import farthest_point_sample
    from cuda.gather import gather, group
    from cuda.knn import knn
    from cuda.project import project

    points = surfaces(3, 517).to(where.device)
    centres = gather(points, farthest_point_sample(points, 67))
    _, idx = knn(points, centres, 9)
    group(points, centres, idx)
    _, geometry = project(points, image_side=56)
    maps = torch.randn(3, 3, 16, 21, device=where.device, requires_grad=True)
    values = torch.randn(3, 517, 13, device=where.device, requires_grad=True)
    a, b = (torch.randn(5, 7, 3, device=where.device, requires_grad=True) for _ in range(2))
    total = backproject(maps, centres, geometry, image_side=56).sum() + gather(values, idx).sum()
    there, back = chamfer(a, b)
    (total + there.sum() + back.sum()).backward()
    if not where.dry:
        torch.cuda.synchronize()
    return {"launched": 6}


# -- operators ---------------------------------------------------------------------------------------------------------


def operators(where: Where) -> Numbers:
    """Time every operator beside plain torch's and other packages', and what the card can do."""
    from benchmarks.bench_kernels import (
        backproject_in_torch,
        chamfer_in_torch,
        fps_in_torch,
        gather_in_torch,
        knn_in_torch,
        project_in_torch,
        surfaces,
    )
    from cuda.backproject import backproject
    from cuda.chamfer import chamfer
    from cuda.fps import farthest_point_sample
    from cuda.gather import gather, group
    from cuda.knn import knn
    from cuda.project import project

    device, B, N = where.device, where.sized(64, 2), where.sized(2048, 300)
    levels = ((512, 16), (256, 8), (64, 8)) if not where.dry else ((70, 16), (33, 8), (9, 8))
    points = surfaces(B, N).to(device)
    clock = partial(timed, where=where)
    rows: dict[str, Numbers] = {}

    def row(name: str, ours: Callable[[], object], others: Mapping[str, Callable[[], object]], inner: int = 1) -> None:
        times = {"ours": asdict(clock(ours, inner=inner))}
        for other, call in others.items():
            try:
                times[other] = asdict(clock(call, repeats=10))
            except Exception as error:
                times[other] = f"failed: {type(error).__name__}: {str(error)[:200]}"  # type: ignore[assignment]
        rows[name] = times

    def hierarchy() -> Tensor:
        cloud, idx = points, points
        for k, near in levels:
            centres = gather(cloud, farthest_point_sample(cloud, k))
            _, idx = knn(cloud, centres, near)
            cloud = centres
        return idx

    k = levels[0][0]
    row(f"FPS + kNN of {len(levels)} levels, B = {B}", hierarchy, {}, inner=5)
    row(
        f"FPS {N} -> {k}, B = {B}",
        lambda: farthest_point_sample(points, k),
        {"torch loop": lambda: fps_in_torch(points, k), **_other_fps(points, k)},
        inner=5,
    )
    if not torch.equal(fps_in_torch(points, k), farthest_point_sample(points, k)):
        raise Disagreement(f"FPS {N} -> {k} is not the plain loop's")
    queries = gather(points, farthest_point_sample(points, k))
    row(
        f"kNN {N} x {k}, 16 nearest, B = {B}",
        lambda: knn(points, queries, 16),
        {"cdist + topk": lambda: knn_in_torch(points, queries, 16)},
        inner=5,
    )
    row(f"project {N}, 3 views, B = {B}", lambda: project(points), {"scatter": lambda: project_in_torch(points)})
    _, geometry = project(points)
    maps = torch.randn(B, 3, 196, where.sized(512, 16), device=device)
    row(
        f"back-project {k} points, 3 x {maps.shape[-1]} channels, B = {B}",
        lambda: backproject(maps, queries, geometry),
        {"resize + gather": lambda: backproject_in_torch(maps, queries, geometry)},
    )
    close = backproject(maps[:1], queries[:1], type(geometry)(*(part[:1] for part in geometry)))
    far = backproject_in_torch(maps[:1], queries[:1], type(geometry)(*(part[:1] for part in geometry)))
    if not torch.allclose(close, far, rtol=0, atol=1e-3):
        raise Disagreement(f"back-projection differs from resizing by {float((close - far).abs().max()):.2g}")
    _, idx = knn(points, queries, 16)
    row(
        f"group {k} x 16, B = {B}",
        lambda: group(points, queries, idx),
        {"index_select": lambda: gather_in_torch(points, idx) - queries[:, :, None]},
        inner=5,
    )
    a, b = (torch.randn(B * where.sized(205, 3), 8, 3, device=device) for _ in range(2))
    row(f"Chamfer {len(a)} x 8 x 8", lambda: chamfer(a, b), {"broadcast": lambda: chamfer_in_torch(a, b)}, inner=5)
    return {"card": card(where), "rows": rows}


def _other_fps(points: Tensor, k: int) -> dict[str, Callable[[], object]]:
    """FPS of packages that are installed."""
    found: dict[str, Callable[[], object]] = {}
    try:
        import torch_quickfps

        found["torch-quickfps"] = lambda: torch_quickfps.sample_idx(points, k, start_idx=0)
    except ImportError:
        pass
    try:
        import torch_fps

        from benchmarks._peers import torch_fps_from_0

        found["torch-fps"] = lambda: torch_fps_from_0(torch_fps.farthest_point_sampling, points, k)
    except ImportError:
        pass
    return found


def card(where: Where) -> Numbers:
    """Measure rates of large products and copies."""
    side = where.sized(8192, 256)
    found: Numbers = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(side, side, device=where.device, dtype=dtype)
        found[f"{name} products, TFLOP/s"] = 2 * side**3 / timed(partial(torch.mm, a, a), where, repeats=10).p50 / 1e9
    source = torch.empty(where.sized(1 << 30, 1 << 20), dtype=torch.uint8, device=where.device)
    target = torch.empty_like(source)
    found["copy, GB/s"] = 2 * source.numel() / timed(partial(target.copy_, source), where, repeats=10).p50 / 1e6
    return found


# -- build -------------------------------------------------------------------------------------------------------------


def build(where: Where) -> Numbers:
    """Build a cache with a teacher that fills the card."""
    from benchmarks.bench_build import clouds, operations
    from pipeline.build.driver import build_cache
    from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig
    from pipeline.teacher.tower import load_teacher
    from teacher_cache import CacheConfig

    teacher = TeacherConfig(architecture="ViT-B-16", pretrained="random", precision="bfloat16", device=where.device)
    if where.dry:
        teacher = TeacherConfig(architecture="i2p-vit-tiny-16", pretrained="random", device="cpu")
    count = where.sized(8192, 8)
    with tempfile.TemporaryDirectory() as folder:
        made = clouds(Path(folder), min(count, where.sized(1024, 8)))
        flop = operations(load_teacher(replace(teacher, device="cpu", precision="float32"))) * 3
        uri, seconds, shapes = made, 0.0, 0
        found: Numbers = {}
        for format in ("zarr", "webdataset"):
            begun = time.perf_counter()
            report = build_cache(
                CorpusConfig(uri=uri, points=2048),
                ProjectionConfig(),
                teacher,
                CacheConfig(root=f"{folder}/{format}", format=format, shapes_per_shard=where.sized(128, 4)),
                BuildConfig(),
            )
            seconds, shapes = time.perf_counter() - begun, report.shapes
            found[f"{format}, shapes/s"] = shapes / seconds
    found["teacher, GFLOP a shape"] = flop / 1e9
    found["share of the card's bfloat16 products"] = (
        flop * shapes / seconds / 1e12 / card(where)["bfloat16 products, TFLOP/s"]
    )
    return found


# -- step --------------------------------------------------------------------------------------------------------------


def step(where: Where) -> Numbers:
    """Time the full-size step in every way that it can be taken."""
    import teacher_cache
    from benchmarks.bench_step import SCHEMA, TEACHER, operations, settings, steps
    from pipeline.teacher.tower import load_teacher
    from teacher_cache.config import CacheConfig
    from teacher_cache.format.records import CacheSchema
    from teacher_cache.testing.made_up import build as made_up

    presets = ("reference", "recommended") if not where.dry else ("smoke",)
    batches = (64, 256) if not where.dry else (4,)
    schema = SCHEMA if not where.dry else CacheSchema(points=256, views=3, image_side=32, patch_side=16, channels=8)
    outputs = TEACHER if not where.dry else {"channels": 8, "views": 3}
    ways: dict[str, tuple[bool, tuple[str, ...]]] = {
        "eager": (False, ()),
        "eager, static": (False, ("model.layout=static",)),
        "compiled, static": (True, ("model.layout=static",)),
    }
    if where.dry:
        del ways["compiled, static"]  # minutes of a CPU's compiler
    rows: dict[str, Numbers] = {}
    rate = card(where)["float32 products, TFLOP/s"] * 1e9  # operations a ms
    with tempfile.TemporaryDirectory() as folder:
        made_up(Path(folder) / "cache", CacheConfig(shapes_per_shard=16), count=max(batches) + 8, schema=schema)
        cache = teacher_cache.open(Path(folder) / "cache")
        for preset in presets:
            for batch in batches:
                for way, (compiled, overrides) in ways.items():
                    name = f"{preset}, {way}, B = {batch}"
                    try:
                        experiment = settings(
                            preset, batch, compiled=compiled, device=where.device, overrides=overrides
                        )
                        take, stepper, part = steps(experiment, cache, None, outputs)
                        rows[name] = _taken(take, where, batch)
                        if way == "eager":
                            rows[name]["floor, ms"] = operations(stepper, part.to(stepper.ranks.device)) / rate
                        if way == "eager, static":
                            rows[f"{preset}, graph, B = {batch}"] = graphed(stepper, part, where)
                        del take, stepper, part
                    except (RuntimeError, torch.OutOfMemoryError) as error:
                        rows[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        if not where.dry:
            experiment = settings("reference", 64, device=where.device)
            teacher = load_teacher(replace(experiment.teacher, device=where.device))
            rows["reference, live teacher, B = 64"] = _taken(steps(experiment, cache, teacher)[0], where, 64)
    failed = [name for name, row in rows.items() if "failed" in row and "graph" not in name]
    if failed:
        raise Disagreement(f"{failed[0]}: {rows[failed[0]]['failed']}")
    return {"rows": rows}


def _taken(take: Callable[[], float], where: Where, batch: int) -> Numbers:
    """Time whole steps by the wall clock: each ends with the host reading the losses."""
    for _ in range(where.sized(5, 1)):
        take()
    if not where.dry:
        torch.cuda.reset_peak_memory_stats()
    times, waits = [], []
    for _ in range(where.sized(30, 3)):
        begun = time.perf_counter()
        waits.append(take())
        times.append((time.perf_counter() - begun) * 1e3)
    found = {"ms": statistics.median(times), "waiting for data, ms": statistics.median(waits)}
    found["shapes/s"] = batch / found["ms"] * 1e3
    if not where.dry:
        found["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def graphed(stepper: Any, part: Any, where: Where) -> Numbers:
    """Time forward and backward pass as one CUDA graph; its losses are compared with those of the same pass, eager.

    On the CPU there are no graphs: the dry run takes the pass itself, through the same code.
    """
    from trainer.losses.terms import weighted_sum

    model, part = stepper.model.train(), part.to(stepper.ranks.device)
    plan = model.plan(part.points, part.points_canonical, part.maps, part.draws)

    def both() -> Tensor:
        loss = weighted_sum(model.losses(plan, model.network(plan, part.draws.drop_path)))
        loss.backward()
        return loss.detach()

    def clear() -> None:
        for parameter in model.parameters():
            parameter.grad = None

    clear()
    expected = both().clone()
    clear()
    if where.dry:
        found = both()
        return {"ms": 0.0, "difference": float((found - expected).abs())}
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                clear()
                both()
        torch.cuda.current_stream().wait_stream(stream)
        clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = both()
        graph.replay()
        times = timed(graph.replay, where)
        difference = float((loss - expected).abs() / expected.abs())
        return {"ms": times.p50, "relative difference": difference, "what": "forward and backward only"}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


# -- training ----------------------------------------------------------------------------------------------------------


def training(where: Where) -> Numbers:
    """Train the smoke preset on both devices, in float32 without TF32, and compare the losses of each epoch."""
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        for device in ("cpu", where.device):
            name = device.replace(":", "-") + ("-again" if device in losses else "")
            run = Path(folder) / name
            overrides = [f"cache.root={folder}/caches", f"trainer.device={device}", "trainer.epochs=3"]
            command = [
                sys.executable,
                "-c",
                "from cli.main import main; main()",
                "pretrain",
                "smoke",
                "--out",
                str(run),
            ]
            command += [text for item in overrides for text in ("--set", item)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Disagreement(f"training on {device} failed: {done.stderr.strip()[-1500:]}")
            lines = map(json.loads, (run / "train.jsonl").read_text(encoding="utf-8").splitlines())
            losses[name] = [
                {key: value for key, value in line.items() if key.startswith("loss")}
                for line in lines
                if line["event"] == "epoch"
            ]
    first, second = losses.values()
    if not first or not first[0] or len(first) != len(second):
        raise Disagreement(f"no losses to compare: {losses}")
    differences = [
        max(abs(a[key] - b[key]) / max(abs(a[key]), 1e-12) for key in a) for a, b in zip(first, second, strict=True)
    ]
    # One epoch is six steps of AdamW, whose first steps move every weight by the rate whatever the gradient's size, so
    # rounding grows; a wrong kernel is off by more than this at once.
    if differences[0] > 1e-3 or differences[-1] > 2e-2:
        raise Disagreement(f"losses on the CPU and on {where.device} differ by {differences}: {losses}")
    return {"losses": losses, "largest relative difference, by epoch": differences}


# -- nccl --------------------------------------------------------------------------------------------------------------


def nccl(where: Where) -> Numbers:
    """Run each collective of training in a group of one process."""
    import torch.distributed as dist

    from trainer.engine.ranks import Ranks

    device = torch.device(where.device)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)
        dist.init_process_group("gloo" if where.dry else "nccl", store=store, rank=0, world_size=1)
        try:
            # A Ranks of one does nothing; this one is made to talk to its group.
            ranks = Ranks(rank=0, size=1, device=device)
            object.__setattr__(ranks, "size", 2)
            values = torch.arange(7.0, device=device)
            if not torch.equal(ranks.sum(values), values):
                raise Disagreement("all_reduce over one rank changed the values")
            layer = torch.nn.Linear(5, 3, device=device)
            layer(torch.ones(2, 5, device=device)).sum().backward()
            before = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
            ranks.sum_gradients(layer.parameters())
            ranks.share_weights(layer)
            ranks.wait()
            after = [parameter.grad for parameter in layer.parameters()]
            if not all(a is not None and torch.equal(a, b) for a, b in zip(after, before, strict=True)):
                raise Disagreement("the sum of one rank's gradients changed them")
        finally:
            dist.destroy_process_group()
    return {"backend": "gloo" if where.dry else "nccl", "collectives": "all_reduce, broadcast, barrier"}


# -- all ---------------------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Where], Numbers], int]] = {
    "kernels": (kernels, 150),
    "operators": (operators, 60),
    "build": (build, 90),
    "step": (step, 150),
    "training": (training, 100),
    "nccl": (nccl, 30),
}
"""name -> the part, and the seconds it may take."""
