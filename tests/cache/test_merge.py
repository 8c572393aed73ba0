"""Caches of one recipe become one: as if it had grown by them, or, refilled, as if it had been built at once."""

import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import CacheError, ManifestError, RecipeMismatch
from teacher_cache.format.basis import Basis
from teacher_cache.format.records import Quarantined, TeacherRecord
from teacher_cache.maintenance.merge import merge
from teacher_cache.recipe import cache_directory
from teacher_cache.testing import SMALL_SCHEMA, assert_same_record, build, make_recipe, make_record, tree
from teacher_cache.testing.made_up import make_basis
from teacher_cache.writer import create_cache, write_shard
from tests.support.limits import HANG

NAMES = ("a", "b", "c", "d", "e")
FORMATS = pytest.mark.parametrize("format", ["zarr", "webdataset"])


def config_of(format: str = "zarr", **storage: Any) -> CacheConfig:
    return CacheConfig(**({"format": format, "shapes_per_shard": 4, "name": "made"} | storage))  # type: ignore[arg-type]


def part(
    root: Path,
    indices: Iterable[int],
    config: CacheConfig,
    *,
    bad: Iterable[int] = (),
    names: tuple[str, ...] = NAMES,
    changed: dict[int, TeacherRecord] | None = None,
    basis: Basis | None = None,
) -> Path:
    """A cache of some of the made-up records, in a folder that is named as builds name it."""
    recipe = make_recipe(config)
    path = Path(cache_directory(dataclasses.replace(config, root=str(root)), recipe))
    writer = create_cache(path, recipe, SMALL_SCHEMA, config, label_names=names, basis=basis)
    wanted = list(indices)
    for shard, start in enumerate(range(0, len(wanted), config.shapes_per_shard)):
        chosen = wanted[start : start + config.shapes_per_shard]
        refused = [Quarantined(id=make_record(i).id, source=f"{i}.obj", reason="flat") for i in chosen if i in bad]
        records = [(changed or {}).get(i, make_record(i)) for i in chosen if i not in bad]
        write_shard(writer.handle, shard, records, refused)
    writer.finish(planned=len(wanted))
    return path


@FORMATS
def test_merging_is_growing(tmp_path: Path, format: str) -> None:
    """The merged cache is, to the byte, the first one grown by the shapes of the others; partial shards stay."""
    config = config_of(format)
    sources = [part(tmp_path / name, range(*span), config) for name, span in (("a", (0, 6)), ("b", (6, 13)))]
    found = merge(sources, tmp_path / "found")
    grown = tmp_path / "grown"
    for count in (6, 13):
        build(grown, config, count=count, label_names=NAMES)
    assert tree(found.path) == tree(grown)
    assert (found.records, found.shards, found.written) == (13, 4, 4)
    assert Path(found.path).name == sources[0].name
    cache = teacher_cache.open(found.path)
    assert cache.counts.tolist() == [4, 2, 4, 3]
    for i, record in enumerate(cache):
        assert_same_record(record, make_record(i), config)
    assert teacher_cache.verify(found.path) == []


@FORMATS
@pytest.mark.parametrize("storage", [{}, {"features": "int8", "steps": 24}, {"features": "float32", "depth": "none"}])
def test_refilled_is_built_at_once(tmp_path: Path, format: str, storage: dict[str, Any]) -> None:
    config = config_of(format, **storage)
    spans = {"a": (0, 6), "b": (6, 7), "c": (7, 14)}
    found = merge([part(tmp_path / name, range(*span), config) for name, span in spans.items()], tmp_path, refill=True)
    build(tmp_path / "whole", config, count=14, label_names=NAMES)
    assert tree(found.path) == tree(tmp_path / "whole")


def test_the_order_of_the_sources_is_the_order_of_the_shapes(tmp_path: Path) -> None:
    config = config_of()
    a, b = part(tmp_path / "a", range(5), config), part(tmp_path / "b", range(5, 9), config)
    once, again = merge([b, a], tmp_path / "once"), merge([b, a], tmp_path / "again", threads=1)
    assert tree(once.path) == tree(again.path)
    order = [*range(5, 9), *range(5)]
    assert teacher_cache.open(once.path).ids == [make_record(i).id for i in order]
    with pytest.raises(RecipeMismatch, match=r"(?s)shard 0 is committed with other shapes.*another order"):
        merge([a, b], tmp_path / "once")


def test_quarantine_planned_and_names_are_carried(tmp_path: Path) -> None:
    config = config_of()
    a = part(tmp_path / "a", range(6), config, bad=[1, 5], names=NAMES[:3])
    b = part(tmp_path / "b", range(6, 11), config, bad=[6, 7, 8, 9, 10])
    create_cache(b, make_recipe(config), SMALL_SCHEMA, config).finish(planned=9)  # four shapes are still to come
    found = teacher_cache.open(merge([a, b], tmp_path / "found").path)
    info = found.info()
    assert [int(item.id[-5:]) for item in info.quarantined] == [1, 5, 6, 7, 8, 9, 10]
    assert found.counts.tolist() == [3, 1, 0, 0]
    assert (info.planned, info.complete, info.label_names) == (15, False, NAMES)
    refilled = teacher_cache.open(merge([a, b], tmp_path / "refilled", refill=True).path)
    assert refilled.ids == found.ids
    assert refilled.info().quarantined == info.quarantined
    assert refilled.counts.tolist() == [3, 1, 0]


