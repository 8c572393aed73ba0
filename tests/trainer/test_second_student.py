"""A second student, made here, is trained, checkpointed, resumed and evaluated by what all students share.

So whatever the loop, the loader, checkpoints and evaluation ask of a student is in `trainer.models.student`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cli.experiment.toml import ConfigError, load_experiment
from tests.support.training import second_cache, train, weights_of
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.models import load_encoder, load_model
from trainer.config import AlignmentConfig, EvaluationConfig
from trainer.downstream.inspection import inspect_shapes
from trainer.engine.events import StepDone
from trainer.errors import CheckpointError, DataError, EvaluationError, TrainingError
from trainer.losses.terms import Losses, LossTerm
from trainer.models import build, config
from trainer.models.build import STUDENTS
from trainer.models.config import ARCHITECTURES, MaskingConfig, ModelConfig, RandomNumbers, StudentConfig
from trainer.models.layers.pooling import Feature
from trainer.models.student import Further, Student


@dataclass(frozen=True, kw_only=True)
class TwoLayerConfig(StudentConfig):
    """As many slots as a cloud must have points; one residual branch."""

    architecture: str = "two-layer"
    slots: int = 40
    width: int = 12

    @property
    def least_points(self) -> int:
        return self.slots

    @property
    def least_points_reason(self) -> str:
        return f"model.slots = {self.slots}"

    @property
    def random_numbers(self) -> RandomNumbers:
        return RandomNumbers(mask=self.slots, drop_path=1)

    def problems(self) -> Iterator[str]:
        if self.slots < 2:
            yield f"slots = {self.slots} is smaller than 2"


class Points(NamedTuple):
    seen: Tensor  # [B, K, 3]
    hidden: Tensor  # [B, slots - K, 3]


class Middle(NamedTuple):
    middle: Tensor  # [B, 3]
    whole: Tensor | None


class TwoLayer(Student):
    """Predicts the mean of the hidden slots from the visible ones; a loss that no other student has beside it."""

    def __init__(
        self, model: Any, masking: MaskingConfig, *, teacher_channels: int, views: int = 3, whole: bool = False
    ):
        super().__init__(model, masking, teacher_channels=teacher_channels, views=views, whole=whole)
        self.config, self.masking, self.teacher_channels, self.views = model, masking, teacher_channels, views
        self.first, self.second = nn.Linear(3, model.width), nn.Linear(model.width, model.width)
        self.head = nn.Linear(model.width, 3)
        self.answer = nn.Linear(model.width, views * teacher_channels) if whole else None
        self.initialise()

    @property
    def features(self) -> dict[Feature, int]:
        return {"top": self.config.width}  # type: ignore[attr-defined]

    def initialise(self, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))

    @torch.no_grad()
    def plan(self, points: Tensor, points_canonical: Tensor, maps: Any, draws: Any) -> Points:
        slots = self.config.least_points
        assert draws.mask.shape == (len(points), slots)
        assert draws.drop_path.shape == (len(points), 1)
        order = draws.mask.argsort(1)[:, :, None].expand(-1, -1, 3)
        mixed = points[:, :slots].gather(1, order)
        visible = self.masking.visible(slots)
        return Points(mixed[:, :visible], mixed[:, visible:])

    def _pooled(self, points: Tensor, drop_path: Tensor | None) -> Tensor:
        x = torch.relu(self.first(points))
        branch = self.second(x)
        if drop_path is not None and self.training:
            branch = branch * (drop_path < 0.9)[:, :, None]
        return (x + branch).amax(1)

    def network(self, plan: Points, drop_path: Tensor | None) -> Middle:
        pooled = self._pooled(plan.seen, drop_path)
        return Middle(self.head(pooled), None if self.answer is None else self.answer(pooled))

    def losses(self, plan: Points, prediction: Middle) -> Losses:
        apart = (prediction.middle.float() - plan.hidden.mean(1)).square().sum()
        counts = self.loss_counts(plan)
        size = prediction.middle.float().square().sum()
        return {"middle": LossTerm(apart, counts["middle"]), "size": LossTerm(size, counts["size"])}

    def loss_counts(self, plan: Points) -> dict[str, Tensor]:
        shapes = torch.tensor(float(len(plan.seen)), device=plan.seen.device)
        return {"middle": shapes, "size": 3 * shapes}

    def encode(self, points: Tensor, feature: Feature = "levels") -> Tensor:
        if feature not in self.features:
            raise ValueError(f"feature is {feature!r}; expected one of {', '.join(self.features)}")
        return self._pooled(points, None)


MODEL = TwoLayerConfig()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.ARCHITECTURES, "two-layer", TwoLayerConfig)
    monkeypatch.setitem(build.STUDENTS, "two-layer", TwoLayer)


class Stopped(Exception):
    pass


def stop_after_five(event: Any) -> None:
    if isinstance(event, StepDone) and event.step == 5:
        raise Stopped


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_it_trains_and_resumes_within_an_epoch_to_the_same_bytes(cache: Any, tmp_path: Path, weight: float) -> None:
    chosen: Any = {"model": MODEL, "epochs": 3, "checkpoint_steps": 1, "accumulation": 2}
    chosen["alignment"] = AlignmentConfig(weight=weight)
    whole = train(cache, tmp_path / "whole", **chosen)
    with pytest.raises(Stopped):
        train(cache, tmp_path / "run", **chosen, on_event=stop_after_five)
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    under_way = checkpoint.read_header(found).under_way
    assert under_way is not None
    names = {"loss_middle", "loss_size"} | ({"loss_global"} if weight else set())
    assert set(under_way["totals"]) == names | {"gradient_norm"}
    again = train(cache, tmp_path / "run", **chosen)
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.HEADER):
        assert (again.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes(), name
    assert set(again.metrics) == names | {"learning_rate"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert len(steps) == 9
    assert all(line["loss_middle"] > 0 and line["loss_size"] > 0 for line in steps)
    assert "loss_3d" not in steps[0]


def test_its_checkpoint_is_loaded_as_what_it_is_and_encodes(cache: Any, tmp_path: Path) -> None:
    report = train(cache, tmp_path, model=MODEL, epochs=1)
    model, header = load_model(tmp_path)
    assert isinstance(model, TwoLayer)
    assert header.config["model"] == {"architecture": "two-layer", "slots": 40, "width": 12}
    assert load_encoder(report.checkpoint).encode(torch.rand(2, 50, 3), "top").shape == (2, 12)
    with pytest.raises(CheckpointError, match=r"model\.architecture was 'two-layer', is now absent"):
        train(cache, tmp_path, epochs=2)


def test_it_is_evaluated_and_a_feature_it_lacks_is_refused_before_training(cache: Any, tmp_path: Path) -> None:
    settings = EvaluationConfig(
        train="synthetic:?count=32&seed=1&split=train", test="synthetic:?count=16&seed=1&split=test",
        stored_points=96, points=96, seeds=1, feature="top",
    )  # fmt: skip
    report = train(cache, tmp_path / "run", model=MODEL, epochs=1, evaluation=settings)
    assert report.evaluation is not None
    assert list(report.evaluation["rows"]) == ["coordinates", "untrained", "trained"]
    assert report.evaluation["rows"]["trained"]["dimensions"] == 12
    with pytest.raises(EvaluationError, match=r"two-layer student has no feature 'levels'; it has top"):
        train(cache, tmp_path / "other", model=MODEL, evaluation=replace(settings, feature="levels"))
    assert checkpoint.latest(tmp_path / "other") is None


def test_what_it_does_not_show_is_said(cache: Any, tmp_path: Path) -> None:
    report = train(cache, tmp_path, model=MODEL, epochs=1)
    rows = np.array([0, 7])
    found = inspect_shapes(load_encoder(report.checkpoint), cache.read(rows), rows, image_side=cache.schema.image_side)
    assert found.reasons.keys() == {"levels", "groups", "features"}
    assert all("the two-layer student does not say" in reason for reason in found.reasons.values())
    for shape in found.shapes:
        assert shape.levels is shape.groups is shape.features is None
        assert shape.teacher.shape == (len(shape.points), cache.schema.channels)


def test_its_least_points_are_its_own(cache: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"96 points of each shape, and model\.slots = 97 needs at least 97"):
        train(cache, tmp_path, model=replace(MODEL, slots=97))


def test_the_seed_draws_its_weights_and_random_numbers(cache: Any, tmp_path: Path) -> None:
    runs = [train(cache, tmp_path / str(i), model=MODEL, epochs=1, seed=seed) for i, seed in enumerate((3, 3, 4))]
    assert weights_of(runs[0]) == weights_of(runs[1])
    assert weights_of(runs[0]) != weights_of(runs[2])


def test_an_experiment_names_it() -> None:
    chosen = ["model.architecture=two-layer", "model.slots=50"]
    file = load_experiment("study", ["evaluation.feature=top"])
    assert isinstance(file.model, ModelConfig)
    assert load_experiment("study", chosen).model == TwoLayerConfig(slots=50)  # nothing is left of the preset's [model]
    with pytest.raises(ConfigError, match=r"model\.groups is not a setting"):
        load_experiment("study", [*chosen, "model.groups=[9, 8]"])
    known = "hierarchical, plain, two-layer"
    with pytest.raises(ConfigError, match=rf"model\.architecture = 'three-layer' is none of {known}"):
        load_experiment("study", ["model.architecture=three-layer"])


def test_every_architecture_has_settings_and_a_student() -> None:
    assert set(ARCHITECTURES) == set(STUDENTS)
    assert all(settings().architecture == name for name, settings in ARCHITECTURES.items())


def test_it_learns_from_one_mask_a_shape(cache: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"'two-layer' learns from one mask .* masking\.per_shape = 3"):
        train(cache, tmp_path, model=MODEL, masking=MaskingConfig(per_shape=3))


def test_it_learns_from_one_teacher_alone(cache: Any, tmp_path: Path) -> None:
    further = [second_cache(tmp_path / "second")]
    with pytest.raises(TrainingError, match="'two-layer' learns from one teacher, and 2 are given"):
        train(cache, tmp_path / "run", model=MODEL, further=further)
    sizes = {"channels": 6, "views": 3, "further": [Further(5, 3, True, True)._asdict()]}
    with pytest.raises(ValueError, match="learns from one teacher; 2 given"):
        build.new_student(MODEL, MaskingConfig(), sizes, seed=0)
