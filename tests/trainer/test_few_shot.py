"""Few-shot probes: the episodes of the corpora, frozen features, both standard deviations."""

import numpy as np
import pytest

from pipeline.corpora import open_corpus
from tests.support.training import clouds
from trainer.downstream.clouds import read_clouds
from trainer.downstream.few_shot import FewShotConfig, drawn_folds, few_shot, few_shots, summarise
from trainer.errors import EvaluationError


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Six classes of boxes and ellipsoids, told apart by their proportions, some noise; 30 train and 25 test each."""
    path = tmp_path_factory.mktemp("few") / "set.npz"
    n = 6 * 55
    points, label = clouds(n, points=64, seed=5), np.arange(n) % 6
    points *= (0.2 + 0.4 * np.stack([label % 2, label // 2 % 3, label // 4], axis=1))[:, None]
    split = np.where(np.arange(n) < 6 * 30, "train", "test")
    names = np.array([f"kind {k}" for k in range(6)])
    np.savez(path, points=points, label=label, label_names=names, split=split, part=np.tile(np.arange(64) % 4, (n, 1)))
    return path


def read(path, split):
    return read_clouds(f"npz:{path}?split={split}", points=64)


def test_the_folds_are_the_corpora(labelled):
    train, test = read(labelled, "train"), read(labelled, "test")
    config = FewShotConfig(way=3, shot=4, folds=3, queries=5)
    for number, fold in enumerate(drawn_folds(train, test, config)):
        uri = f"fewshot:?train=npz:{labelled}?split=train&test=npz:{labelled}?split=test&way=3&shot=4&queries=5"
        for split, clouds_of, rows, labels in (
            ("train", train, fold.support, fold.support_labels),
            ("test", test, fold.queries, fold.query_labels),
        ):
            corpus = open_corpus(f"{uri}&fold={number}&split={split}", points=64)
            assert [corpus.id(i) for i in range(len(corpus))] == [clouds_of.ids[row] for row in rows]
            assert [corpus.label(i) for i in range(len(corpus))] == labels.tolist()


def test_scores_are_summarised_by_both_standard_deviations(labelled):
    train, test = read(labelled, "train"), read(labelled, "test")
    config = FewShotConfig(way=5, shot=3, folds=4, queries=20)
    folds = drawn_folds(train, test, config)
    told = []
    features = {
        "answers": (np.eye(6)[train.labels], np.eye(6)[test.labels]),
        "noise": tuple(np.random.default_rng(0).normal(size=(len(part), 8)) for part in (train, test)),
    }
    found = few_shot(features, folds, config, progress=told.append)
    assert found["answers"].scores == (1.0,) * 4
    assert (found["answers"].population_spread, found["answers"].sample_spread) == (0.0, 0.0)
    noise = found["noise"]
    assert 0.05 < noise.mean < 0.4  # a fifth by chance
    assert noise.mean == pytest.approx(np.mean(noise.scores))
    assert noise.population_spread == pytest.approx(np.std(noise.scores))
    assert noise.sample_spread == pytest.approx(np.std(noise.scores, ddof=1))
    assert (noise.tested, noise.step, sum(told)) == (100, 0.01, 8)
    assert few_shot(features, folds, config) == found


def test_folds_in_processes_are_those_of_one(labelled):
    train, test = read(labelled, "train"), read(labelled, "test")
    rng = np.random.default_rng(1)
    features = {
        name: (rng.normal(size=(len(train), width)) + train.labels[:, None], rng.normal(size=(len(test), width)))
        for name, width in (("wide", 9), ("narrow", 4))
    }
    settings = []
    for way, shot, folds in ((3, 4, 2), (5, 3, 3)):
        config = FewShotConfig(way=way, shot=shot, folds=folds, queries=7)
        settings.append((config, drawn_folds(train, test, config)))
    told = []
    apart = few_shots(features, settings, processes=2, progress=told.append)
    assert sum(told) == 2 * (2 + 3)
    assert apart == few_shots(features, settings)
    assert apart == [few_shot(features, folds, config) for config, folds in settings]
    assert apart[0]["wide"].scores != apart[0]["narrow"].scores
    assert [len(row["wide"].scores) for row in apart] == [2, 3]


def test_a_summary_by_hand():
    found = summarise([0.5, 0.7], FewShotConfig(folds=2), tested=100)
    assert (found.mean, found.population_spread, found.sample_spread) == (
        pytest.approx(0.6), pytest.approx(0.1), pytest.approx(0.1 * 2**0.5),
    )  # fmt: skip


def test_what_cannot_be_asked_is_refused(labelled):
    train, test = read(labelled, "train"), read(labelled, "test")
    with pytest.raises(
        EvaluationError, match=r"set\.npz.*: 7 classes were requested; 6 of 6 have 10 to train and 20 to test"
    ):
        drawn_folds(train, test, FewShotConfig(way=7))
    with pytest.raises(EvaluationError, match="0 of 6 have 40 shapes"):
        drawn_folds(train, None, FewShotConfig(shot=20))
    assert list(FewShotConfig(shot=1, way=1).problems()) == ["way = 1 is smaller than 2", "shot = 1 is smaller than 2"]


def test_parts_move_with_their_points(labelled):
    clouds_of = read(labelled, "test")
    assert (clouds_of.part_labels.shape, clouds_of.part_names) == ((150, 64), ("0", "1", "2", "3"))
    marked = {p.tobytes(): part for cloud, parts in zip(clouds_of.points, clouds_of.part_labels, strict=True)
              for p, part in zip(cloud, parts, strict=True)}  # fmt: skip
    order = clouds_of._drawn(20, 3)
    parts = clouds_of.draw_parts(20, 3)
    chosen = np.take_along_axis(clouds_of.points, order[:, :, None], axis=1)
    assert all(marked[p.tobytes()] == part for cloud, row in zip(chosen, parts, strict=True)
               for p, part in zip(cloud, row, strict=True))  # fmt: skip
    # the same draw as that of the points, which are centred and scaled after it
    drawn = clouds_of.draw(20, 3)
    scale = np.linalg.norm(chosen - chosen.mean(axis=1, keepdims=True), axis=2).max(axis=1)
    assert drawn == pytest.approx((chosen - chosen.mean(axis=1, keepdims=True)) / scale[:, None, None], abs=1e-5)


def test_clouds_can_stay_as_they_are_stored_and_go_without_labels(labelled, tmp_path):
    with np.load(labelled) as file:
        points = file["points"] * 3 + 5
    np.savez(tmp_path / "bare.npz", points=points)
    uri = f"npz:{tmp_path / 'bare.npz'}"
    stored = read_clouds(uri, points=64, frame="stored", labelled=False)
    assert stored.points.mean() > 4
    assert (set(stored.labels.tolist()), stored.part_labels, stored.ids[1]) == ({-1}, None, "bare/000001")
    with pytest.raises(EvaluationError, match="has no labels"):
        read_clouds(uri, points=64)
    with pytest.raises(EvaluationError, match="has no part labels; use a corpus that has them"):
        stored.draw_parts(8, 0)
