"""Farthest point sampling and nearest neighbours beside libraries that do the same: ``python -m benchmarks peers``.

torch-quickfps, torch-fps and fpsample, each in those of its exact variants that were fastest here, with as many threads
as torch has. All take turns in every round; the ratio is the median over rounds of that peer's variant which is fastest
in this run. Indices are compared first.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._peers import CLOCKS, available, in_turn, ratio, timing, torch_fps_from_0
from benchmarks._table import environment
from benchmarks.bench_kernels import greedy_from, surfaces
from cuda.fps import farthest_point_sample
from cuda.gather import gather
from cuda.knn import knn

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "peers.jsonl"
SIZES = ((32, 2048, 512), (128, 1024, 256), (4, 8192, 512), (1, 2048, 512), (1, 16_384, 2048), (1, 100_000, 1024))
"""clouds, points, samples"""
KNN_SIZES = ((32, 2048, 512), (4, 8192, 512))
NEIGHBOURS = 16
HEIGHTS = (3, 5, 7)  # of the trees in torch-quickfps and fpsample

Sampler = Callable[[Tensor, int], Tensor]
"""points [B, N, 3] float32, k -> [B, k] int64"""


def samplers(found: dict[str, Any], pool: ThreadPoolExecutor) -> dict[str, dict[str, Sampler]]:
    """Each package's exact variants."""
    built: dict[str, dict[str, Sampler]] = {}
    if quick := found.get("torch-quickfps"):
        built["torch-quickfps"] = {
            f"h = {h or 'its default'}": (lambda points, k, h=h: quick.sample_idx(points, k, h=h, start_idx=0))
            for h in (None, *HEIGHTS)
        }
    if fused := found.get("torch-fps"):
        built["torch-fps"] = {"": lambda points, k: torch_fps_from_0(fused.farthest_point_sampling, points, k)}
    if sample := found.get("fpsample"):
        trees = {
            "KD-tree": sample.bucket_fps_kdtree_sampling,
            **{f"KD-line, h = {h}": partial(sample.bucket_fps_kdline_sampling, h=h) for h in HEIGHTS},
        }
        built["fpsample"] = {name: partial(_clouds, tree, pool) for name, tree in trees.items()}
    return built


def _clouds(tree: Callable[..., np.ndarray], pool: ThreadPoolExecutor, points: Tensor, k: int) -> Tensor:
    """fpsample takes one cloud at a time."""
    clouds = pool.map(lambda cloud: tree(cloud, n_samples=k, start_idx=0).astype(np.int64), points.numpy())
    return torch.from_numpy(np.stack(list(clouds)))


def check(name: str, points: Tensor, idx: Tensor) -> None:
    """Raise ValueError unless each cloud's indices are the greedy ones from their first: fpsample picks its start."""
    for cloud, own in zip(points[:4].numpy(), idx[:4].numpy(), strict=True):
        if not np.array_equal(own, greedy_from(cloud, int(own[0]), len(own))):
            raise ValueError(f"{name} does not give the indices of exact farthest point sampling; it is not comparable")


def fps_and_knn(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    idx = farthest_point_sample(points, k)
    return idx, knn(points, gather(points, idx), NEIGHBOURS)[1]


def check_neighbours(points: Tensor, idx: Tensor, theirs: Tensor) -> None:
    """Raise AssertionError unless the neighbours are as near as ours; those equally near may differ."""
    centres = gather(points, idx)
    dist2 = (gather(points, theirs) - centres[:, :, None]).square().sum(-1).sort(-1).values
    torch.testing.assert_close(dist2, knn(points, centres, NEIGHBOURS)[0], rtol=1e-4, atol=1e-6)


def rows_of(case: str, package_of: dict[str, tuple[str, str]], spent: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row a package, of its fastest variant; ``package_of`` gives package and variant of each name in ``spent``."""
    rows = []
    for package in dict.fromkeys(package for package, _ in package_of.values()):
        names = [name for name, (whose, _) in package_of.items() if whose == package]
        best = min(names, key=lambda name: timing(spent[name]).p50)
        rows.append(
            {
                "case": case,
                "peer": " ".join(part for part in package_of[best] if part),
                "ours": vars(timing(spent["ours"])),
                "theirs": vars(timing(spent[best])),
                "ratio": vars(ratio(spent[best], spent["ours"])),
            }
        )
    return rows


def bench_fps(found: dict[str, Any], rounds: int, clock: str, pool: ThreadPoolExecutor) -> list[dict[str, Any]]:
    rows = []
    for clouds, count, k in SIZES:
        points = surfaces(clouds, count)
        runs: dict[str, Callable[[], object]] = {"ours": partial(farthest_point_sample, points, k)}
        package_of = {}
        for package, variants in samplers(found, pool).items():
            for variant, sampler in variants.items():
                name = f"{package} {variant}"
                check(name, points, sampler(points, k))
                runs[name], package_of[name] = partial(sampler, points, k), (package, variant)
        spent = in_turn(runs, rounds, clock=clock)
        rows += rows_of(f"FPS {count} -> {k}, {clouds} cloud{'s' if clouds > 1 else ''}", package_of, spent)
    return rows


def bench_fps_and_knn(found: dict[str, Any], rounds: int, clock: str) -> list[dict[str, Any]]:
    if "torch-fps" not in found:
        return []
    rows = []
    function = found["torch-fps"].farthest_point_sampling_with_knn
    for clouds, count, k in KNN_SIZES:
        points = surfaces(clouds, count)
        idx, theirs = torch_fps_from_0(function, points, k, NEIGHBOURS)
        check("torch-fps", points, idx)
        check_neighbours(points, idx, theirs)
        runs: dict[str, Callable[[], object]] = {
            "ours": partial(fps_and_knn, points, k),
            "torch-fps": partial(torch_fps_from_0, function, points, k, NEIGHBOURS),
        }
        case = f"FPS {count} -> {k} and {NEIGHBOURS} neighbours, {clouds} clouds"
        rows += rows_of(case, {"torch-fps": ("torch-fps", "")}, in_turn(runs, rounds, clock=clock))
    return rows


def print_rows(rows: list[dict[str, Any]], clock: str) -> None:
    print(f"\n### Beside other libraries, {clock} time\n")
    print("| case | ours p50 (p20-p80) ms | peer, its fastest variant | its p50 (p20-p80) ms | ratio (p20-p80) |")
    print("| --- | ---: | --- | ---: | ---: |")
    for row in rows:
        ours, theirs, times = row["ours"], row["theirs"], row["ratio"]
        print(
            f"| {row['case']} | {ours['p50']:.2f} ({ours['p20']:.2f}-{ours['p80']:.2f}) | {row['peer']} "
            f"| {theirs['p50']:.2f} ({theirs['p20']:.2f}-{theirs['p80']:.2f}) "
            f"| {times['p50']:.1f}x ({times['p20']:.1f}-{times['p80']:.1f}) |"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_peers", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="in each of which all run once (default 15)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what is measured (default wall)")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 2:
        parser.error(f"--rounds {chosen.rounds} is too few for a spread; give 2 or more")
    for name, value in environment().items():
        print(f"{name}: {value}")
    found = available(("torch-quickfps", "torch-fps", "fpsample"))
    if not found:
        return
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        rows = bench_fps(found, chosen.rounds, chosen.clock, pool)
        rows += bench_fps_and_knn(found, chosen.rounds, chosen.clock)
    print_rows(rows, chosen.clock)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps(
                {"title": "peers", "clock": chosen.clock, "environment": environment(), "rows": rows}, sort_keys=True
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
