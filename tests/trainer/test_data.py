"""Which shapes a batch holds and how the student sees them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teacher_cache
from cuda.token_maps import TokenMaps
from tests.support.models import TINY
from tests.support.training import trainer_config, training_cache
from trainer.engine.augmentation import choose_points, renormalised, scale_and_shift
from trainer.engine.ranks import Ranks
from trainer.errors import DataError
from trainer.pretraining.data import Loader, Part


def _ranks(rank: int = 0, size: int = 1) -> Ranks:
    return Ranks(rank=rank, size=size, device=torch.device("cpu"))


def _parts(cache: Any, *, epoch: int = 0, rank: int = 0, size: int = 1, **settings: Any) -> list[list[Part]]:
    return list(Loader(cache, TINY, trainer_config(**settings), _ranks(rank, size)).epoch(epoch))


def _equal(a: Part, b: Part) -> bool:
    assert a.maps is not None
    assert b.maps is not None
    tensors = zip(
        (a.points, a.points_canonical, *a.draws, a.maps.features, a.maps.saliency, *a.maps.geometry),
        (b.points, b.points_canonical, *b.draws, b.maps.features, b.maps.saliency, *b.maps.geometry),
        strict=True,
    )
    return a.ids == b.ids and all(torch.equal(x, y) for x, y in tensors)


def test_without_augmentation_the_student_sees_the_stored_cloud_exactly(cache: Any) -> None:
    part = _parts(cache, points=0, resample=False, scale=(1.0, 1.0), shift=0.0)[0][0]
    stored = cache.read(part.records)
    assert part.ids == stored.ids
    assert torch.equal(part.points, part.points_canonical)
    assert np.array_equal(part.points.numpy(), stored.points)
    assert isinstance(part.maps, TokenMaps)
    assert np.array_equal(part.maps.features.numpy(), stored.features)
    assert np.array_equal(part.maps.geometry.offset.numpy(), stored.offset)


def test_the_canonical_point_travels_with_the_students(cache: Any) -> None:
    part = _parts(cache, points=96)[0][0]
    stored = cache.read(part.records).points
    for cloud, student, canonical in zip(stored, part.points.numpy(), part.points_canonical.numpy(), strict=True):
        rows = {row.tobytes() for row in cloud}
        assert len({row.tobytes() for row in canonical}) == 96  # drawn without replacement
        assert all(row.tobytes() in rows for row in canonical)
        # scale and shift per axis: student = canonical * a + b with one a and b an axis
        for axis in range(3):
            (slope, offset), residual, *_ = np.polyfit(canonical[:, axis], student[:, axis], 1, full=True)
            assert residual.sum() < 1e-8
            assert slope > 0.6
            assert abs(offset) < 0.5


def test_batches_hold_every_record_at_most_once_and_other_ones_next_epoch(cache: Any) -> None:
    batches = [np.concatenate([part.records for part in parts]) for parts in _parts(cache, batch_size=10)]
    assert [len(batch) for batch in batches] == [10, 10]  # 24 records: 4 are left out of this epoch
    assert len(np.unique(np.concatenate(batches))) == 20
    again = [np.concatenate([part.records for part in parts]) for parts in _parts(cache, batch_size=10, epoch=1)]
    assert not np.array_equal(np.concatenate(batches), np.concatenate(again))


@pytest.mark.parametrize("split", [{"size": 2}, {"size": 4}, {"size": 2, "accumulation": 2}, {"accumulation": 4}])
def test_a_batch_is_the_same_shapes_seen_the_same_way_however_it_is_split(cache: Any, split: dict[str, int]) -> None:
    size, accumulation = split.get("size", 1), split.get("accumulation", 1)
    whole = _parts(cache, epoch=3)
    shares = [_parts(cache, epoch=3, rank=r, size=size, accumulation=accumulation) for r in range(size)]
    for step, (one,) in enumerate(whole):
        parts = [part for share in shares for part in share[step]]
        assert len(parts) == size * accumulation
        assert [id for part in parts for id in part.ids] == one.ids
        assert torch.equal(torch.cat([part.points for part in parts]), one.points)
        assert torch.equal(torch.cat([part.draws.drop_path for part in parts]), one.draws.drop_path)
        assert torch.equal(torch.cat([part.draws.mask for part in parts]), one.draws.mask)


def test_reader_threads_change_nothing(cache: Any) -> None:
    reference = _parts(cache, readers=0)
    for settings in ({"readers": 1, "prefetch": 1}, {"readers": 3, "prefetch": 5}):
        found = _parts(cache, **settings)
        assert all(_equal(a, b) for x, y in zip(reference, found, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("window", [1, 2])
def test_batches_are_those_of_the_public_stream(cache: Any, window: int) -> None:
    found = _parts(cache, epoch=2, batch_size=10, shuffle_window=window)
    stream = teacher_cache.stream(cache, batch_size=10, seed=trainer_config().seed, epoch=2, window=window)
    for (part,), batch in zip(found, stream, strict=True):
        assert part.records.tolist() == batch.records.tolist()
        assert part.ids == batch.content.ids
        assert part.maps is not None
        assert np.array_equal(part.maps.features.numpy(), batch.content.features)


def test_accumulated_parts_of_a_batch_with_damage_count_what_stands_in(tmp_path: Path) -> None:
    sound = training_cache(tmp_path, 24)
    (tmp_path / "saliency" / "c.1.0.0").unlink()
    cache = teacher_cache.open(tmp_path)
    ((whole,),) = _parts(cache, batch_size=24, damaged="skip")
    (pieces,) = _parts(cache, batch_size=24, damaged="skip", accumulation=4)
    assert np.concatenate([piece.records for piece in pieces]).tolist() == whole.records.tolist()
    assert whole.skipped == sum(piece.skipped for piece in pieces) == 8
    assert [piece.skipped for piece in pieces] != [2, 2, 2, 2]  # each counts its own
    for piece in pieces:
        assert piece.maps is not None
        assert np.array_equal(piece.maps.saliency.numpy(), sound.read(piece.records).saliency)


def test_epochs_and_seeds_see_a_shape_differently(cache: Any) -> None:
    def seen(**settings: Any) -> dict[str, np.ndarray]:
        return {
            id: cloud
            for parts in _parts(cache, **settings)
            for part in parts
            for id, cloud in zip(part.ids, part.points.numpy(), strict=True)
        }

    first, second, seeded = seen(), seen(epoch=1), seen(seed=1)
    assert all(not np.array_equal(first[id], second[id]) for id in first)
    assert all(not np.array_equal(first[id], seeded[id]) for id in first)


def test_a_live_teacher_needs_no_maps(cache: Any) -> None:
    loader = Loader(cache, TINY, trainer_config(), _ranks(), live_teacher=True)
    assert next(loader.epoch(0))[0].maps is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 32}, "the cache has 24 shapes, fewer than trainer.batch_size = 32"),
        ({"points": 2048}, "trainer.points = 2048 is more than the 128 points stored for each shape"),
        ({"points": 40}, r"40 points of each shape, and model.groups = \(48, 24, 8\) .* needs at least 48"),
        ({"batch_size": 9}, "trainer.batch_size = 9 is not divisible by 2 ranks times trainer.accumulation = 1"),
    ],
)
def test_a_cache_that_cannot_feed_the_run_is_refused(cache: Any, settings: dict[str, int], text: str) -> None:
    with pytest.raises(DataError, match=text):
        Loader(cache, TINY, trainer_config(**settings), _ranks(size=2))


def test_scale_and_shift_stay_in_their_ranges_and_do_nothing_at_one_and_zero() -> None:
    points = np.ones((400, 2, 3), np.float32)
    records = np.arange(400)
    moved = scale_and_shift(points, records, scale=(0.5, 2.0), shift=0.25, seed=0, epoch=0)
    assert moved.dtype == np.float32
    assert 0.25 <= moved.min() < 0.4
    assert 2.1 < moved.max() <= 2.25
    assert abs(moved.mean() - 1.25) < 0.05
    assert np.array_equal(scale_and_shift(points, records, scale=(1.0, 1.0), shift=0.0, seed=0, epoch=0), points)


def test_chosen_points_are_uniform_and_depend_on_the_record_alone() -> None:
    chosen = choose_points(np.arange(2000), 10, 4, seed=5, epoch=2)
    assert chosen.shape == (2000, 4)
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    counts = np.bincount(chosen[:, 0], minlength=10)
    assert counts.min() > 140  # 200 expected of each, standard deviation 13
    assert np.array_equal(choose_points(np.array([77, 3]), 10, 4, seed=5, epoch=2), chosen[[77, 3]])


def test_renormalised_clouds_are_centred_on_the_unit_sphere_and_a_point_stays_finite() -> None:
    cloud = np.random.default_rng(0).uniform(3, 5, (2, 50, 3)).astype(np.float32)
    cloud[1] = 7.0
    moved = renormalised(cloud)
    assert np.abs(moved[0].mean(axis=0)).max() < 1e-6
    assert np.linalg.norm(moved[0], axis=1).max() == pytest.approx(1, abs=1e-6)
    assert np.array_equal(moved[1], np.zeros((50, 3)))
