"""What a fine-tuning run is about: the model, its loss, and how its answers are scored.

The loop knows a Task alone: classes of shapes, or parts of points.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.corpora import identity_hash, open_corpus
from trainer.downstream.clouds import LabelledClouds, check_classes, check_corpora, read_clouds
from trainer.downstream.comparison import SETTLING_CLOUDS
from trainer.downstream.features import ClassifierEncoder, classifier_logits, encode, part_scores_of, settle_by
from trainer.downstream.finetuning.batches import Batch, sampled
from trainer.downstream.finetuning.config import FinetuneConfig, SegmentConfig, TuningConfig
from trainer.downstream.linear_svm import LAYER_FITS, fitted_layer
from trainer.downstream.metrics import (
    PartScores,
    check_categories,
    mean_class_accuracy,
    overall_accuracy,
    part_scores,
    parts_of_categories,
    predict_parts,
    shape_ious,
)
from trainer.downstream.voting import farthest_points
from trainer.engine.watching import Count, Watch
from trainer.errors import EvaluationError
from trainer.models.config import StudentConfig
from trainer.models.heads.build import new_classifier, new_segmenter
from trainer.models.heads.classifier import classification_loss
from trainer.models.heads.part_segmenter import segmentation_loss
from trainer.models.heads.random_inputs import HeadDraws
from trainer.randomness import Purpose

__all__ = ["Classification", "Parts", "Sets", "Task", "View", "read_sets", "size_problems"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The shapes of a run, read once for all its seeds.

    train, test  clouds;  identities  hash of each corpus' identity
    """

    train: LabelledClouds
    test: LabelledClouds
    identities: dict[str, str]


@dataclass(frozen=True)
class View:
    """The clouds that weights are scored on: points [n, N, 3], labels [n], and parts [n, N] of the points."""

    points: np.ndarray
    labels: np.ndarray
    parts: np.ndarray | None = None


class Task(ABC):
    """A model to fine-tune.

    kind       of its checkpoints, and the section of its head's settings
    loss_name  in logs
    model      on the CPU, its weights drawn from the seed
    at_a_time  clouds that are scored together
    later      of weights that are equally good the later ones are chosen
    """

    kind: str
    section: str
    loss_name: str
    model: Any
    head: Any
    at_a_time: int
    later: bool

    @abstractmethod
    def loss(self, batch: Batch, draws: HeadDraws, device: torch.device) -> Tensor:
        """The loss of a batch, mean over its shapes, [] float32."""

    @abstractmethod
    def view(self, clouds: LabelledClouds, rows: np.ndarray) -> View:
        """What of these rows the weights are scored on; nothing in it is random but by the seed."""

    @abstractmethod
    def answers(self, points: np.ndarray, labels: np.ndarray, device: torch.device) -> np.ndarray:
        """What the weights as they are say of some clouds: whole numbers, a row each."""

    @abstractmethod
    def choice(self, answers: np.ndarray, view: View) -> dict[str, float]:
        """Scores to choose weights by, the deciding one first."""

    def prepare(self, model: Any) -> None:  # noqa: B027 - most tasks train every weight
        """Freeze what is not trained."""

    def train_mode(self, model: Any) -> None:
        """Put the model into training mode, but for what is frozen."""
        model.train()

    def begin(  # noqa: B027 - most tasks begin as they are
        self, clouds: LabelledClouds, rows: np.ndarray, device: torch.device, *, scratch: bool, watch: Watch
    ) -> None:
        """Fit what begins fitted, to these rows, before the first step; the model is on the device.

        scratch  its encoder has drawn weights, and no statistics of batch norms.   watch  is told how far it is.
        """


