"""Encoders on labelled clouds: read through the corpora's door, compared on the same draws."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.corpora.base import CorpusError
from tests.support.models import TINY, tiny_model
from tests.support.training import clouds, train
from trainer.config import EvaluationConfig
from trainer.downstream.baselines.coordinates import coordinate_statistics
from trainer.downstream.clouds import read_clouds
from trainer.downstream.comparison import Evaluator, compare
from trainer.downstream.features import encode, model_encoder, settle_batch_norms
from trainer.engine.events import Evaluated
from trainer.errors import EvaluationError
from trainer.models.layers.pooling import Feature, feature_width


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flat and upright shapes, 40 to train on and 20 to test, as the corpora's npz kind stores them."""
    path = tmp_path_factory.mktemp("labelled") / "shapes.npz"
    points = clouds(60, points=128, seed=3)
    label = np.arange(60) % 3 // 2  # 40 flat, 20 upright
    points[label == 0, :, 2] *= 0.3
    points[label == 1, :, 0] *= 0.3
    split = np.array(["train"] * 40 + ["test"] * 20)
    ids = np.array([f"s{i}" for i in range(60)])
    np.savez(path, points=points, label=label, label_names=np.array(["flat", "upright"]), split=split, ids=ids)
    return path


def _config(path: Path, **settings: Any) -> EvaluationConfig:
    uris = {"train": f"npz:{path}?split=train", "test": f"npz:{path}?split=test"}
    return EvaluationConfig(**{**uris, "stored_points": 128, "points": 64, "seeds": 2, **settings})


def test_every_row_is_scored_on_the_same_draws(labelled: Path) -> None:
    seen: list[list[np.ndarray]] = [[], []]

    def spy(which: int) -> Any:
        def run(points: np.ndarray) -> np.ndarray:
            seen[which].append(points)
            return coordinate_statistics(points)

        return run

    found = compare({"a": spy(0), "b": spy(1)}, _config(labelled))
    assert all(np.array_equal(x, y) for x, y in zip(*seen, strict=True))
    assert found.rows["a"] == found.rows["b"]
    row = found.rows["a"]
    assert len(row.scores) == len(row.c) == found.seeds == 2
    assert row.accuracy == np.mean(row.scores)
    assert row.accuracy > 0.9
    assert (found.classes, found.chance, row.dimensions) == (2, pytest.approx(0.65, abs=0.05), 121)
    assert found.train == {"uri": _config(labelled).train, "shapes": 40, "skipped": 0}
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("names", [("levels", "top"), ("top", "levels")])
def test_a_feature_that_another_contains_is_not_encoded_again_and_is_the_same_one(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[Feature, ...]
) -> None:
    model, cpu, evaluator = tiny_model(seed=5), torch.device("cpu"), Evaluator(_config(labelled))
    alone: dict[str, tuple[Any, list[np.ndarray]]] = {}
    for name in names:
        kept: list[np.ndarray] = []
        keep = lambda name, seed, features, score, kept=kept: kept.append(features)  # noqa: E731
        alone[name] = evaluator.compare({name: model_encoder(model, cpu, name)}, keep=keep).rows[name], kept
    asked: list[str] = []
    encode = type(model).encode

    def spy(self: Any, points: torch.Tensor, feature: Feature) -> torch.Tensor:
        asked.append(feature)
        return encode(self, points, feature)

    monkeypatch.setattr(type(model), "encode", spy)
    together: dict[str, list[np.ndarray]] = {name: [] for name in names}
    encoders = {name: model_encoder(model, cpu, name) for name in names}
    found = evaluator.compare(encoders, keep=lambda name, seed, features, score: together[name].append(features))
    for name in names:
        row, features = alone[name]
        assert found.rows[name] == row
        assert [array.tobytes() for array in together[name]] == [array.tobytes() for array in features]
    assert set(asked) == ({"levels"} if names[0] == "levels" else {"top", "levels"})
    other = model_encoder(tiny_model(seed=6), cpu, "top")
    assert other.columns_in(encoders["levels"]) is None  # another model's features are others


def test_seeds_draw_other_points_and_the_reference_protocol_takes_the_first(labelled: Path) -> None:
    data = read_clouds(f"npz:{labelled}?split=test", points=128)
    one, two = data.draw(64, 0), data.draw(64, 1)
    assert one.shape == (20, 64, 3)
    assert not np.array_equal(one, two)
    assert np.array_equal(one, data.draw(64, 0))
    assert np.abs(one.mean(axis=1)).max() < 1e-6
    assert np.linalg.norm(one, axis=2).max(axis=1) == pytest.approx(np.ones(20), abs=1e-6)
    given: list[np.ndarray] = []

    def spy(points: np.ndarray) -> np.ndarray:
        given.append(points)
        return coordinate_statistics(points)

    found = compare({"x": spy}, _config(labelled, protocol="reference", reference_c=0.5, batch_size=64))
    assert (found.seeds, found.rows["x"].c, found.rows["x"].spread) == (1, (0.5,), 0.0)
    assert np.array_equal(given[1], data.points[:, :64])


def test_a_shape_that_cannot_be_read_is_skipped_and_counted(labelled: Path, tmp_path: Path) -> None:
    with np.load(labelled) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["points"][7] = np.nan
    np.savez(tmp_path / "damaged.npz", **arrays)
    data = read_clouds(f"npz:{tmp_path / 'damaged.npz'}?split=train", points=128)
    assert len(data) == 39
    assert len(data.skipped) == 1
    assert "not finite" in data.skipped[0]
    assert compare({"x": coordinate_statistics}, _config(tmp_path / "damaged.npz")).train["skipped"] == 1


