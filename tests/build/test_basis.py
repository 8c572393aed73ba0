"""A build with channels of its own: where the basis comes from, what does not change it, and what lookups give back."""

import json
import os
import re
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import teacher_cache
from cuda.backproject import backproject
from cuda.geometry import ViewGeometry
from cuda.untouched import untouched_tokens
from pipeline.build import driver as build_module
from pipeline.build.basis import fit_basis, principal, sample_order
from pipeline.corpora import ShapeError, normalise, open_corpus
from pipeline.errors import BuildError, TeacherError
from pipeline.teacher.channels import in_basis
from pipeline.teacher.live import LiveTeacher
from pipeline.teacher.tower import load_teacher
from pipeline.views import render_views
from teacher_cache.errors import RecipeMismatch
from tests.support.builds import COUNT, POINTS, small_build, tree
from tests.support.faults import builders
from tests.support.limits import HANG
from tests.support.teachers import TINY_PROJECTION, tiny_teacher

OWN = {"channels": 5, "sample": 12}  # of the 8 of the tiny teacher, on about half of the shapes


def geometry_of(batch):
    return ViewGeometry(*(torch.from_numpy(array) for array in (batch.lo, batch.cell, batch.offset)))


def said(folder, indices, corpus=f"synthetic:?count={COUNT}&seed=1"):
    """What the tiny teacher says of shapes, one by one, and which tokens lookups read: [n, V, T, F], [n, V, T]."""
    teacher, source = load_teacher(tiny_teacher(folder)), open_corpus(corpus, points=POINTS)
    features, read = [], []
    for index in indices:
        points = normalise(source[index].points)
        views = render_views(torch.from_numpy(points)[None], TINY_PROJECTION)
        features.append(teacher.encode(views.images)[0].numpy())
        read.append(~untouched_tokens(points[None], views.geometry, image_side=32, side=4)[0])
    return np.stack(features), np.stack(read)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return small_build(tmp_path_factory.mktemp("undisturbed"), cache=OWN, workers=1)


def test_the_basis_is_the_principal_components_of_the_sample(tmp_path, undisturbed):
    basis = teacher_cache.open(undisturbed.path).basis
    ids = [open_corpus(f"synthetic:?count={COUNT}&seed=1", points=POINTS).id(index) for index in range(COUNT)]
    features, read = said(tmp_path, sample_order(ids)[: OWN["sample"]])
    sample = features[read].astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(sample.T, bias=True))
    # What was seen: 1e-7 for the mean; directions are off by the rounding of the teacher over the gap of eigenvalues.
    np.testing.assert_allclose(basis.mean, sample.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.abs(basis.components @ vectors[:, ::-1][:, :5]), np.eye(5), atol=1e-4)
    np.testing.assert_allclose(basis.variance, values[::-1][:5], rtol=1e-4)
    assert basis.total_variance == pytest.approx(values.sum(), rel=1e-4)
    assert basis.shapes == OWN["sample"]
    greatest = np.abs(basis.components).argmax(axis=1)
    assert (basis.components[np.arange(5), greatest] > 0).all()


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_build_stores_the_teachers_features_in_the_basis(tmp_path, format):
    path = small_build(tmp_path, format=format, cache=OWN | {"features": "float32", "untouched": "zero"}).path
    cache = teacher_cache.open(path)
    features, read = said(tmp_path, range(COUNT))
    assert cache.schema.channels == 5
    assert cache.recipe.storage["channels"] == 5
    stored = cache.read(range(COUNT)).features
    assert not stored[~read].any()  # zero among the coordinates, not the coordinates of zero
    # Twice a float32 rounding of a product of eight numbers of about 1.
    np.testing.assert_allclose(stored[read], cache.basis.project(features)[read], atol=2e-6)
    near = cache.basis.restore(stored)[read] - features[read]
    assert 0 < (near**2).mean() / features[read].var(axis=0).mean() < 0.2
    assert teacher_cache.verify(path) == []


