"""A converted cache is the one that a build with the other storage would have written, to the byte."""

import dataclasses
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, RecipeMismatch
from teacher_cache.format.codecs import quantise
from teacher_cache.format.records import Quarantined, RecordBatch
from teacher_cache.maintenance.convert import convert
from teacher_cache.recipe import cache_directory
from teacher_cache.testing import SMALL_SCHEMA, assert_same_record, build, make_recipe, make_record, tree
from teacher_cache.writer import create_cache, write_shard
from tests.support.limits import HANG

CONFIG = CacheConfig(shapes_per_shard=4)
SMALLEST = 127 * float(np.finfo(np.float32).tiny)  # of a token's largest magnitude: its scale is then a normal number


@given(
    features=hnp.arrays(np.float32, (1, 3, 5), elements=st.floats(-65504, 65504, width=32)),
    exponent=st.integers(-100, 0),
    steps=st.integers(7, 127),
)
@settings(deadline=None, max_examples=300)
def test_codes_and_scales_survive_float32(features: np.ndarray, exponent: int, steps: int) -> None:
    """quantise is the identity on its own results, so int8 features can be carried as float32."""
    values = np.ldexp(features, exponent)
    values[np.abs(values).max(axis=-1) < SMALLEST] = 0
    codes, scale = quantise(values, steps)
    again, scale_again = quantise(codes * scale[..., None], steps)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(scale_again, scale)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_exact_features_are_what_is_stored(tmp_path: Path, format: str) -> None:
    config = CacheConfig(format=format, features="int8", steps=24)  # type: ignore[arg-type]
    build(tmp_path / "c", config, count=3)
    cache = teacher_cache.open(tmp_path / "c")
    exact = cache.read(range(3), exact=True).features
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(exact.astype(np.float16), cache.read(range(3)).features)
    for i in range(3):
        codes, scale = quantise(make_record(i).features, 24)
        np.testing.assert_array_equal(exact[i], codes * scale[..., None])
    assert not np.array_equal(exact, exact.astype(np.float16)), "rounding to float16 would have lost something"


STORAGES: list[dict[str, Any]] = [
    {},
    {"features": "float32", "depth": "float16", "compression": "none"},
    {"features": "int8", "depth": "none"},
    {"features": "int8", "steps": 24, "level": 7},
    {"features": "int8", "channels": 6, "sample": 5},
    {"features": "int8", "half_first": True},
]


def build_at(root: Path, *, count: int = 10, bad: tuple[int, ...] = (2, 9), **storage: Any) -> Path:
    """A cache of made-up records in a folder that is named as builds name it."""
    config = CacheConfig(**({"root": str(root), "name": "made", "shapes_per_shard": 4} | storage))
    path = Path(cache_directory(config, make_recipe(config)))
    build(path, config, count=count, bad=bad)
    return path


@pytest.mark.parametrize("storage", STORAGES)
def test_there_and_back_is_the_identity(tmp_path: Path, storage: dict[str, Any]) -> None:
    """zarr -> webdataset -> zarr, each step the very cache that a build with that storage writes."""
    zarr = build_at(tmp_path / "built", format="zarr", **storage)
    tar = build_at(tmp_path / "built", format="webdataset", **storage)
    there = convert(zarr, tmp_path / "there", format="webdataset")
    back = convert(there.path, tmp_path / "back", format="zarr")
    assert (there.path.name, back.path.name) == (tar.name, zarr.name)
    assert tree(there.path) == tree(tar)
    assert tree(back.path) == tree(zarr)
    assert (there.records, there.shards, there.written) == (8, 3, 3)
    assert there.bytes == teacher_cache.open(tar).info().bytes
    assert teacher_cache.verify(there.path) == []


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ({}, {"compression": "none"}),
        ({"compression": "none"}, {"compression": "zstd", "level": 5}),
        ({}, {"level": 9}),
        ({}, {"depth": "none"}),
        ({"features": "float32"}, {"features": "float16"}),
        ({"features": "float32"}, {"features": "int8"}),
        ({"features": "float32"}, {"features": "int8", "steps": 24, "format": "webdataset"}),
        ({"bad": ()}, {"shapes_per_shard": 3}),
        ({"bad": ()}, {"shapes_per_shard": 1, "format": "webdataset"}),
        ({"bad": ()}, {"shapes_per_shard": 100}),
        ({"count": 16, "bad": (2, 9)}, {"shapes_per_shard": 8}),
    ],
)
def test_converted_is_what_a_build_would_have_written(
    tmp_path: Path, source: dict[str, Any], change: dict[str, Any]
) -> None:
    found = convert(build_at(tmp_path / "source", **source), tmp_path / "found", **change)
    expected = build_at(tmp_path / "expected", **(source | change))
    assert tree(found.path) == tree(expected)