class Classification(Task):
    """Classes of shapes."""

    kind, section, loss_name, at_a_time, later = "classifier", "classifier", "classification", 64, False

    def __init__(self, model: StudentConfig, head: Any, config: FinetuneConfig):
        self.config = config
        self.head = replace(head, hidden=()) if config.protocol == "linear" else head
        self.model = new_classifier(replace(model, drop_path=config.drop_path), self.head)  # type: ignore[call-arg]
        self.model.initialise(torch.Generator().manual_seed(config.seed))

    def prepare(self, model: Any) -> None:
        if self.config.protocol != "full":
            for name, value in model.named_parameters():
                value.requires_grad_(model.in_head(name))

    def train_mode(self, model: Any) -> None:
        model.train()
        if self.config.protocol != "full" and self.config.frozen == "still":
            model.hold_still()

    def begin(
        self, clouds: LabelledClouds, rows: np.ndarray, device: torch.device, *, scratch: bool, watch: Watch
    ) -> None:
        if self.config.head == "new":
            return
        seen, encoder = self.view(clouds, rows), ClassifierEncoder(self.model, device)
        if scratch:
            spread = max(1, len(rows) // SETTLING_CLOUDS)  # rows are often in the order of their classes
            settle_by(self.model, encoder, seen.points[::spread][:SETTLING_CLOUDS])
        encoded = Count(watch, "encoding, to fit the head", "shapes", len(rows))
        features = encode(encoder, seen.points, batch_size=self.at_a_time, progress=encoded.add)
        fitted = Count(watch, "fitting the head", "fits", LAYER_FITS)
        layer = fitted_layer(
            features, seen.labels, classes=self.head.classes, seed=self.config.seed, progress=fitted.add
        )
        last = self.model.cls_head_finetune[-1]
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(layer.weight))
            last.bias.copy_(torch.from_numpy(layer.bias))
        logger.info("head fitted, C = %g, cross-validated accuracy %.1f %%", layer.c, 100 * layer.validation)

    def loss(self, batch: Batch, draws: HeadDraws, device: torch.device) -> Tensor:
        logits = self.model(torch.from_numpy(batch.points).to(device), draws)
        target = torch.from_numpy(batch.labels).to(device)
        return classification_loss(logits, target, smoothing=self.head.label_smoothing)

    def view(self, clouds: LabelledClouds, rows: np.ndarray) -> View:
        """The first `points` farthest points, in the stored order."""
        return View(farthest_points(clouds.points[rows], self.config.points), clouds.labels[rows])

    def answers(self, points: np.ndarray, labels: np.ndarray, device: torch.device) -> np.ndarray:
        found: np.ndarray = classifier_logits(self.model, device)(points).argmax(axis=1)
        return found

    def choice(self, answers: np.ndarray, view: View) -> dict[str, float]:
        return {"accuracy": overall_accuracy(answers, view.labels)}

    def scores(self, answers: np.ndarray, view: View) -> tuple[float, float]:
        """Accuracy over all shapes, and mean over classes."""
        return overall_accuracy(answers, view.labels), mean_class_accuracy(answers, view.labels)


class Parts(Task):
    """Parts of points, as ShapeNetPart is scored: a shape's category is given, and its parts alone can be answered."""

    kind, section, loss_name, at_a_time, later = "segmentation", "segmentation", "segmentation", 16, True

    def __init__(
        self,
        model: StudentConfig,
        head: Any,
        config: SegmentConfig,
        label_names: tuple[str, ...],
        part_names: tuple[str, ...],
    ):
        self.config, self.head, self.label_names = config, head, label_names
        self.parts = parts_of_categories(label_names, part_names)
        self.possible = torch.zeros(len(label_names), len(part_names), dtype=torch.bool)
        for category, numbers in enumerate(self.parts):
            self.possible[category, torch.from_numpy(numbers)] = True
        self.model = new_segmenter(replace(model, drop_path=config.drop_path), head)  # type: ignore[call-arg]
        self.model.initialise(torch.Generator().manual_seed(config.seed))

    def loss(self, batch: Batch, draws: HeadDraws, device: torch.device) -> Tensor:
        assert batch.parts is not None
        points, labels, parts = (torch.from_numpy(x).to(device) for x in (batch.points, batch.labels, batch.parts))
        possible = self.possible.to(device)[labels] if self.config.rivals == "category" else None
        return segmentation_loss(self.model(points, labels, draws), parts, possible)

    def view(self, clouds: LabelledClouds, rows: np.ndarray) -> View:
        """`points` of each shape, drawn once by the seed, as they are."""
        assert clouds.part_labels is not None
        points, parts = sampled(clouds.points[rows], clouds.part_labels[rows], rows, self.config, 0, Purpose.SUBSET)
        return View(points, clouds.labels[rows], parts)

    def answers(self, points: np.ndarray, labels: np.ndarray, device: torch.device) -> np.ndarray:
        return predict_parts(part_scores_of(self.model, device)(points, labels), labels, self.parts)

    def choice(self, answers: np.ndarray, view: View) -> dict[str, float]:
        assert view.parts is not None
        ious = shape_ious(answers, view.parts, view.labels, parts=self.parts)
        of_each = [ious[view.labels == label].mean() for label in np.unique(view.labels)]
        return {
            "instance": float(ious.mean()),
            "classes": float(np.mean(of_each)),  # over the categories that have a shape here
            "accuracy": float(np.mean(answers == view.parts)),
        }

    def scores(self, answers: np.ndarray, view: View) -> PartScores:
        """All scores of the field."""
        assert view.parts is not None
        return part_scores(answers, view.parts, view.labels, label_names=self.label_names, parts=self.parts)


