"""Bytes a shape and error of looked-up targets for each way of storing features: ``python -m benchmarks size``.

Small caches of the quickstart's corpus by the embedded teacher; the error is against float32 features.
"""

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


def looked_up(path: Path) -> torch.Tensor:
    """Targets at the first points of every shape, [shapes, LOOKUPS, V, C] float32."""
    cache = teacher_cache.open(path)
    batch = cache.read(range(len(cache)))
    geometry = ViewGeometry(*(torch.from_numpy(array) for array in (batch.lo, batch.cell, batch.offset)))
    points = torch.from_numpy(batch.points[:, :LOOKUPS]).contiguous()
    return backproject(torch.from_numpy(batch.features), points, geometry, image_side=cache.schema.image_side)


def main() -> None:
    corpus = f"corpus.uri=synthetic:?count={SHAPES}&seed=0&split=train&rotate=yaw"
    experiment = load_experiment("quickstart", [corpus])
    rows: list[dict[str, Any]] = []
    exact: torch.Tensor | None = None
    print("\n### Size of stored features, embedded teacher\n")
    print("| features | untouched | kB a shape | features | of dense float16 | cosine | least | relative error |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for features in ("float32", "float16", "int8"):
            for untouched in ("keep", "zero"):
                storage = replace(experiment.cache, root=folder, features=features, untouched=untouched)  # type: ignore[arg-type]
                path = build_cache(
                    experiment.corpus, experiment.projection, experiment.teacher, storage, experiment.build
                ).path
                values = looked_up(path)
                exact = values if exact is None else exact
                info = teacher_cache.open(path).info()
                stored = sum(
                    file.stat().st_size for name in ("features", "scale") for file in (path / name).glob("c.*")
                )
                dense = 2 * info.schema.views * info.schema.tokens * info.schema.channels
                cosine = F.cosine_similarity(values, exact, dim=-1)
                row = {
                    "features": features,
                    "untouched": untouched,
                    "bytes": info.bytes_per_record,
                    "feature_bytes": stored / SHAPES,
                    "of_dense": stored / SHAPES / dense,
                    "cosine": cosine.mean().item(),
                    "least_cosine": cosine.min().item(),
                    "relative_error": ((values - exact).norm() / exact.norm()).item(),
                }
                rows.append(row)
                print(
                    f"| {features} | {untouched} | {row['bytes'] / 1e3:.1f} | {row['feature_bytes'] / 1e3:.1f} "
                    f"| {row['of_dense']:.2f} | {row['cosine']:.6f} | {row['least_cosine']:.6f} "
                    f"| {row['relative_error']:.1e} |",
                    flush=True,
                )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"title": "size", "environment": environment(), "rows": rows}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