def test_all_channels_give_the_teachers_features_back(tmp_path):
    path = small_build(tmp_path, cache={"channels": 8, "features": "float32"}).path
    cache = teacher_cache.open(path)
    features, _ = said(tmp_path, range(COUNT))
    np.testing.assert_allclose(cache.basis.restore(cache.read(range(COUNT)).features), features, atol=5e-6)
    assert cache.basis.kept == pytest.approx(1)


@given(seed=st.integers(0, 2**32 - 1), points=st.integers(1, 100), zero=st.booleans())
@settings(deadline=None, max_examples=25)
def test_looking_up_and_restoring_commute(seed, points, zero):
    """Weights of a bicubic lookup sum to 1, so the mean passes through it as the directions do."""
    rng = np.random.default_rng(seed)
    cloud = torch.from_numpy(normalise(rng.normal(size=(points + 2, 3)).astype(np.float32)))[None]
    views = render_views(cloud, TINY_PROJECTION)
    maps = torch.from_numpy(rng.normal(1, 1, size=(1, 3, 16, 8)).astype(np.float32))
    moments = (48, maps[0].double().sum((0, 1)), (maps[0].double().flatten(0, 1).T @ maps[0].double().flatten(0, 1)))
    basis = principal(moments, 3, 1)
    stored = in_basis(maps, basis)
    if zero:
        stored[torch.from_numpy(untouched_tokens(cloud.numpy(), views.geometry, image_side=32, side=4))] = 0
    there = basis.restore(backproject(stored, cloud, views.geometry, image_side=32).numpy())
    whole = torch.from_numpy(basis.restore(in_basis(maps, basis).numpy()))
    back = backproject(whole, cloud, views.geometry, image_side=32).numpy()
    np.testing.assert_allclose(there, back, atol=1e-5)  # seen: 2e-6; overshooting weights sum to 1 from up to 2.4


def test_distances_between_targets_are_those_of_the_restored(undisturbed):
    cache = teacher_cache.open(undisturbed.path)
    batch = cache.read(range(6))
    looked = backproject(
        torch.from_numpy(batch.features), torch.from_numpy(batch.points), geometry_of(batch), image_side=32
    ).numpy()
    error = np.random.default_rng(0).normal(size=looked.shape).astype(np.float32)
    basis = cache.basis
    apart = basis.restore(looked + error) - basis.restore(looked)
    assert (apart**2).sum() == pytest.approx((error**2).sum(), rel=1e-5)


@pytest.mark.parametrize(("scheduler", "workers"), [("threads", 2), ("processes", 2)])
def test_workers_change_no_byte(tmp_path, undisturbed, scheduler, workers):
    report = small_build(tmp_path, cache=OWN, scheduler=scheduler, workers=workers)
    assert tree(report.path) == tree(undisturbed.path)


