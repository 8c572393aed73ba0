"""Stored poses: the shape itself first, then augmented copies that depend on nothing but (id, pose)."""

import re

import numpy as np
import pytest
import torch

import teacher_cache
from pipeline.build.poses import SCALE, SHIFT, check_ids, in_pose
from pipeline.build.recipe import recipe_for
from pipeline.config import CorpusConfig, ProjectionConfig
from pipeline.corpora import normalise, open_corpus
from pipeline.errors import BuildError
from pipeline.teacher.tower import load_teacher
from pipeline.views import render_views
from teacher_cache import CacheConfig
from tests.support.builds import COUNT, POINTS, small_build, tree
from tests.support.commands import run
from tests.support.teachers import TINY_PROJECTION, tiny_teacher
from trainer.config import TrainerConfig

FORMATS = ("zarr", "webdataset")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("poses")


@pytest.fixture(scope="module")
def posed(folder):
    """One build of each format by one worker, two poses a shape: two shapes in a shard of five records."""
    return {format: small_build(folder, format=format, workers=1, poses=2) for format in FORMATS}


def cloud(seed=0):
    return normalise(np.random.default_rng(seed).normal(size=(POINTS, 3)))


def test_a_pose_is_a_stretch_and_a_shift_of_each_axis_and_never_changes():
    points = cloud()
    assert in_pose(points, "a", 0) is points
    seen = set()
    for pose in range(1, 64):
        moved = in_pose(points, "a", pose)
        assert moved.dtype == np.float32
        assert np.array_equal(moved, in_pose(points, "a", pose))
        for axis in range(3):
            (factor, offset), residual, *_ = np.polyfit(points[:, axis], moved[:, axis], 1, full=True)
            assert residual.sum() < 1e-9
            assert SCALE[0] - 1e-5 <= factor <= SCALE[1] + 1e-5
            assert abs(offset) <= SHIFT + 1e-5
            seen.add(round(factor, 6))
    assert len(seen) > 180
    assert max(seen) - min(seen) > 0.8
    assert not np.array_equal(in_pose(points, "a", 1), in_pose(points, "b", 1))


def test_stretches_and_shifts_cover_their_ranges_on_every_axis_and_shifts_go_both_ways():
    zeros, ones = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    shifts = np.concatenate([in_pose(zeros, f"s{i}", pose) for i in range(500) for pose in (1, 2)])  # [1000, 3]
    factors = np.concatenate([in_pose(ones, f"s{i}", pose) for i in range(500) for pose in (1, 2)]) - shifts
    for values, low, high in ((shifts, -SHIFT, SHIFT), (factors, *SCALE)):
        for axis in range(3):
            counts = np.histogram(values[:, axis], 10, (low, high))[0]
            assert counts.sum() > 995  # factors are differences, so one at an end may have rounded across it
            assert counts.min() > 60  # 100 expected, standard deviation 9.5
    # Six numbers, all of their own: the correlation of two is 1 where they are one.
    columns = np.concatenate([shifts, factors, shifts[::2].repeat(2, 0)], axis=1)[1::2]  # beside pose 2, its pose 1
    apart = np.abs(np.corrcoef(columns.T) - np.eye(9))
    assert apart.max() < 0.25  # 5.5 standard deviations of 500 independent pairs


def test_the_ranges_are_the_trainers():
    assert (TrainerConfig().scale, TrainerConfig().shift) == (SCALE, SHIFT)


def test_one_pose_leaves_the_recipe_as_it_was():
    def recipe(**poses):
        source = open_corpus("synthetic:?count=2", points=64)
        return recipe_for(source, ProjectionConfig(), {"architecture": "x"}, CacheConfig(), points=64, **poses)

    assert recipe(poses=1) == recipe()
    assert "poses" not in str(recipe().to_json())
    assert recipe(poses=3).corpus["poses"] == 3
    assert len({recipe(poses=poses).hash for poses in (1, 2, 3)}) == 3


