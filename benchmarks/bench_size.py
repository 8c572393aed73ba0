"""Bytes a shape and error of looked-up targets for each way of storing features: ``python -m benchmarks size``.

Small caches of the quickstart's corpus by the embedded teacher; the error is against float32 features.
"""

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import teacher_cache
from benchmarks._table import environment
from cli.config import load_experiment
from cuda.backproject import backproject
from cuda.geometry import ViewGeometry
from pipeline.build import build_cache

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "size.jsonl"
SHAPES, LOOKUPS = 48, 512
WAYS = (("float32", 127), ("float16", 127), ("int8", 127), ("int8", 64), ("int8", 32), ("int8", 24), ("int8", 20))
"""(features, steps)"""


def looked_up(path: Path) -> torch.Tensor:
    """Targets at the first points of every shape, [shapes, LOOKUPS, V, C] float32."""
    cache = teacher_cache.open(path)
    batch = cache.read(range(len(cache)))
    geometry = ViewGeometry(*(torch.from_numpy(array) for array in (batch.lo, batch.cell, batch.offset)))
    points = torch.from_numpy(batch.points[:, :LOOKUPS]).contiguous()
    return backproject(torch.from_numpy(batch.features), points, geometry, image_side=cache.schema.image_side)


def stored_bytes(path: Path) -> float:
    """Bytes of a shape's features on disk."""
    return sum(file.stat().st_size for name in ("features", "scale") for file in (path / name).glob("c.*")) / SHAPES


def compare(path: Path, exact: torch.Tensor) -> dict[str, float]:
    """What the features of a cache cost, and how far their lookups are from the exact ones."""
    info, values = teacher_cache.open(path).info(), looked_up(path)
    stored = stored_bytes(path)
    cosine = F.cosine_similarity(values, exact, dim=-1)
    return {
        "bytes": info.bytes_per_record,
        "feature_bytes": stored,
        "of_dense": stored / (2 * info.schema.views * info.schema.tokens * info.schema.channels),
        "cosine": cosine.mean().item(),
        "least_cosine": cosine.min().item(),
        "relative_error": ((values - exact).norm() / exact.norm()).item(),
    }


def print_row(features: str, steps: int, untouched: str, found: dict[str, float]) -> None:
    name = f"int8, {steps} steps" if features == "int8" else features
    print(
        f"| {name} | {untouched} | {found['bytes'] / 1e3:.1f} | {found['feature_bytes'] / 1e3:.1f} "
        f"| {found['of_dense']:.2f} | {found['cosine']:.6f} | {found['least_cosine']:.6f} "
        f"| {found['relative_error']:.1e} |",
        flush=True,
    )


def main() -> None:
    corpus = f"corpus.uri=synthetic:?count={SHAPES}&seed=0&split=train&rotate=yaw"
    experiment = load_experiment("quickstart", [corpus])
    rows: list[dict[str, Any]] = []
    exact: torch.Tensor | None = None
    print("\n### Size of stored features, embedded teacher\n")
    print("| features | untouched | kB a shape | features kB | of dense float16 | cosine | least | relative error |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for (features, steps), untouched in itertools.product(WAYS, ("keep", "zero")):
            how: dict[str, Any] = {"features": features, "steps": steps, "untouched": untouched}
            path = build_cache(
                experiment.corpus,
                experiment.projection,
                experiment.teacher,
                replace(experiment.cache, root=folder, **how),
                experiment.build,
            ).path
            exact = looked_up(path) if exact is None else exact  # the first way is exact
            found = compare(path, exact)
            rows.append(how | found)
            print_row(features, steps, untouched, found)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"title": "size", "environment": environment(), "rows": rows}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