def test_threads_that_fit_change_no_byte(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(build_module, "cores", lambda: 4)
    assert tree(small_build(tmp_path, cache=OWN).path) == tree(undisturbed.path)


def test_the_order_of_a_corpus_changes_no_sample():
    ids = [f"shape {index}" for index in range(500)]
    order = sample_order(ids)
    assert sorted(order) == list(range(500))
    turned = ids[::-1]
    assert [turned[index] for index in sample_order(turned)] == [ids[index] for index in order]
    # A larger corpus keeps the relative order of what was there: the sample of a corpus that grew a little is similar.
    more = sample_order(ids + [f"new {index}" for index in range(500)])
    assert [index for index in more if index < 500] == order.tolist()
    assert list(sample_order([])) == []


def test_growing_keeps_the_basis_and_every_old_shard(tmp_path, undisturbed):
    first = small_build(tmp_path, cache=OWN)
    old = {name: digest for name, digest in tree(first.path).items() if re.search(r"/c\.|receipts/|basis|recipe", name)}
    fits = []
    larger = f"synthetic:?count={COUNT + 9}&seed=1"
    grown = small_build(tmp_path, corpus=larger, cache=OWN, on_fit=lambda *progress: fits.append(progress))
    assert (grown.path, grown.shapes, fits) == (first.path, COUNT + 9, [])
    assert old.items() <= tree(grown.path).items()
    # The same corpus built at one go has another sample: the same name, since the recipe is the same; another basis.
    whole = small_build(tmp_path / "whole", corpus=larger, cache=OWN)
    assert whole.path.name == grown.path.name
    assert teacher_cache.open(whole.path).basis != teacher_cache.open(grown.path).basis


def test_progress_of_the_fit_counts_shapes_of_the_sample(tmp_path):
    fits, shards = [], []
    small_build(
        tmp_path,
        cache=OWN,
        on_fit=lambda *progress: fits.append((*progress, len(shards))),
        on_progress=lambda progress: shards.append(progress),
    )
    assert fits == [(done, 12, 0) for done in range(1, 13)]


def test_a_complete_cache_is_left_alone_and_nothing_is_fitted(undisturbed):
    fits = []
    again = small_build(undisturbed.path.parents[1], cache=OWN, on_fit=lambda *progress: fits.append(progress))
    assert (again.already_complete, fits) == (True, [])


def kill_at(folder, step):
    """Build in a process that kills itself at a step of the fit, or after the first shard."""
    os.setpgrp()

    def fit(done, total):
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def shard(progress):
        if progress.shards_done == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    small_build(folder, cache=OWN, workers=1, on_fit=fit, on_progress=shard)


def test_a_build_killed_while_it_fits_and_after_ends_with_the_same_bytes(tmp_path, undisturbed):
    context = builders()
    for step, there in ((7, False), (99, True)):
        process = context.Process(target=kill_at, args=(tmp_path, step))
        process.start()
        process.join(HANG)
        assert process.exitcode == -signal.SIGKILL
        caches = list((tmp_path / "caches").glob("*/recipe.json")) if (tmp_path / "caches").exists() else []
        assert bool(caches) is there  # nothing of a cache before its basis
    assert tree(small_build(tmp_path, cache=OWN).path) == tree(undisturbed.path)


def test_repair_builds_lost_shards_in_the_stored_basis(tmp_path, undisturbed):
    report = small_build(tmp_path, cache=OWN)
    (report.path / "receipts" / "000001.json").unlink()
    (report.path / "basis.npy").write_bytes(b"")
    problems = teacher_cache.verify(report.path)
    assert {problem.file for problem in problems} >= {"basis.npy", "receipts/000001.json"}
    teacher_cache.withdraw(report.path, problems)
    fits = []
    small_build(tmp_path, cache=OWN, on_fit=lambda *progress: fits.append(progress))
    assert fits == []
    assert tree(report.path) == tree(undisturbed.path)


def test_unusable_shapes_are_passed_over(tmp_path, monkeypatch):
    class Spoilt:
        def __init__(self, inner, bad):
            self.inner, self.bad = inner, bad

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, index):
            if index in self.bad:
                raise ShapeError(f"{index}.off", "made up to be bad")
            return self.inner[index]

    corpus = open_corpus(f"synthetic:?count={COUNT}&seed=1", points=POINTS)
    ids = [corpus.id(index) for index in range(COUNT)]
    order = sample_order(ids).tolist()
    teacher = load_teacher(tiny_teacher(tmp_path))
    fit = {"channels": 5, "sample": 6}
    passed = fit_basis(Spoilt(corpus, {order[0], order[3]}), ids, TINY_PROJECTION, teacher, **fit)
    left = [id for index, id in enumerate(ids) if index not in {order[0], order[3]}]
    kept = Spoilt(corpus, set())
    kept.__class__ = type("Some", (Spoilt,), {"__getitem__": lambda self, place: corpus[ids.index(left[place])]})
    assert fit_basis(kept, left, TINY_PROJECTION, teacher, **fit) == passed
    assert passed.shapes == 6
    few = fit_basis(Spoilt(corpus, set(order[2:])), ids, TINY_PROJECTION, teacher, **fit)
    assert few.shapes == 2
    with pytest.raises(
        BuildError, match=r"(?s)none of the 23 shapes of the corpus can be used.*off: made up to be bad"
    ):
        fit_basis(Spoilt(corpus, set(order)), ids, TINY_PROJECTION, teacher, **fit)