@pytest.mark.parametrize("format", FORMATS)
def test_records_of_a_shape_stand_together_and_hold_what_the_teacher_says_of_each_pose(tmp_path, posed, format):
    cache = teacher_cache.open(posed[format].path)
    corpus = open_corpus(f"synthetic:?count={COUNT}&seed=1", points=POINTS)
    teacher = load_teacher(tiny_teacher(tmp_path))
    assert (cache.poses, len(cache), posed[format].shapes, cache.complete) == (2, 2 * COUNT, COUNT, True)
    assert cache.counts.tolist() == [4] * 11 + [2]
    assert cache.ids == [id for s in range(COUNT) for id in (corpus.id(s), f"{corpus.id(s)}@pose1")]
    for number in (0, 1, 2 * COUNT - 1):
        record, shape = cache[number], corpus[number // 2]
        points = in_pose(normalise(shape.points), shape.id, number % 2)
        views = render_views(torch.from_numpy(points)[None], TINY_PROJECTION)
        features, saliency = teacher.encode(views.images)
        assert record.label == shape.label
        assert np.array_equal(record.points, points)
        assert np.array_equal(record.lo, views.geometry.lo[0])
        assert np.array_equal(record.saliency, saliency)
        assert np.array_equal(record.features, features.numpy().astype(np.float16))


def test_pose_0_is_the_record_of_a_cache_without_poses(folder, posed):
    plain, several = teacher_cache.open(small_build(folder).path), teacher_cache.open(posed["zarr"].path)
    assert plain.poses == 1
    assert several.ids[::2] == plain.ids
    ours, theirs = several.read(range(0, 2 * COUNT, 2), depth=True), plain.read(range(COUNT), depth=True)
    for name in ("label", "points", "lo", "cell", "offset", "features", "saliency", "depth"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize(
    ("format", "scheduler"), [("zarr", "threads"), ("webdataset", "threads"), ("zarr", "processes")]
)
def test_workers_change_no_byte(tmp_path, posed, format, scheduler):
    again = small_build(tmp_path, format=format, scheduler=scheduler, workers=2, poses=2)
    assert tree(again.path) == tree(posed[format].path)


def test_more_shapes_add_shards_and_a_lost_one_is_built_again(tmp_path, posed):
    first = small_build(tmp_path, poses=2)
    assert small_build(tmp_path, poses=2).already_complete
    (first.path / "receipts" / "000004.json").unlink()
    assert small_build(tmp_path, poses=2).built == 1
    assert tree(first.path) == tree(posed["zarr"].path)
    old = {name: digest for name, digest in tree(first.path).items() if re.search(r"/c\.|receipts/", name)}
    grown = small_build(tmp_path, corpus="synthetic:?count=27&seed=1", poses=2)
    assert (grown.path, grown.built, grown.shapes) == (first.path, 2, 27)
    assert old.items() <= tree(grown.path).items()
    cache = teacher_cache.open(grown.path)
    assert cache.ids[: 2 * COUNT] == teacher_cache.open(posed["zarr"].path).ids
    assert cache.ids[1::2] == [f"{id}@pose1" for id in cache.ids[::2]]


def folder_corpus(folder, names):
    (folder / "shapes" / "thing").mkdir(parents=True)
    for seed, name in enumerate(names):
        points = np.full((80, 3), np.nan, np.float32) if name.startswith("bad") else cloud(seed)
        np.save(folder / "shapes" / "thing" / f"{name}.npy", points)
    return f"folder:{folder / 'shapes'}"


def test_a_refused_shape_is_one_entry_whatever_its_poses(tmp_path, capsys):
    seen = []
    corpus = folder_corpus(tmp_path, ["a", "bad", "c", "d"])
    report = small_build(tmp_path, corpus=corpus, poses=2, on_progress=seen.append)
    assert (report.shapes, len(report.quarantined)) == (3, 1)
    assert (seen[-1].shapes_done, seen[-1].shapes_total, seen[-1].quarantined) == (4, 4, 1)
    cache = teacher_cache.open(report.path)
    assert (len(cache), cache.complete, cache.info().planned) == (6, True, 7)
    assert small_build(tmp_path, corpus=corpus, poses=2).already_complete
    assert not list(teacher_cache.verify(report.path))
    shown = run(capsys, "cache", "info", report.path).out
    assert "shapes       3 of 4 planned, 1 quarantined" in shown
    assert "poses        2 of each shape, 6 records" in shown


def test_an_id_that_could_be_that_of_a_pose_is_refused_only_where_there_are_poses():
    check_ids(["a", "a@pose", "a@posed1", "a@pose1.npy"], 2)
    with pytest.raises(BuildError, match=r"1 shapes have ids with the ending of stored poses, first 'b@pose1'"):
        check_ids(["b", "b@pose1"], 2)
    check_ids(["b", "b@pose1"], 1)


def test_impossible_numbers_of_poses_are_refused(tmp_path):
    assert list(CorpusConfig(poses=0).problems()) == ["poses = 0 is outside 1..64"]
    assert list(CorpusConfig(poses=65).problems()) == ["poses = 65 is outside 1..64"]
    with pytest.raises(BuildError, match=r"corpus\.poses = 6 is more than the cache\.shapes_per_shard = 5 records"):
        small_build(tmp_path, poses=6)
