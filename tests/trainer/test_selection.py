"""Training on some shapes of a cache: as on a cache of these alone, exactly gone on with, and never with others."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import teacher_cache
from tests.support.models import TINY
from tests.support.training import train, trainer_config, training_cache
from tests.trainer.test_mid_epoch import ALONE, Stop, files, lines, stop_after
from trainer.checkpoints import files as checkpoint
from trainer.config import AlignmentConfig
from trainer.errors import CheckpointError, DataError
from trainer.pretraining.data import Loader

ODD = [0, 1, 2, 3, 5, 8, 9, 12, 13, 14, 17, 20, 22]  # 13 of 24 records in three shards: 5, 5 and 3
SMALL = {"batch_size": 4, "epochs": 3, "checkpoint_steps": 2}


def some(cache: Any, records: Any = ODD) -> teacher_cache.Selection:
    return teacher_cache.select(cache, [cache.ids[record] for record in records])


def test_the_first_shapes_of_a_grown_cache_train_like_the_cache_before(tmp_path: Path) -> None:
    """To the byte, the global loss' mean and the checkpoint's header included; so a run goes on over the growth."""
    settings: dict[str, Any] = {"alignment": AlignmentConfig(weight=1.0)}
    small = training_cache(tmp_path / "cache", 16, class_token="float16")
    alone = train(small, tmp_path / "alone", **settings)
    train(small, tmp_path / "grown", **settings, epochs=1)
    first = teacher_cache.first(training_cache(tmp_path / "cache", 40, class_token="float16"), 16)
    assert len(first.cache) == 40
    within = train(first, tmp_path / "within", **settings)
    assert files(within.checkpoint) == files(alone.checkpoint)
    assert "shapes" not in json.loads((tmp_path / "within" / "metrics.json").read_text())
    gone_on = train(first, tmp_path / "grown", **settings)
    assert gone_on.resumed_from == 1
    assert files(gone_on.checkpoint) == files(alone.checkpoint)


@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_run_on_a_selection_that_stopped_ends_like_one_in_one_go(cache: Any, tmp_path: Path, step: int) -> None:
    """Three steps of four and one shape left over, a checkpoint every two steps; the cache grows in between."""
    small = training_cache(tmp_path / "cache", 24)
    whole = train(some(cache), tmp_path / "whole", **SMALL)
    assert whole.steps == 9
    with pytest.raises(Stop):
        train(some(small), tmp_path / "pieces", **SMALL, on_event=stop_after(step))
    grown = training_cache(tmp_path / "cache", 40)
    pieces = train(some(grown), tmp_path / "pieces", **SMALL)
    assert files(pieces.checkpoint) == files(whole.checkpoint)
    kept = [lines(tmp_path / name, "step", "epoch") for name in ("whole", "pieces")]
    assert kept[0] == kept[1]


def test_a_run_says_which_shapes_it_saw_and_does_not_go_on_with_others(cache: Any, tmp_path: Path) -> None:
    chosen = some(cache)
    report = train(chosen, tmp_path / "run", **SMALL | {"epochs": 1})
    assert checkpoint.read_header(report.checkpoint).cache == {
        "recipe": cache.recipe.hash, "records": 13, "shapes": chosen.digest,
    }  # fmt: skip
    assert lines(tmp_path / "run", "start")[0]["shapes"] == chosen.digest
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["records"], metrics["shapes"]) == (13, chosen.digest)
    for others, said in (
        (some(cache, [*ODD[:-1], 23]), r"cache\.shapes was '\w+', is now '\w+'"),
        (some(cache, ODD[:-1]), r"cache\.records was 13, is now 12"),
        (teacher_cache.first(cache, 13), r"cache\.shapes was '\w+', is now"),
        (cache, r"cache\.records was 13, is now 24"),
    ):
        with pytest.raises(CheckpointError, match=said):
            train(others, tmp_path / "run", **SMALL)
    whole = train(cache, tmp_path / "whole", epochs=1)
    assert checkpoint.read_header(whole.checkpoint).cache == {"recipe": cache.recipe.hash, "records": 24}
    with pytest.raises(CheckpointError, match=r"cache\.shapes was .*, is now '\w+'"):
        train(some(cache, range(24)), tmp_path / "whole")


@pytest.mark.parametrize(("size", "readers", "accumulation"), [(2, 0, 1), (4, 3, 1), (2, 1, 2)])
def test_ranks_readers_and_parts_see_the_same_batches(cache: Any, size: int, readers: int, accumulation: int) -> None:
    chosen = some(cache)
    whole = list(Loader(chosen, TINY, trainer_config(batch_size=4, readers=2), ALONE).epoch(4))
    assert len(whole) == 3
    seen = [id for (part,) in whole for id in part.ids]
    assert len(set(seen)) == 12
    assert set(seen) <= set(chosen.ids)
    config = trainer_config(batch_size=4, readers=readers, accumulation=accumulation)
    ranks = [dataclasses.replace(ALONE, rank=rank, size=size) for rank in range(size)]
    shares = [list(Loader(chosen, TINY, config, one).epoch(4, 1)) for one in ranks]
    for step, (one,) in enumerate(whole[1:]):
        parts = [part for share in shares for part in share[step]]
        assert [id for part in parts for id in part.ids] == one.ids
        assert torch.equal(torch.cat([part.points for part in parts]), one.points)
        assert torch.equal(torch.cat([part.draws.mask for part in parts]), one.draws.mask)


def test_too_few_shapes_for_a_batch_are_refused(cache: Any) -> None:
    with pytest.raises(DataError, match=r"has 3 shapes, fewer than trainer.batch_size = 8"):
        Loader(some(cache, [1, 2, 3]), TINY, trainer_config(), ALONE)
