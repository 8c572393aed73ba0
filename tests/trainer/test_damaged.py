"""Damaged records while training: an error that names them, or others in their place, counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teacher_cache
from teacher_cache.errors import ShardDamaged
from teacher_cache.format import paths
from tests.support.models import TINY
from tests.support.training import train, trainer_config, training_cache, weights_of
from trainer.engine.events import EpochDone
from trainer.engine.ranks import Ranks
from trainer.errors import DataError
from trainer.pretraining.data import Loader

SHARDS = 3  # of 8 records each


@pytest.fixture(params=["zarr", "webdataset"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> teacher_cache.Cache:
    """A cache whose middle shard is lost, and in whose last shard one record has a flipped bit."""
    cache = training_cache(tmp_path / "cache", 8 * SHARDS, format=request.param)
    storage = cache._manifest.description.storage
    (cache.path / paths.shard_paths(storage, 1)[0]).unlink()
    path = cache.path / paths.shard_paths(storage, 2)[0]
    data = bytearray(path.read_bytes())
    data[2000] ^= 16  # in a record's points: past the index, the headers and the JSON
    path.write_bytes(data)
    return teacher_cache.open(cache.path)


def unreadable(cache: teacher_cache.Cache) -> set[int]:
    found = set()
    for record in range(len(cache)):
        try:
            cache.read([record])
        except ShardDamaged:
            found.add(record)
    return found


def batches(cache: teacher_cache.Cache, *, rank: int = 0, size: int = 1, **settings: Any) -> list[list[Any]]:
    ranks = Ranks(rank=rank, size=size, device=torch.device("cpu"))
    loader = Loader(cache, TINY, trainer_config(damaged="skip", **settings), ranks)
    return list(loader.epoch(1))


def test_raise_names_shard_file_and_remedy(damaged: teacher_cache.Cache, tmp_path: Path) -> None:
    with pytest.raises(ShardDamaged, match=r"(?s)shard \d, .*i2p cache repair"):
        train(damaged, tmp_path / "run")


def test_skip_puts_the_next_sound_record_of_the_order_in_its_place(damaged: teacher_cache.Cache) -> None:
    bad = unreadable(damaged)
    assert bad >= set(range(8, 16))
    assert len(bad) == 9
    config = trainer_config()
    order = teacher_cache.epoch_order(damaged.counts, seed=config.seed, epoch=1, window=config.shuffle_window)
    found = batches(damaged)
    seen = np.concatenate([parts[0].records for parts in found])
    for place, record in enumerate(seen):
        expected = next(int(r) for r in np.roll(order, -place) if int(r) not in bad)
        assert record == expected
    assert sum(parts[0].skipped for parts in found) == len(bad)
    assert all(len(parts[0].ids) == config.batch_size for parts in found)
    for parts in found:
        assert parts[0].ids == damaged.read(parts[0].records.tolist()).ids


def test_neither_readers_nor_ranks_change_what_stands_in(damaged: teacher_cache.Cache) -> None:
    whole = [parts[0].records.tolist() for parts in batches(damaged, readers=0)]
    assert [parts[0].records.tolist() for parts in batches(damaged, readers=3, prefetch=3)] == whole
    shares = [batches(damaged, rank=rank, size=2) for rank in range(2)]
    assert [a[0].records.tolist() + b[0].records.tolist() for a, b in zip(*shares, strict=True)] == whole


def test_training_goes_on_and_counts(damaged: teacher_cache.Cache, tmp_path: Path) -> None:
    events: list[Any] = []
    report = train(damaged, tmp_path / "a", damaged="skip", on_event=events.append)
    assert [event.skipped for event in events if isinstance(event, EpochDone)] == [9, 9]
    assert report.metrics["skipped"] == 9
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["skipped"] == 9
    assert np.isfinite([report.metrics["loss_3d"], report.metrics["loss_2d"]]).all()
    log = [json.loads(line) for line in (tmp_path / "a" / "train.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in log if line["event"] == "epoch"] == [9, 9]
    again = train(damaged, tmp_path / "b", damaged="skip", readers=3)
    assert weights_of(again) == weights_of(report)


def test_the_count_survives_a_stop_within_an_epoch(damaged: teacher_cache.Cache, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: Any) -> None:
        if event.step == 2:
            raise Stop

    settings = {"damaged": "skip", "checkpoint_steps": 1, "epochs": 1, "schedule_epochs": 4}
    with pytest.raises(Stop):
        train(damaged, tmp_path, on_event=stop, **settings)
    assert train(damaged, tmp_path, **settings).metrics["skipped"] == 9


def test_sound_caches_train_alike_under_both_policies(cache: Any, tmp_path: Path) -> None:
    kept = train(cache, tmp_path / "raise")
    skip = train(cache, tmp_path / "skip", damaged="skip")
    assert weights_of(kept) == weights_of(skip)
    assert skip.metrics["skipped"] == 0


def test_nothing_but_damage_is_an_error(damaged: teacher_cache.Cache) -> None:
    storage = damaged._manifest.description.storage
    for shard in (0, 2):
        (damaged.path / paths.shard_paths(storage, shard)[0]).unlink()
    with pytest.raises(DataError, match="every record of the cache is damaged"):
        batches(teacher_cache.open(damaged.path))
