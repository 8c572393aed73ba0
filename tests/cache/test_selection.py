"""A selection of a cache reads and streams as a cache that holds no other shapes."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.format import paths
from teacher_cache.testing import build, make_record
from tests.cache.test_stream import shared

COUNT = 29  # records: shards of 4, the last of one
FORMATS = ("zarr", "webdataset")


@pytest.fixture(scope="module", params=FORMATS)
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> teacher_cache.Cache:
    folder = tmp_path_factory.mktemp(request.param) / "cache"
    build(folder, CacheConfig(format=request.param, shapes_per_shard=4, class_token="float16"), count=COUNT)
    return teacher_cache.open(folder)


def some(cache: teacher_cache.Cache, records: Any) -> teacher_cache.Selection:
    return teacher_cache.select(cache, [cache.ids[record] for record in records])


def test_it_reads_like_a_cache_of_these_shapes(cache: teacher_cache.Cache) -> None:
    chosen = some(cache, [28, 3, 9, 9, 8])
    assert (len(chosen), chosen.records.tolist(), chosen.counts.tolist()) == (4, [3, 8, 9, 28], [1, 2, 1])
    assert chosen.ids == [cache.ids[record] for record in (3, 8, 9, 28)]
    assert chosen.labels.tolist() == cache.labels[[3, 8, 9, 28]].tolist()
    assert [record.id for record in chosen] == chosen.ids
    np.testing.assert_array_equal(chosen.read([2, 0]).features, cache.read([9, 3]).features)
    np.testing.assert_array_equal(chosen.class_tokens([-1]), cache.class_tokens([28]))
    assert chosen.read([1], depth=True).depth is not None
    with pytest.raises(IndexError, match="record 4 does not exist; the number of records is 4"):
        chosen.read([4])
    again = pickle.loads(pickle.dumps(chosen))  # noqa: S301
    assert (again.ids, again.digest) == (chosen.ids, chosen.digest)


def test_its_digest_says_which_records_these_are(cache: teacher_cache.Cache) -> None:
    digests = [some(cache, records).digest for records in ([0, 1], [1, 0], [0, 2], [0, 4], [0], range(COUNT))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5
    assert teacher_cache.first(cache, 2).digest is None


def test_what_is_not_there_is_refused(cache: teacher_cache.Cache) -> None:
    with pytest.raises(ValueError, match=r"select: 2 of 3 shapes are not in .*: 'none', 'other'"):
        teacher_cache.select(cache, ["none", "other", cache.ids[0]])
    with pytest.raises(ValueError, match="expected at least one shape id"):
        teacher_cache.select(cache, [])
    for wrong in (0, COUNT + 1):
        with pytest.raises(ValueError, match=rf"first: records = {wrong}; expected a multiple of 1 in 1\.\.29"):
            teacher_cache.first(cache, wrong)


def test_growth_leaves_a_selection_as_it_is(tmp_path: Path) -> None:
    """Its numbers, its digest and its epochs; and the first records are what the whole cache was."""
    config = CacheConfig(shapes_per_shard=4)
    build(tmp_path / "cache", config, count=10)
    small = teacher_cache.open(tmp_path / "cache")
    before, whole = some(small, [1, 4, 9]), list(teacher_cache.stream(small, batch_size=3, seed=2, readers=0))
    build(tmp_path / "cache", config, count=23)
    grown = teacher_cache.open(tmp_path / "cache")
    after = some(grown, [1, 4, 9])
    assert (after.digest, after.counts.tolist()) == (before.digest, before.counts.tolist())
    first = teacher_cache.first(grown, 10)
    assert first.counts.tolist() == small.counts.tolist()
    again = list(teacher_cache.stream(first, batch_size=3, seed=2, readers=0))
    assert [batch.state for batch in again] == [batch.state for batch in whole]  # so a stream of then goes on
    assert [batch.content.ids for batch in again] == [batch.content.ids for batch in whole]
    assert teacher_cache.first(grown, 6).counts.tolist() == [4, 2]


@given(
    st.sets(st.integers(0, COUNT - 1), min_size=1), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from(["drop", "pad"]), st.integers(1, 9), st.integers(0, 40),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_an_epoch_is_the_selected_shapes_however_it_is_shared(
    cache: teacher_cache.Cache, chosen: set[int], share: int, ranks: int, workers: int, remainder: str, window: int,
    at: int,
) -> None:  # fmt: skip
    selection, batch = some(cache, chosen), share * ranks
    if remainder == "drop" and len(chosen) < batch:
        return
    options: dict[str, Any] = {"batch_size": batch, "seed": 5, "epoch": 2, "window": window, "remainder": remainder}
    alone = list(teacher_cache.stream(selection, readers=0, **options))
    seen = np.concatenate([part.records for part in alone])
    fresh = np.concatenate([part.records[~part.padded] for part in alone])
    read = [id for part in alone for id, padded in zip(part.content.ids, part.padded, strict=True) if not padded]
    assert len(set(read)) == len(read) == len(chosen) - (len(chosen) % batch if remainder == "drop" else 0)
    assert set(read) <= {cache.ids[record] for record in chosen}
    assert read == [cache.ids[record] for record in selection.stored(fresh)]
    together = shared(selection, ranks=ranks, workers=workers, readers=1, **options)
    assert np.concatenate(together).tolist() == seen.tolist()
    stopped = alone[at % len(alone)]
    rest = shared(selection, ranks=1, workers=workers, **json.loads(json.dumps(stopped.state)))
    assert [records.tolist() for records in rest] == [part.records.tolist() for part in alone[stopped.step + 1 :]]


def test_an_epoch_of_some_equals_the_whole_filtered_by_id(cache: teacher_cache.Cache) -> None:
    chosen = [0, 5, 6, 7, 11, 17, 28]
    ids = {cache.ids[record] for record in chosen}
    whole = [id for batch in teacher_cache.stream(cache, batch_size=1) for id in batch.content.ids]
    part = [id for batch in teacher_cache.stream(some(cache, chosen), batch_size=1) for id in batch.content.ids]
    assert sorted(part) == sorted(id for id in whole if id in ids)


def test_a_state_of_another_selection_is_refused(cache: teacher_cache.Cache) -> None:
    one, other = some(cache, [0, 1, 8]), some(cache, [0, 2, 9])  # as many records in as many shards
    state = next(teacher_cache.stream(one, batch_size=1, readers=0)).state
    assert len(list(teacher_cache.stream(one, **state))) == 2
    for wrong in (other, cache):
        with pytest.raises(ValueError, match="in another order"):
            teacher_cache.stream(wrong, **state)


def test_shards_without_a_selected_record_are_not_opened_and_no_other_record_is_decoded(
    cache: teacher_cache.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    decoded: list[tuple[int, int]] = []
    open_shard: Callable[..., Any] = paths.open_shard

    def noted(files: Any, description: Any, shard: int, records: int) -> Any:
        opened.append(shard)
        reader = open_shard(files, description, shard, records)
        read_into = reader.read_into

        def reading(batch: Any, row: int, position: int) -> Any:
            decoded.append((shard, position))
            return read_into(batch, row, position)

        monkeypatch.setattr(reader, "read_into", reading, raising=True)
        return reader

    monkeypatch.setattr(paths, "open_shard", noted)
    fresh = teacher_cache.open(cache.path)
    batches = list(teacher_cache.stream(some(fresh, [5, 7, 20]), batch_size=3))
    assert sorted(id for batch in batches for id in batch.content.ids) == sorted(cache.ids[k] for k in (5, 7, 20))
    assert sorted(opened) == [1, 5]
    assert sorted(decoded) == [(1, 1), (1, 3), (5, 0)]


def test_damage_is_skipped_within_the_selection(tmp_path: Path) -> None:
    config = CacheConfig(shapes_per_shard=4, depth="none")
    build(tmp_path / "cache", config, count=12)
    victim = tmp_path / "cache" / "features" / "c.1.0.0.0"
    data = bytearray(victim.read_bytes())
    data[10] ^= 1  # in the first record of shard 1
    victim.write_bytes(data)
    cache = teacher_cache.open(tmp_path / "cache")
    chosen = some(cache, [0, 4, 9])
    batches = list(teacher_cache.stream(chosen, batch_size=3, damaged="skip"))
    assert set(batches[0].content.ids) == {cache.ids[0], cache.ids[9]}
    assert batches[0].stand_ins.sum() == 1


def test_every_pose_of_a_shape_is_selected(tmp_path: Path) -> None:
    """A recipe of two poses: records 2 s and 2 s + 1 are shape s."""
    from dataclasses import replace

    from teacher_cache.testing.made_up import SMALL_SCHEMA, make_recipe

    config = CacheConfig(shapes_per_shard=4, depth="none")
    recipe = make_recipe(config)
    recipe = replace(recipe, corpus={**recipe.corpus, "poses": 2})
    writer = teacher_cache.create_cache(tmp_path / "cache", recipe, SMALL_SCHEMA, config, label_names=list("abcde"))
    for shard in range(3):
        records = [
            replace(make_record(4 * shard + k, SMALL_SCHEMA), id=f"s{2 * shard + k // 2}" + ("@pose1" if k % 2 else ""))
            for k in range(4)
        ]
        teacher_cache.write_shard(writer.handle, shard, records)
    writer.finish()
    chosen = teacher_cache.select(teacher_cache.open(tmp_path / "cache"), ["s0", "s3"])
    assert chosen.ids == ["s0", "s0@pose1", "s3", "s3@pose1"]
    assert (chosen.records.tolist(), chosen.counts.tolist(), chosen.poses) == ([0, 1, 6, 7], [2, 2], 2)
    with pytest.raises(ValueError, match="a multiple of 2"):
        teacher_cache.first(chosen.cache, 3)