def test_names_of_labels_that_disagree_are_refused(tmp_path: Path) -> None:
    config = config_of()
    a = part(tmp_path / "a", range(4), config)
    b = part(tmp_path / "b", range(4, 8), config, names=("a", "x"))
    with pytest.raises(CacheError, match=r"label 1 is named 'x', in another source 'b'"):
        merge([a, b], tmp_path / "found")


def test_another_recipe_is_refused_with_the_settings_that_differ(tmp_path: Path) -> None:
    a = part(tmp_path / "a", range(4), config_of())
    b = part(tmp_path / "b", range(4, 8), config_of("webdataset", features="float32"))
    with pytest.raises(RecipeMismatch) as caught:
        merge([a, b], tmp_path / "found")
    said = str(caught.value)
    assert str(b) in said
    assert 'storage.features: "float16" here, "float32" there' in said
    assert 'storage.format: "zarr" here, "webdataset" there' in said
    assert "i2p cache convert" in said
    config = config_of()
    writer = create_cache(tmp_path / "c", make_recipe(config, seed=1), SMALL_SCHEMA, config)
    write_shard(writer.handle, 0, [make_record(9)])
    writer.finish()
    with pytest.raises(RecipeMismatch, match=r"(?s)corpus.seed: not set here, 1 there.*Only caches of the same recipe"):
        merge([a, tmp_path / "c"], tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_features_in_channels_of_their_own_need_one_basis(tmp_path: Path) -> None:
    """Each cache fits its basis on its own corpus, so equal recipes may mean different bases."""
    config = config_of(channels=6)
    one, two = make_basis(6), make_basis(6, seed=1)
    a, b = part(tmp_path / "a", range(4), config, basis=one), part(tmp_path / "b", range(4, 8), config, basis=two)
    with pytest.raises(RecipeMismatch, match=rf"basis: {one.sha256[:12]} of .* here, {two.sha256[:12]} of .* there"):
        merge([a, b], tmp_path / "found")
    c = part(tmp_path / "c", range(4, 8), config, basis=one)
    assert teacher_cache.open(merge([a, c], tmp_path / "found").path).basis == one


def test_shapes_in_two_sources_are_refused_or_skipped(tmp_path: Path) -> None:
    config = config_of()
    a = part(tmp_path / "a", range(6), config, bad=[5])
    b = part(tmp_path / "b", range(2, 12), config, bad=[5])
    with pytest.raises(CacheError, match=r"(?s)found 4 in several:.*made-up/00002' in .*b.*and in .*a.*--duplicates"):
        merge([a, b], tmp_path / "found")
    assert not (tmp_path / "found").exists()
    seen: list[tuple[int, int]] = []
    merged = merge([a, b], tmp_path / "found", duplicates="skip", on_progress=lambda *now: seen.append(now))
    assert seen[0] == (0, 5)
    assert seen[-1] == (5, 5), "one shard of copies to compare, four to write"
    found = teacher_cache.open(merged.path)
    assert found.ids == [make_record(i).id for i in range(12) if i != 5]
    assert (found.info().planned, found.complete) == (12, True)
    assert found.counts.tolist() == [4, 1, 4, 2]
    whole = merge([b, a], tmp_path / "b-first", duplicates="skip").path
    assert teacher_cache.open(whole).ids == [make_record(i).id for i in (2, 3, 4, 6, 7, 8, 9, 10, 11, 0, 1)]


@pytest.mark.parametrize("name", ["features", "points", "label", "depth", "lo"])
def test_copies_that_differ_in_one_number_are_never_skipped(tmp_path: Path, name: str) -> None:
    config = config_of(features="int8")
    record = make_record(3)
    value: Any = 4
    if name != "label":
        value = getattr(record, name).copy()
        value.flat[7 % value.size] += 0.1 if value.flat[7 % value.size] < 0.5 else -0.1
    a = part(tmp_path / "a", range(6), config)
    b = part(tmp_path / "b", range(3, 9), config, changed={3: dataclasses.replace(record, **{name: value})})
    with pytest.raises(CacheError, match=rf"'made-up/00003' differs between .*a.* and .*b.*: {name}\."):
        merge([a, b], tmp_path / "found", duplicates="skip")
    assert not (tmp_path / "found").exists()


def test_a_shape_that_only_one_source_could_use_is_refused(tmp_path: Path) -> None:
    config = config_of()
    a, b = part(tmp_path / "a", range(6), config, bad=[3]), part(tmp_path / "b", range(3, 9), config)
    for sources in ([a, b], [b, a]):
        with pytest.raises(
            CacheError, match=r"'made-up/00003' has a record in one of .* and is quarantined in the other"
        ):
            merge(sources, tmp_path / "found", duplicates="skip")


def posed(root: Path, shapes: Iterable[int], config: CacheConfig) -> Path:
    """A cache of three poses of each shape, two shapes a shard."""
    recipe = make_recipe(config, poses=3)
    path = Path(cache_directory(dataclasses.replace(config, root=str(root)), recipe))
    writer = create_cache(path, recipe, SMALL_SCHEMA, config)
    wanted = list(shapes)
    for shard, start in enumerate(range(0, len(wanted), 2)):
        records = [
            dataclasses.replace(make_record(3 * shape + pose), id=f"s{shape}" + (f"@pose{pose}" if pose else ""))
            for shape in wanted[start : start + 2]
            for pose in range(3)
        ]
        write_shard(writer.handle, shard, records)
    writer.finish(planned=3 * len(wanted))
    return path


@pytest.mark.parametrize("refill", [False, True])
def test_poses_of_a_shape_stay_in_one_shard(tmp_path: Path, refill: bool) -> None:
    config = config_of(shapes_per_shard=7)
    sources = [posed(tmp_path / "a", range(3), config), posed(tmp_path / "b", [2, 5, 3, 4, 6], config)]
    found = teacher_cache.open(merge(sources, tmp_path / "found", duplicates="skip", refill=refill).path)
    assert found.counts.tolist() == ([6, 6, 6, 3] if refill else [6, 3, 3, 6, 3])
    assert found.poses == 3
    assert found.ids[::3] == [f"s{shape}" for shape in (0, 1, 2, 5, 3, 4, 6)]
    assert (found.info().planned, found.complete) == (21, True)
    at = 0
    for shape in (0, 1, 2, 5, 3, 4, 6):
        for pose in range(3):
            np.testing.assert_array_equal(found[at].points, make_record(3 * shape + pose).points)
            at += 1


def test_a_third_source_is_added_later(tmp_path: Path) -> None:
    config = config_of()
    a, b, c = (part(tmp_path / n, range(4 * i, 4 * i + 4), config) for i, n in enumerate("abc"))
    merge([a, b], tmp_path / "found")
    more = merge([a, b, c], tmp_path / "found")
    assert (more.written, more.records) == (1, 12)
    assert tree(more.path) == tree(merge([a, b, c], tmp_path / "once").path)
    with pytest.raises(RecipeMismatch, match=r"1 of its 3 shards \(first 2\) do not come from these sources"):
        merge([a, b], tmp_path / "found")


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    config = config_of()
    a, b = part(tmp_path / "a", range(4), config), part(tmp_path / "b", range(4, 8), config)
    with pytest.raises(CacheError, match="would replace a source"):
        merge([a, b], tmp_path / "b")
    with pytest.raises(CacheError, match="found 4 in several"):
        merge([a, a], tmp_path / "found")
    with pytest.raises(ValueError, match="1 sources; expected two or more"):
        merge([a], tmp_path / "found")
    with pytest.raises(ValueError, match="duplicates = 'keep'"):
        merge([a, b], tmp_path / "found", duplicates="keep")  # type: ignore[arg-type]
    (b / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="has not finished"):
        merge([a, b], tmp_path / "found")


def test_damage_in_a_source_is_named_with_its_cache(tmp_path: Path) -> None:
    config = config_of()
    a, b = part(tmp_path / "a", range(4), config), part(tmp_path / "b", range(4, 8), config)
    victim = b / "saliency/c.0.0.0"
    data = bytearray(victim.read_bytes())
    data[10] ^= 1
    victim.write_bytes(data)
    with pytest.raises(CacheError, match=rf"{b}: shard 0, saliency/c.0.0.0: its bytes differ from those committed"):
        merge([a, b], tmp_path / "found")


def merge_and_die(sources: list[str], root: str, die_at: int, counted: Any) -> None:
    """Merge, and SIGKILL this process just before step ``die_at`` of what it does to files."""
    steps = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in {"os.rename", "os.remove", "os.mkdir", "fcntl.flock", "shutil.rmtree"}:
            if steps == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    sys.addaudithook(hook)
    merge(sources, root, duplicates="skip", threads=1)  # one: the same steps every time
    counted.value = steps


def test_killed_anywhere_a_rerun_completes(tmp_path: Path) -> None:
    config = config_of("webdataset")
    sources = [str(part(tmp_path / n, range(*span), config)) for n, span in (("a", (0, 6)), ("b", (4, 13)))]
    expected = tree(merge(sources, tmp_path / "expected", duplicates="skip").path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.testing"])
    counted = context.Value("i", 0)

    def run(root: Path, die_at: int) -> int | None:
        process = context.Process(target=merge_and_die, args=(sources, str(root), die_at, counted))
        process.start()
        process.join(HANG)
        return process.exitcode

    assert run(tmp_path / "whole", -1) == 0
    total, unfinished = counted.value, 0
    assert total > 30, "the steps are being counted"
    for die_at in range(0, total, 5):
        root = tmp_path / f"killed-{die_at}"
        assert run(root, die_at) == -signal.SIGKILL
        unfinished += not list(root.glob("*/manifest.json"))
        assert tree(merge(sources, root, duplicates="skip").path) == expected, f"killed before step {die_at}"
    assert unfinished > 3