def test_all_poses_of_a_shape_count(tmp_path):
    path = small_build(tmp_path, cache={"channels": 5, "sample": 12, "shapes_per_shard": 6}, poses=3).path
    cache = teacher_cache.open(path)
    assert (cache.basis.shapes, cache.poses) == (4, 3)
    assert teacher_cache.verify(path) == []


def test_more_channels_than_the_teacher_has_are_refused(tmp_path):
    with pytest.raises(BuildError, match=r"cache\.channels = 9 is more than the 8 channels of teacher\.architecture"):
        small_build(tmp_path, cache={"channels": 9})
    assert not (tmp_path / "caches").exists()


def test_each_components_greatest_number_is_positive():
    """A decomposition leaves the sign to chance, which must not show in a cache's bytes."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        features = torch.from_numpy(rng.normal(size=(20, 6)) * np.arange(1, 7))
        rows = principal((20, features.sum(0), features.T @ features), 6, 1).components
        assert (rows[np.arange(6), np.abs(rows).argmax(axis=1)] > 0).all()


def test_teacher_output_that_is_not_finite_is_the_teachers_fault():
    first = torch.full((3,), float("nan"), dtype=torch.float64)
    with pytest.raises(
        BuildError, match=r"the teacher's output on the sample of cache\.channels has values that are not finite"
    ):
        principal((4, first, torch.eye(3, dtype=torch.float64)), 2, 1)


def test_a_worker_that_finds_another_basis_than_the_driver_refuses(tmp_path, monkeypatch):
    """An object store has no lock that keeps two builders from beginning at once."""
    real = build_module.Job
    monkeypatch.setattr(build_module, "Job", lambda **given: real(**given | {"basis": "0" * 64}))
    with pytest.raises(
        BuildError, match=r"now has another basis \([0-9a-f]{12}\) than when the driver started \(000000000000\)"
    ):
        small_build(tmp_path, cache=OWN, scheduler="processes", workers=1)


def test_another_basis_in_the_same_place_is_refused(tmp_path, monkeypatch):
    """Two builders of corpora of different sizes that begin at once: the one that comes second says so and stops."""
    small_build(tmp_path, cache=OWN)
    monkeypatch.setattr(build_module, "stored_basis", lambda directory: None)  # as it was when the second one looked
    with pytest.raises(RecipeMismatch, match=r"basis: [0-9a-f]{12} of 12 shapes here, [0-9a-f]{12} of 12 shapes there"):
        small_build(tmp_path, corpus=f"synthetic:?count={COUNT + 9}&seed=1", cache=OWN)


def test_a_live_teacher_says_what_the_cache_stores(tmp_path, undisturbed):
    cache = teacher_cache.open(small_build(tmp_path, cache=OWN | {"features": "float32"}).path)
    live = LiveTeacher(TINY_PROJECTION, load_teacher(tiny_teacher(tmp_path)), cache.basis)
    batch = cache.read(range(6))
    maps = live(torch.from_numpy(batch.points))
    assert live.channels == cache.schema.channels == maps.features.shape[-1] == 5
    assert np.allclose(maps.features.numpy(), batch.features, rtol=0, atol=4e-6)


def test_a_live_teacher_of_other_channels_is_refused(tmp_path, undisturbed):
    basis = teacher_cache.open(undisturbed.path).basis
    wide = json.loads((tmp_path / "tiny.json").read_text()) if (tmp_path / "tiny.json").exists() else None
    assert wide is None
    from tests.support.teachers import TINY

    other = tmp_path / "wide.json"
    other.write_text(json.dumps(TINY | {"embed_dim": 16}))
    teacher = load_teacher(tiny_teacher(tmp_path, architecture=str(other)))
    with pytest.raises(TeacherError, match="basis belongs to a teacher with 8 channels; the loaded one has 16"):
        LiveTeacher(TINY_PROJECTION, teacher, basis)
