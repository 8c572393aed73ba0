"""Made-up records, and caches of them, for tests of this package and of programs that read caches."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.config import CacheConfig
from teacher_cache.format import paths
from teacher_cache.format.basis import Basis
from teacher_cache.format.records import CacheSchema, Quarantined, TeacherRecord
from teacher_cache.recipe import Recipe
from teacher_cache.writer import CacheWriter, create_cache, write_shard

__all__ = [
    "DEPTH_ERROR",
    "SMALL_SCHEMA",
    "assert_same_record",
    "build",
    "make_basis",
    "make_recipe",
    "make_record",
    "tree",
]

SMALL_SCHEMA = CacheSchema(points=40, views=3, image_side=16, patch_side=8, channels=6)
DEPTH_ERROR = {"uint8": 1 / 508 + 1e-7, "float16": 2.0**-12}  # docs/format.md; 1e-7: float32 rounding of the quotient


def make_record(
    index: int, schema: CacheSchema = SMALL_SCHEMA, *, seed: int = 0, label: int | None = None
) -> TeacherRecord:
    """Return record ``index`` of an endless made-up corpus: a pure function of its arguments, features as float32."""
    rng = np.random.default_rng([seed, index])
    shapes = schema.shapes
    points = rng.uniform(-1, 1, shapes["points"])
    depth = rng.uniform(0, 1, shapes["depth"])
    depth[depth < 0.3] = 0.5  # empty pixels
    return TeacherRecord(
        id=f"made-up/{index:05d}",
        label=index % 5 if label is None else label,
        points=(points / np.linalg.norm(points, axis=1).max()).astype(np.float32),
        lo=rng.uniform(-1, 0, shapes["lo"]).astype(np.float32),
        cell=rng.uniform(0.005, 0.01, shapes["cell"]).astype(np.float32),
        offset=rng.integers(-4, 5, shapes["offset"]).astype(np.int32),
        depth=depth.astype(np.float32),
        features=rng.normal(0, 0.3, shapes["features"]).astype(np.float32),
        saliency=rng.uniform(0, 0.02, shapes["saliency"]).astype(np.float32),
        class_token=rng.normal(0, 0.5, schema.class_shape).astype(
            np.float32
        ),  # drawn last, so the other arrays keep their values
    )


def make_recipe(config: CacheConfig, **corpus: Any) -> Recipe:
    """Return a recipe for made-up records; ``corpus`` adds settings, to make another recipe."""
    return Recipe(
        corpus={"kind": "made-up"} | corpus,
        projection={"image_side": SMALL_SCHEMA.image_side, "splat": 5},
        teacher={"architecture": "none", "sha256": "0" * 64},
        storage=config.storage(),
    )


def make_basis(channels: int, teacher_channels: int = 9, *, seed: int = 0) -> Basis:
    """Return a made-up basis: a pure function of its arguments."""
    rng = np.random.default_rng([seed, channels, teacher_channels])
    rows = np.linalg.qr(rng.normal(size=(teacher_channels, channels)))[0].T
    return Basis(
        mean=rng.normal(size=teacher_channels).astype(np.float32),
        components=np.ascontiguousarray(rows, np.float32),
        variance=tuple(2.0**-i for i in range(channels)),
        total_variance=2.0,
        shapes=5,
    )


def build(
    directory: str | os.PathLike[str],
    config: CacheConfig,
    *,
    count: int,
    schema: CacheSchema = SMALL_SCHEMA,
    bad: Iterable[int] = (),
    order: Sequence[int] | None = None,
    label_names: Sequence[str] = ("a", "b", "c", "d", "e"),
) -> CacheWriter:
    """Build or finish a cache of made-up records ``0..count - 1``, as a pipeline would: missing shards only.

    bad    records that are quarantined.
    order  in which the missing shards are written; None: ascending.
    """
    basis = make_basis(config.channels) if config.channels else None
    writer = create_cache(directory, make_recipe(config), schema, config, label_names=label_names, basis=basis)
    for shard, indices in plan(writer, config, count, order=order):
        quarantined = [
            Quarantined(id=make_record(i, schema).id, source=f"{i}.obj", reason="made up to be bad")
            for i in indices
            if i in set(bad)
        ]
        write_shard(writer.handle, shard, [make_record(i, schema) for i in indices if i not in set(bad)], quarantined)
    writer.finish(planned=count)
    return writer


def plan(
    writer: CacheWriter, config: CacheConfig, count: int, *, order: Sequence[int] | None = None
) -> list[tuple[int, list[int]]]:
    """List (shard index, record numbers) of what is not committed: the rest in order, cut into the free shards."""
    receipts = writer.committed()
    done = {id for receipt in receipts.values() for id in (*receipt.ids, *(item.id for item in receipt.quarantined))}
    rest = [i for i in range(count) if make_record(i, writer.schema).id not in done]
    shards, shard = [], 0
    while rest:
        if shard not in receipts:
            shards.append((shard, rest[: config.shapes_per_shard]))
            rest = rest[config.shapes_per_shard :]
        shard += 1
    return shards if order is None else [shards[i] for i in order]


def tree(directory: str | os.PathLike[str]) -> dict[str, bytes]:
    """Read every file of a cache by path, except folders that are not part of its bytes.

    A left-over tmp/ is a failure.
    """
    root = Path(directory)
    assert not list(root.glob("tmp/*")), "work was left behind"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in paths.VOLATILE
    }


def assert_same_record(found: TeacherRecord, expected: TeacherRecord, config: CacheConfig) -> None:
    """Assert equality as storage promises: to the bit, except features and depth, which have their stored rounding."""
    assert (found.id, found.label) == (expected.id, expected.label)
    for name in ("points", "lo", "cell", "offset", "saliency"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    if config.class_token == "none":
        assert found.class_token is None
    else:
        assert found.class_token is not None
        assert expected.class_token is not None
        assert found.class_token.dtype == np.float16
        np.testing.assert_array_equal(found.class_token, expected.class_token.astype(np.float16), err_msg="class")
    assert found.features.dtype.name == config.feature_dtype
    if config.features == "int8":
        wanted = expected.features.astype(np.float64)
        largest = np.abs(wanted).max(axis=-1, keepdims=True)
        # Half a step of the token's scale, and a rounding to float16: half a unit in the last place of the result.
        allowed = largest / (2 * config.steps) * (1 + 1e-5) + largest * 2.0**-11 + 2.0**-25
        assert (np.abs(found.features.astype(np.float64) - wanted) <= allowed).all()
    else:
        np.testing.assert_array_equal(found.features, expected.features.astype(config.features))
    if config.depth == "none":
        assert found.depth is None
        return
    assert found.depth is not None
    assert expected.depth is not None
    assert found.depth.dtype == np.float32
    assert np.abs(found.depth - expected.depth).max() <= DEPTH_ERROR[config.depth]
    np.testing.assert_array_equal(found.depth[expected.depth == 0.5], 0.5)
