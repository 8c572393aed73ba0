"""What can be seen of a student: arrays that say what they are said to say."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuda.backproject import backproject
from cuda.geometry import ViewGeometry
from tests.support.training import MASKING, MODEL
from trainer.downstream.embedding import Embedding, embedding_of, read_embedding, write_embedding
from trainer.downstream.inspection import (
    choose_shapes,
    confusion,
    embedding_map,
    inspect_shapes,
    principal_axes,
)
from trainer.errors import EvaluationError
from trainer.models.build import new_student

ROWS = np.array([1, 5, 18])


def seen(cache: Any, points: int = 0, **settings: Any) -> Any:
    schema = cache.schema
    model = new_student(
        replace(MODEL, **settings), MASKING, {"channels": schema.channels, "views": schema.views}, seed=3
    )
    found = inspect_shapes(model, cache.read(ROWS), ROWS, image_side=schema.image_side, points=points)
    assert model.training  # as it was
    return found


def test_what_is_hidden_and_visible_is_of_the_cloud(cache: Any) -> None:
    batch = cache.read(ROWS)
    for row, shape in enumerate(seen(cache, points=96).shapes):
        assert shape.id == batch.ids[row]
        assert shape.points.shape == (96, 3)
        assert [len(level.visible) for level in shape.levels] == list(MODEL.groups)
        top = shape.levels[-1].visible
        assert top.sum() == MASKING.visible(MODEL.groups[-1])
        cloud = {tuple(point) for point in shape.points.tolist()}
        assert {tuple(centre) for centre in shape.levels[0].centres.tolist()} <= cloud
        target = shape.levels[MODEL.target_level]
        below = shape.levels[MODEL.target_level - 1].centres
        H, K = int((~target.visible).sum()), MODEL.neighbours[MODEL.target_level]
        assert shape.groups.truth.shape == shape.groups.predicted.shape == (H, K, 3)
        for centre, members in zip(target.centres[~target.visible], shape.groups.truth, strict=True):
            near = np.sort(((below - centre) ** 2).sum(1))[:K]
            np.testing.assert_allclose(np.sort(((members - centre) ** 2).sum(1)), near, atol=1e-6)


def test_teacher_features_are_those_at_the_points(cache: Any) -> None:
    batch = cache.read(ROWS)
    geometry = ViewGeometry(*(torch.from_numpy(part) for part in (batch.lo, batch.cell, batch.offset)))
    everywhere = backproject(
        torch.from_numpy(batch.features), torch.from_numpy(batch.points), geometry, image_side=cache.schema.image_side
    )
    for row, shape in enumerate(seen(cache).shapes):  # all stored points: student's frame and the teacher's are one
        expected = everywhere[row].numpy().mean(axis=1)
        np.testing.assert_array_equal(shape.teacher, expected)
        places = {tuple(point): place for place, point in enumerate(batch.points[row].tolist())}
        found = shape.features
        assert len(np.unique(found.points, axis=0)) == len(found.points)
        at = [places[tuple(point)] for point in found.points.tolist()]
        np.testing.assert_allclose(found.truth, expected[at], atol=1e-5)
        visible = shape.levels[MODEL.target_level - 1]
        shown = {tuple(centre) for centre in visible.centres[visible.visible].tolist()}
        assert {tuple(point) for point in found.points.tolist()} == shown


def test_a_prediction_is_the_mean_over_the_groups_of_a_point(cache: Any) -> None:
    schema = cache.schema
    model = new_student(MODEL, MASKING, {"channels": schema.channels, "views": schema.views}, seed=3).eval()
    asked: dict[str, Any] = {}
    show = model.show
    model.show = lambda plan, prediction: asked.setdefault("shown", show(plan, prediction))  # type: ignore[method-assign]
    found = inspect_shapes(model, cache.read(ROWS), ROWS, image_side=schema.image_side)
    parts = asked["shown"].features
    shared = 0
    for row, shape in enumerate(found.shapes):
        for point, value in zip(shape.features.points, shape.features.predicted, strict=True):
            same = (parts.sample == row) & (parts.points == torch.from_numpy(point)).all(1)
            shared += int(same.sum() > 1)
            expected = parts.predicted[same].double().mean(dim=(0, 1)).numpy()
            np.testing.assert_allclose(value, expected, atol=1e-5)
    assert shared > 3


def test_both_layouts_show_the_same(cache: Any) -> None:
    packed, static = (seen(cache, layout=layout).shapes for layout in ("packed", "static"))
    for one, other in zip(packed, static, strict=True):
        for a, b in zip(one.levels, other.levels, strict=True):
            np.testing.assert_array_equal(a.visible, b.visible)
        np.testing.assert_array_equal(one.groups.truth, other.groups.truth)
        np.testing.assert_allclose(one.groups.predicted, other.groups.predicted, atol=1e-4)
        np.testing.assert_allclose(one.features.truth, other.features.truth, atol=1e-5)
        np.testing.assert_allclose(one.features.predicted, other.features.predicted, atol=1e-4)


@pytest.mark.parametrize(("targets", "absent"), [("3d", "features"), ("2d", "groups")])
def test_what_a_student_does_not_predict_has_a_reason(cache: Any, targets: str, absent: str) -> None:
    found = seen(cache, targets=targets)
    assert all(getattr(shape, absent) is None for shape in found.shapes)
    assert found.reasons.keys() == {absent}
    assert f"model.targets = {targets!r}" in found.reasons[absent]


def test_of_several_teachers_the_first_is_shown(cache: Any) -> None:
    schema = cache.schema
    teacher = {"channels": schema.channels, "views": schema.views}
    more = {**teacher, "further": [{"channels": 9, "views": 3, "features": True, "whole": False}]}
    found = []
    for sizes in (teacher, more):
        model = new_student(MODEL, MASKING, sizes, seed=3)
        found.append(inspect_shapes(model, cache.read(ROWS), ROWS, image_side=schema.image_side).shapes)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.groups.predicted, other.groups.predicted)
        np.testing.assert_array_equal(one.features.predicted, other.features.predicted)


def test_the_mask_is_the_same_whatever_the_weights(cache: Any) -> None:
    schema, masks = cache.schema, []
    for seed in (1, 2):
        model = new_student(MODEL, MASKING, {"channels": schema.channels, "views": schema.views}, seed=seed)
        found = inspect_shapes(model, cache.read(ROWS), ROWS, image_side=schema.image_side)
        masks.append([level.visible.tolist() for shape in found.shapes for level in shape.levels or ()])
    assert masks[0] == masks[1]


def test_shapes_are_chosen_across_classes_by_their_names() -> None:
    ids = [f"shape-{k}" for k in range(50)]
    labels = np.arange(50) % 7
    chosen = choose_shapes(ids, labels, 12)
    assert len(set(chosen.tolist())) == 12
    counts = np.bincount(labels[chosen], minlength=7)
    assert counts.max() - counts.min() == 1
    assert (np.diff(labels[chosen]) >= 0).all()
    order = np.random.default_rng(0).permutation(50)  # another order of the same shapes
    again = choose_shapes([ids[k] for k in order], labels[order], 12)
    assert [ids[k] for k in order[again]] == [ids[k] for k in chosen]
    many = choose_shapes(ids, np.arange(50), 12)
    assert many.tolist() == np.linspace(0, 49, 12).round().astype(int).tolist()
    assert len(choose_shapes(ids[:3], np.array([-1, -1, 4]))) == 3
    for count, names in ((0, ids), (3, [])):
        with pytest.raises(ValueError, match="expected at least one"):
            choose_shapes(names, labels[: len(names)], count)


def test_principal_axes_are_those_of_the_singular_value_decomposition() -> None:
    rng = np.random.default_rng(5)
    samples = (rng.standard_normal((41, 6)) * [9, 5, 3, 1, 0.5, 0.1]).astype(np.float32) + 7
    axes = principal_axes(samples)
    _, scale, right = np.linalg.svd(samples.astype(np.float64) - samples.mean(0, dtype=np.float64))
    np.testing.assert_allclose(np.abs(axes.axes @ right[:3].T), np.eye(3), atol=1e-9)
    assert axes.kept == pytest.approx((scale[:3] ** 2).sum() / (scale**2).sum())
    colours = axes.colours(samples)
    assert colours.min() == 0.0
    assert colours.max() == 1.0
    flat = principal_axes(np.ones((5, 2)))  # no variance, and fewer channels than colours
    assert (flat.colours(np.ones((4, 2))) == 0.5).all()
    with pytest.raises(ValueError, match="expected"):
        principal_axes(np.ones((0, 3)))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_a_map_has_a_place_for_each(count: int) -> None:
    features = np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)
    rows, places = embedding_map(features)
    assert rows.tolist() == list(range(count))
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
    np.testing.assert_array_equal(embedding_map(features)[1], places)


def test_a_map_keeps_groups_together_and_takes_no_more_than_asked() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 3
    features = (8 * np.eye(3)[labels] + rng.standard_normal((60, 3))).astype(np.float32)
    rows, places = embedding_map(features, most=45)
    assert len(rows) == 45
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(45)
    assert (labels[rows][distance.argmin(1)] == labels[rows]).mean() > 0.9
    rows, places = embedding_map(np.ones((7, 4), np.float32))
    assert np.isfinite(places).all()


def test_confusion_counts_pairs() -> None:
    rng = np.random.default_rng(2)
    labels, predicted = rng.integers(0, 5, 77), rng.integers(0, 5, 77)
    expected = np.zeros((6, 6), int)
    for true, said in zip(labels, predicted, strict=True):
        expected[true, said] += 1
    np.testing.assert_array_equal(confusion(labels, predicted, 6), expected)
    with pytest.raises(ValueError, match=r"expected 0\.\.3"):
        confusion(labels, predicted, 4)


def test_an_embedding_comes_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    n, kept = 7, Embedding(
        uri="folder:x", epoch=3, points=96, ids=tuple("abcdefg"), labels=np.arange(7) % 2, label_names=("p", "q"),
        predicted=np.ones(7, np.int64), rows=np.array([0, 2, 6]),
        features=np.arange(12, dtype=np.float32).reshape(3, 4),
    )  # fmt: skip
    path = tmp_path / "embedding.npz"
    write_embedding(path, kept)
    first = path.read_bytes()
    found = read_embedding(path)
    for name in vars(kept):
        np.testing.assert_array_equal(getattr(found, name), getattr(kept, name))
    write_embedding(path, found)
    assert path.read_bytes() == first
    faults = {
        "labels": np.full(n, 2), "predicted": np.ones(n - 1, np.int64), "rows": np.array([2, 0, 6]),
        "features": np.full((3, 4), np.nan, np.float32), "ids": (),
    }  # fmt: skip
    for name, value in faults.items():
        write_embedding(path, replace(kept, **{name: value}))
        with pytest.raises(EvaluationError, match=r"embedding\.npz"):
            read_embedding(path)
    for cut in (0, 10, len(first) // 2, len(first) - 1):
        path.write_bytes(first[:cut])
        with pytest.raises(EvaluationError, match="found another file"):
            read_embedding(path)
    file = io.BytesIO()
    np.savez(file, ids=np.array([{"a": 1}], dtype=object))
    path.write_bytes(file.getvalue())
    with pytest.raises(EvaluationError, match="allow_pickle=False"):
        read_embedding(path)


def test_an_embedding_of_many_keeps_features_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.downstream import embedding
    from trainer.downstream.clouds import LabelledClouds
    from trainer.downstream.linear_svm import SvmScore

    monkeypatch.setattr(embedding, "MOST", 5)
    clouds = LabelledClouds(
        uri="x:", points=np.zeros((13, 8, 3), np.float32), labels=np.zeros(13, np.int64), label_names=("a",),
        skipped=(), ids=tuple(map(str, range(13))),
    )  # fmt: skip
    score = SvmScore(accuracy=1.0, c=1.0, validation=None, predicted=np.zeros(13, np.int64))
    features = np.arange(26, dtype=np.float32).reshape(13, 2)
    found = embedding_of(clouds, features, score, epoch=1, points=8)
    assert len(found.rows) == 5
    assert len(found.ids) == 13
    np.testing.assert_array_equal(found.features, features[found.rows])