@pytest.mark.parametrize("change", [{}, {"steps": 24, "format": "webdataset"}])
def test_int8_of_float16_says_so_and_is_what_a_build_that_says_so_writes(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    change = change | {"features": "int8"}
    found = convert(build_at(tmp_path / "source"), tmp_path / "found", **change)
    assert tree(found.path) == tree(build_at(tmp_path / "half", half_first=True, **change))
    assert found.path.name != build_at(tmp_path / "exact", **change).name, "from float32 is another recipe"
    cache = teacher_cache.open(found.path)
    assert cache.recipe.storage["half_first"] is True
    for record in cache:
        made = make_record(int(record.id[-5:]))
        largest = np.abs(made.features).max(axis=-1, keepdims=True)
        allowed = largest / (2 * change.get("steps", 127)) + largest * 2.0**-10  # half a step, and two roundings
        assert (np.abs(record.features - made.features) <= allowed).all()


def test_half_first_changes_bytes(tmp_path: Path) -> None:
    """On values that float16 moves across the middle between two steps; on others it may not."""
    half, exact = (
        build_at(tmp_path / str(first), features="int8", half_first=first, bad=()) for first in (True, False)
    )
    pairs = zip(teacher_cache.open(half), teacher_cache.open(exact), strict=True)
    assert not all(np.array_equal(a.features, b.features) for a, b in pairs)


def test_shards_that_are_cut_anew_keep_order_poses_and_quarantine(tmp_path: Path) -> None:
    """Three poses a shape: they stay together, and every shape of every shard is there once, in order."""
    config = CacheConfig(shapes_per_shard=9)
    writer = create_cache(tmp_path / "c", make_recipe(config, poses=3), SMALL_SCHEMA, config)
    names = [f"s{k // 3}" + (f"@pose{k % 3}" if k % 3 else "") for k in range(15)]
    records = [dataclasses.replace(make_record(i), id=name) for i, name in enumerate(names)]
    refused = [Quarantined(id=f"bad{i}", source=f"{i}.obj", reason="flat") for i in range(3)]
    write_shard(writer.handle, 0, records[:6], refused[:1])
    write_shard(writer.handle, 1, [], refused[1:])
    write_shard(writer.handle, 4, records[6:])
    writer.finish(planned=18)
    found = teacher_cache.open(convert(tmp_path / "c", tmp_path / "found", shapes_per_shard=8).path)
    assert found.ids == names
    assert found.poses == 3
    assert found.counts.tolist() == [6, 0, 3, 6]  # 8 // 3 = 2 shapes a shard, the refused counted
    assert [item.id for item in found.info().quarantined] == ["bad0", "bad1", "bad2"]
    assert (found.info().planned, found.complete) == (18, True)
    for record, made in zip(found, records, strict=True):
        assert_same_record(record, made, config)
    with pytest.raises(CacheError, match="shapes_per_shard = 2 is less than the 3 poses of one shape"):
        convert(tmp_path / "c", tmp_path / "none", shapes_per_shard=2)
    same = teacher_cache.open(convert(tmp_path / "c", tmp_path / "tar", format="webdataset").path)
    assert same.counts.tolist() == [6, 0, 9]
    assert sorted(path.name for path in (same.path / "shards").iterdir()) == ["000000.tar", "000001.tar", "000004.tar"]


@pytest.mark.parametrize(
    ("source", "change", "said"),
    [
        ({}, {"format": "zarr"}, "it already has these settings"),
        ({"compression": "none"}, {"level": 9}, "it already has these settings"),
        ({"features": "int8"}, {"features": "float16"}, 'features = "int8" cannot become "float16"'),
        ({}, {"features": "float32"}, r"what was discarded is gone; build the cache with cache\.features"),
        ({"depth": "float16"}, {"depth": "uint8"}, "its values are already rounded"),
        ({"features": "int8"}, {"steps": 24}, "steps = 127 cannot become 24"),
        ({}, {"steps": 24}, "steps = 24 applies to int8 features only"),
        ({"depth": "none"}, {"depth": "uint8"}, 'depth = "none" cannot become "uint8"'),
        ({"depth": "uint8"}, {"depth": "float16"}, 'depth = "uint8" cannot become "float16"'),
        ({"untouched": "zero"}, {"untouched": "keep"}, 'untouched = "zero" cannot become "keep"'),
        ({}, {"format": "hdf5"}, 'format = "hdf5" is not one of zarr, webdataset'),
        ({}, {"level": 0}, "level = 0 is not in 1..19"),
    ],
)
def test_what_cannot_be_converted_says_why_and_leaves_nothing(
    tmp_path: Path, source: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(CacheError, match=said):
        convert(build_at(tmp_path / "source", **source), tmp_path / "found", **change)
    assert not (tmp_path / "found").exists()


def test_a_root_that_is_a_cache_and_settings_that_are_none(tmp_path: Path) -> None:
    source = build_at(tmp_path)
    with pytest.raises(CacheError, match="expected a folder that contains caches, found a cache"):
        convert(source, source, format="webdataset")
    with pytest.raises(TypeError, match="'fromat' is not one of format"):
        convert(source, tmp_path, fromat="webdataset")
    with pytest.raises(ValueError, match="needs find_untouched"):
        convert(source, tmp_path, untouched="zero")
    with pytest.raises(ValueError, match="threads = 0"):
        convert(source, tmp_path, format="webdataset", threads=0)


def test_an_unfinished_source_is_refused(tmp_path: Path) -> None:
    source = build_at(tmp_path)
    (source / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="has not finished"):
        convert(source, tmp_path / "found", format="webdataset")


def test_a_source_that_misses_shapes_stays_so(tmp_path: Path) -> None:
    source = build_at(tmp_path)
    create_cache(source, make_recipe(CONFIG), SMALL_SCHEMA, CONFIG).finish(planned=12)
    info = teacher_cache.open(convert(source, tmp_path / "found", format="webdataset").path).info()
    assert (info.planned, info.complete, info.label_names) == (12, False, ("a", "b", "c", "d", "e"))


def test_features_too_small_for_an_exact_scale_are_refused(tmp_path: Path) -> None:
    config = CacheConfig(features="int8", steps=7)
    tiny = make_record(0).features * np.float32(1e-38)
    writer = create_cache(tmp_path / "c", make_recipe(config), SMALL_SCHEMA, config)
    write_shard(writer.handle, 0, [dataclasses.replace(make_record(0), features=tiny)])
    writer.finish()
    with pytest.raises(CacheError, match="cannot be written again to the same bytes"):
        convert(tmp_path / "c", tmp_path / "found", format="webdataset")


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_damage_in_the_source_never_gets_new_checksums(tmp_path: Path, format: str) -> None:
    """Two shards' files swapped, of one array, pass every check a reader makes; the conversion finds them."""
    source = build_at(tmp_path, format=format, bad=())
    other = {"zarr": "webdataset", "webdataset": "zarr"}[format]
    name = "features/c.{}.0.0.0" if format == "zarr" else "shards/{:06d}.tar"
    a, b = source / name.format(0), source / name.format(1)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    with pytest.raises(CacheError, match=rf"(?s){source.name}.*its bytes differ from those committed.*cache repair"):
        convert(source, tmp_path / "found", format=other)
    [found] = (tmp_path / "found").iterdir()
    assert not (found / "manifest.json").exists()
    a.write_bytes(first)
    b.unlink()
    with pytest.raises(CacheError, match="expected a file here, found none"):
        convert(source, tmp_path / "found", format=other)
    b.write_bytes(second)
    receipt = source / "receipts/000002.json"
    kept = receipt.read_bytes()
    receipt.write_bytes(kept + b" ")
    with pytest.raises(CacheError, match=rf"{source}: shard 2, receipts/000002.json: its SHA-256"):
        convert(source, tmp_path / "found", format=other)
    receipt.write_bytes(kept)
    assert tree(convert(source, tmp_path / "found", format=other).path) == tree(
        build_at(tmp_path / "whole", format=other, bad=())
    )


def test_a_rerun_writes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    source = build_at(tmp_path)
    found = convert(source, tmp_path / "found", format="webdataset").path
    before = tree(found)
    stamps = {path: path.stat().st_mtime_ns for path in found.rglob("*") if path.is_file()}
    seen: list[tuple[int, int]] = []
    again = convert(source, tmp_path / "found", format="webdataset", on_progress=lambda *now: seen.append(now))
    assert (again.written, seen) == (0, [(3, 3)])
    assert stamps == {path: path.stat().st_mtime_ns for path in found.rglob("*") if path.is_file()}
    (found / "shards/000001.tar").unlink()
    seen.clear()
    again = convert(source, tmp_path / "found", format="webdataset", on_progress=lambda *now: seen.append(now))
    assert (again.written, seen) == (1, [(2, 3), (3, 3)])
    assert tree(found) == before


def test_a_source_that_has_grown_adds_shards(tmp_path: Path) -> None:
    source = build_at(tmp_path)
    convert(source, tmp_path / "found", format="webdataset")
    build(source, CONFIG, count=15, bad=(2, 9))
    grown = convert(source, tmp_path / "found", format="webdataset")
    assert (grown.written, grown.shards) == (2, 5)
    expected = build_at(tmp_path / "expected", format="webdataset")
    build(expected, dataclasses.replace(CONFIG, format="webdataset"), count=15, bad=(2, 9))
    assert tree(grown.path) == tree(expected)


def test_a_target_of_other_shapes_is_refused(tmp_path: Path) -> None:
    source = build_at(tmp_path, bad=())
    build_at(tmp_path / "found", format="webdataset", count=13, bad=())
    with pytest.raises(RecipeMismatch, match="shard 2 is committed with other shapes"):
        convert(source, tmp_path / "found", format="webdataset")
    build_at(tmp_path / "more", format="webdataset", count=10, bad=())
    build_at(tmp_path / "more", format="webdataset", count=17, bad=())
    with pytest.raises(RecipeMismatch, match=r"2 of its 5 shards \(first 3\) do not come from these sources"):
        convert(source, tmp_path / "more", format="webdataset")


def convert_and_die(source: str, root: str, die_at: int, counted: Any) -> None:
    """Convert, and SIGKILL this process just before step ``die_at`` of what it does to files."""
    steps = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in {"os.rename", "os.remove", "os.mkdir", "fcntl.flock", "shutil.rmtree"}:
            if steps == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    sys.addaudithook(hook)
    convert(source, root, format="webdataset", threads=1)  # one: the same steps every time
    counted.value = steps


def test_killed_anywhere_a_rerun_completes(tmp_path: Path) -> None:
    source = build_at(tmp_path)
    expected = tree(build_at(tmp_path / "expected", format="webdataset"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.testing"])
    counted = context.Value("i", 0)

    def run(root: Path, die_at: int) -> int | None:
        process = context.Process(target=convert_and_die, args=(str(source), str(root), die_at, counted))
        process.start()
        process.join(HANG)
        return process.exitcode

    assert run(tmp_path / "whole", -1) == 0
    total, unfinished = counted.value, 0
    assert total > 30, "the steps are being counted"
    for die_at in range(0, total, 3):
        root = tmp_path / f"killed-{die_at}"
        assert run(root, die_at) == -signal.SIGKILL
        unfinished += not list(root.glob("*/manifest.json"))
        assert tree(convert(source, root, format="webdataset").path) == expected, f"killed before step {die_at}"
    assert unfinished > 5


def convert_when_told(source: str, root: str, started: Any) -> None:
    started.wait(HANG)
    convert(source, root, format="webdataset", threads=2)


def test_two_conversions_at_once_make_one_cache(tmp_path: Path) -> None:
    source = build_at(tmp_path, count=20)
    context = multiprocessing.get_context("forkserver")
    started = context.Event()
    arguments = (str(source), str(tmp_path / "found"), started)
    pair = [context.Process(target=convert_when_told, args=arguments) for _ in range(2)]
    for process in pair:
        process.start()
    started.set()
    for process in pair:
        process.join(HANG)
    assert [process.exitcode for process in pair] == [0, 0]
    [found] = (tmp_path / "found").iterdir()
    assert tree(found) == tree(build_at(tmp_path / "expected", count=20, format="webdataset"))


def test_untouched_tokens_are_zeroed_where_they_are_said_to_be(tmp_path: Path) -> None:
    def every_second(batch: RecordBatch) -> np.ndarray:
        found = np.zeros(batch.saliency.shape, bool)
        found[..., ::2] = True
        return found

    source = build_at(tmp_path, features="float32", bad=())
    converted = convert(source, tmp_path / "found", features="int8", untouched="zero", find_untouched=every_second)
    cache = teacher_cache.open(converted.path)
    assert cache.recipe.storage["untouched"] == "zero"
    for i, record in enumerate(cache):
        assert not record.features[:, ::2].any()
        assert np.abs(record.features[:, 1::2] - make_record(i).features[:, 1::2]).max() < 0.01