def size_problems(config: TuningConfig, head: Any) -> Iterator[str]:
    """Yield what the corpora's classes and parts contradict in the head's settings, without reading a shape."""
    corpus = open_corpus(config.train, points=config.stored_points)
    if isinstance(config, FinetuneConfig):
        asked: Mapping[str, tuple[str, int]] = {"classes": ("classes", len(corpus.label_names))}
        section = "classifier"
    else:
        asked = {"categories": ("categories", len(corpus.label_names)), "parts": ("parts", len(corpus.part_names))}
        section = "segmentation"
    for name, (what, there) in asked.items():
        if getattr(head, name) != there:
            yield f"{section}.{name} = {getattr(head, name)}; {config.train} has {there} {what}"


def read_sets(config: TuningConfig, *, progress: Any = None) -> Sets:
    """Read both corpora. progress is told 1 for every shape.

    Raises EvaluationError for classes or parts that differ, and where parts are asked for and not there; CorpusError
    for a corpus that does not open.
    """
    check_corpora(config.train, config.test, points=config.stored_points)
    opened = {name: open_corpus(getattr(config, name), points=config.stored_points) for name in ("train", "test")}
    wanted = isinstance(config, SegmentConfig)
    if wanted:
        names = [tuple(corpus.part_names) for corpus in opened.values()]
        if names[0] != names[1]:
            raise EvaluationError(
                f"the parts of {config.train} and {config.test} differ. Name two splits of one corpus."
            )
        for name, corpus in opened.items():
            if not corpus.part_names:
                raise EvaluationError(
                    f"{getattr(config, name)} has no part labels; name a corpus that has, or say parts= "
                    "(docs/corpora.md)"
                )
        parts_of_categories(opened["train"].label_names, names[0])
    found = {}
    for name in opened:
        uri = getattr(config, name)
        found[name] = read_clouds(uri, points=config.stored_points, frame=config.frame, progress=progress)
        if wanted:
            _check_parts(found[name])
    check_classes(found["train"], found["test"])
    if wanted:
        check_categories(found["test"].labels, found["test"].label_names)
    return Sets(**found, identities={name: identity_hash(corpus.identity) for name, corpus in opened.items()})


def _check_parts(clouds: LabelledClouds) -> None:
    """Raise EvaluationError for a shape with a point of another category's part, before hours of training."""
    if clouds.part_labels is None:
        raise EvaluationError(f"{clouds.uri} has shapes without part labels; every shape needs them")
    owner = np.full(len(clouds.part_names), -1)
    for label, numbers in enumerate(parts_of_categories(clouds.label_names, clouds.part_names)):
        owner[numbers] = label
    wrong = np.flatnonzero((owner[clouds.part_labels] != clouds.labels[:, None]).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        raise EvaluationError(
            f"{clouds.uri}: {len(wrong)} shapes have parts of another category, first {clouds.ids[row]} of "
            f"{clouds.label_names[clouds.labels[row]]!r}"
        )