def test_corpora_that_cannot_serve_are_refused(labelled: Path, tmp_path: Path) -> None:
    with np.load(labelled) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "renamed.npz", **(arrays | {"label_names": np.array(["flat", "tall"])}))
    mixed = EvaluationConfig(
        train=f"npz:{labelled}?split=train",
        test=f"npz:{tmp_path / 'renamed.npz'}?split=test",
        stored_points=128,
        points=64,
    )
    with pytest.raises(EvaluationError, match=r"\['tall', 'upright'\] are in only one of them. Use two splits"):
        Evaluator(mixed)
    np.savez(tmp_path / "bare.npz", points=arrays["points"])
    with pytest.raises(EvaluationError, match=r"bare.npz has no labels; an evaluation needs a labelled corpus"):
        read_clouds(f"npz:{tmp_path / 'bare.npz'}", points=128)


def test_statistics_do_not_depend_on_the_order_of_points_and_see_the_shape() -> None:
    points = clouds(6, points=200)
    shuffled = points[:, np.random.default_rng(0).permutation(200)]
    features = coordinate_statistics(points)
    assert features.shape == (6, 121)
    assert np.isfinite(features).all()
    assert coordinate_statistics(shuffled) == pytest.approx(features, abs=1e-5)
    assert np.abs(features - coordinate_statistics(points[:, :, [1, 2, 0]])).max() > 0.05
    collapsed = np.zeros((1, 40, 3), np.float32)
    assert np.isfinite(coordinate_statistics(collapsed)).all()


def test_encoding_is_in_evaluation_mode_in_batches_and_leaves_the_mode_alone() -> None:
    model = tiny_model().train()
    points = clouds(7, points=64)
    encoder = model_encoder(model, torch.device("cpu"))
    whole = encode(encoder, points, batch_size=7)
    parts = encode(encoder, points, batch_size=3)
    assert model.training
    assert whole.shape == (7, 3 * sum(TINY.encoder_dims))
    assert encode(model_encoder(model, torch.device("cpu"), "top"), points, batch_size=4).shape == (
        7,
        TINY.encoder_dims[-1],
    )
    assert parts == pytest.approx(whole, abs=1e-5)  # matrix products of other sizes round otherwise: 1e-7 was seen
    assert all(module.num_batches_tracked == 0 for module in model.modules() if hasattr(module, "num_batches_tracked"))


def test_settled_batch_norms_give_what_training_mode_would_on_the_same_clouds() -> None:
    points = clouds(16, points=64)
    model = tiny_model()
    before = model_encoder(model, torch.device("cpu"))(points)
    settle_batch_norms(model, points, torch.device("cpu"))
    settled = model_encoder(model, torch.device("cpu"))(points)
    with torch.no_grad():
        expected = tiny_model().train().encode(torch.from_numpy(points)).numpy()
    assert settled == pytest.approx(expected, abs=1e-4)  # variances in another order: 2e-6 was seen
    assert np.abs(before - expected).max() > 0.1


def test_a_run_evaluates_while_it_trains_and_after_and_does_not_repeat_it(
    cache: Any, labelled: Path, tmp_path: Path
) -> None:
    events: list[Any] = []
    config = _config(labelled, every=1)
    report = train(cache, tmp_path, epochs=2, evaluation=config, on_event=events.append, tensorboard=True)
    found = [event for event in events if isinstance(event, Evaluated)]
    assert [(event.epoch, event.final) for event in found] == [(1, False), (2, True)]
    assert list(found[0].result["rows"]) == ["trained"]
    assert found[0].result["seeds"] == 1
    assert list(found[1].result["rows"]) == ["coordinates", "untrained", "trained"]
    assert report.evaluation == found[1].result
    rows = report.evaluation["rows"]
    assert [row["feature"] for row in rows.values()] == ["coordinate_statistics", "levels", "levels"]
    assert [row["dimensions"] for row in rows.values()] == [121] + [3 * sum(TINY.encoder_dims)] * 2
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["final"]
    assert content["evaluation"] == report.evaluation
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "evaluation"] == [1, 2]
    events.clear()
    again = train(cache, tmp_path, epochs=2, evaluation=config, on_event=events.append)
    assert not [event for event in events if isinstance(event, Evaluated)]
    assert again.evaluation is not None
    assert again.evaluation == report.evaluation
    # Another evaluation of the finished run is a matter of settings, not of training.
    more = train(cache, tmp_path, epochs=2, evaluation=_config(labelled, seeds=1, baselines=False))
    assert more.evaluation is not None
    assert list(more.evaluation["rows"]) == ["trained"]
    # The reference's protocol is of the reference's feature, baselines included, unless another is asked for.
    for feature, wanted in (("auto", "top"), ("levels", "levels")):
        config = _config(labelled, protocol="reference", feature=feature)
        published = train(cache, tmp_path, epochs=2, evaluation=config).evaluation
        assert published is not None
        assert [published["rows"][name]["feature"] for name in ("untrained", "trained")] == [wanted] * 2
        assert published["rows"]["trained"]["dimensions"] == feature_width(TINY.encoder_dims, wanted)


def test_a_corpus_that_cannot_serve_is_found_before_training(cache: Any, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.npz"):
        train(cache, tmp_path / "run", evaluation=_config(tmp_path / "nowhere.npz"))
    assert not (tmp_path / "run" / "train.jsonl").exists()


def test_evaluating_does_not_disturb_training(cache: Any, labelled: Path, tmp_path: Path) -> None:
    plain = train(cache, tmp_path / "plain")
    watched = train(cache, tmp_path / "watched", evaluation=_config(labelled, every=1))
    name = "model.safetensors"
    assert (plain.checkpoint / name).read_bytes() == (watched.checkpoint / name).read_bytes()
