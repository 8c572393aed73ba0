"""Training on a cache of several poses: an epoch visits each shape once, in one of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teacher_cache
from teacher_cache.errors import ManifestError
from teacher_cache.recipe import Recipe
from tests.support.models import TINY
from tests.support.training import SCHEMA, train, trainer_config, training_cache, weights_of
from trainer.engine.augmentation import choose_poses
from trainer.engine.ranks import Ranks
from trainer.errors import DataError
from trainer.pretraining.data import Loader, Part

SHAPES, POSES = 24, 3
STORED = {"points": 0, "resample": False, "renormalise": False, "scale": (1.0, 1.0), "shift": 0.0}


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def posed(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return posed_cache(tmp_path_factory.mktemp("posed") / "cache", format=request.param)


def posed_cache(directory: Path, poses: int = POSES, count: int = SHAPES * POSES, **settings: Any) -> Any:
    """Clouds of which each `poses` in a row are told to be poses of one shape, six records a shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.caches.make_recipe", lambda config: _recipe(config, poses))
        return training_cache(directory, count, **{"shapes_per_shard": 6, **settings})


def _recipe(config: Any, poses: int) -> Recipe:
    return Recipe(corpus={"kind": "made-up", "poses": poses}, projection={}, teacher={}, storage=config.storage())


def parts(cache: Any, epoch: int = 0, *, rank: int = 0, size: int = 1, **settings: Any) -> list[Part]:
    loader = Loader(cache, TINY, trainer_config(**settings), Ranks(rank=rank, size=size, device=torch.device("cpu")))
    return [part for step in loader.epoch(epoch) for part in step]


def visited(cache: Any, epoch: int, **settings: Any) -> np.ndarray:
    return np.concatenate([part.records for part in parts(cache, epoch, **settings)])


def test_an_epoch_visits_each_shape_once_and_its_poses_change(posed: Any) -> None:
    poses_of: dict[int, set[int]] = {}
    for epoch in range(12):
        records = visited(posed, epoch)
        assert sorted(records // POSES) == list(range(SHAPES))
        for record in records.tolist():
            poses_of.setdefault(record // POSES, set()).add(record % POSES)
    assert sum(len(seen) == POSES for seen in poses_of.values()) > SHAPES - 4
    assert not np.array_equal(visited(posed, 0), visited(posed, 0, seed=1))


def test_seed_and_epoch_each_reach_the_choice_of_poses(posed: Any) -> None:
    """Of 3^24 choices, two alike are no chance."""
    chosen = {
        (seed, epoch): tuple(sorted(visited(posed, epoch, seed=seed).tolist())) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(set(chosen.values())) == 4


def test_the_number_of_steps_does_not_change_with_the_poses(posed: Any, cache: Any) -> None:
    assert len(parts(posed)) == len(parts(cache)) == 3
    with pytest.raises(DataError, match=r"the cache has 24 shapes, fewer than trainer\.batch_size = 32"):
        parts(posed, batch_size=32)


def test_the_order_depends_neither_on_ranks_nor_on_readers(posed: Any) -> None:
    whole = parts(posed, 5)
    shares = [parts(posed, 5, rank=rank, size=2, readers=2 * rank) for rank in range(2)]
    for step, one in enumerate(whole):
        assert [id for share in shares for id in share[step].ids] == one.ids


def test_the_student_sees_the_stored_pose_and_its_own_maps(posed: Any) -> None:
    part = parts(posed, **STORED)[0]
    stored = posed.read(part.records)
    assert (part.records % POSES).any()
    assert np.array_equal(part.points.numpy(), stored.points)
    assert torch.equal(part.points, part.points_canonical)
    assert part.maps is not None
    assert np.array_equal(part.maps.features.numpy(), stored.features)
    assert np.array_equal(part.maps.geometry.lo.numpy(), stored.lo)


def test_scale_and_shift_are_applied_on_top_where_they_are_set(posed: Any) -> None:
    part = parts(posed, **{**STORED, "scale": (0.5, 2.0), "shift": 0.3})[0]
    assert np.array_equal(part.points_canonical.numpy(), posed.read(part.records).points)
    assert not torch.allclose(part.points, part.points_canonical)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(posed: Any, tmp_path: Path) -> None:
    whole = train(posed, tmp_path / "whole", epochs=3)
    train(posed, tmp_path / "stopped", epochs=1)
    resumed = train(posed, tmp_path / "stopped", epochs=3)
    assert resumed.resumed_from == 1
    assert whole.steps == resumed.steps == 9
    assert weights_of(whole) == weights_of(resumed)


def test_poses_are_drawn_evenly_for_the_shape_alone() -> None:
    drawn = choose_poses(np.arange(4000), 5, seed=2, epoch=7)
    assert drawn.dtype == np.int64
    assert np.bincount(drawn, minlength=5).min() > 700
    assert len(np.bincount(drawn)) == 5
    assert np.array_equal(choose_poses(np.array([31, 5]), 5, seed=2, epoch=7), drawn[[31, 5]])


@pytest.mark.parametrize(
    ("poses", "text"),
    [
        (0, "poses = 0 is not an integer in 1..64"),
        (4, "shard 0 has 6 records, not a multiple of the 4 poses per shape"),
    ],
)
def test_a_number_of_poses_that_cannot_be_is_refused(tmp_path: Path, poses: Any, text: str) -> None:
    cache = posed_cache(tmp_path / "cache", poses=poses, count=12)
    assert len(teacher_cache.open(cache.path)) == 12
    with pytest.raises(ManifestError, match=text):
        Loader(cache, TINY, trainer_config(), Ranks(rank=0, size=1, device=torch.device("cpu")))
    assert cache.schema == SCHEMA
