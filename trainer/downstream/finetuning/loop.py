"""Fine-tuning of a classifier: epochs of steps, the choice of the weights, and an exact way back in.

As in pre-training a run follows from its settings, its corpora, the weights it starts from and the seed; a checkpoint
after an epoch holds all there is, so a stopped run resumes with the same bytes as an uninterrupted one.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.corpora import identity_hash, open_corpus
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.files import Header
from trainer.checkpoints.models import changed_settings, refuse_other_run, sections_of, software_versions
from trainer.checkpoints.transfer import load_pretrained_encoder
from trainer.downstream.clouds import LabelledClouds, check_classes, check_corpora, read_clouds
from trainer.downstream.features import classifier_logits
from trainer.downstream.finetuning.batches import batches
from trainer.downstream.finetuning.config import FinetuneConfig
from trainer.downstream.linear_svm import fold_numbers
from trainer.downstream.metrics import mean_class_accuracy, overall_accuracy
from trainer.downstream.voting import farthest_points
from trainer.engine.events import CheckpointWritten, EpochDone, Event, EventLog, RunEnded, RunStarted, StepDone
from trainer.engine.ranks import Ranks, deterministic, joined
from trainer.engine.run_directory import owned, write_json
from trainer.engine.schedule import learning_rate
from trainer.engine.update import Updates
from trainer.errors import CheckpointError, EvaluationError, TrainingError
from trainer.models.config import StudentConfig
from trainer.models.heads.build import new_classifier
from trainer.models.heads.classifier import classification_loss
from trainer.models.heads.random_inputs import HeadDraws

__all__ = ["FinetuneReport", "Sets", "finetune", "read_sets"]

logger = logging.getLogger(__name__)

EVALUATED = 64  # clouds at a time
LOSS = "classification"
BEST = "best"  # folder of the weights that `select` chose so far
# Settings that may change when a run resumes.
_FREE = {
    f"finetune.{name}"
    for name in ("device", "checkpoint_every", "keep_checkpoints", "milestone_every", "tensorboard", "deterministic")
}


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The shapes of a run, read once for all its seeds.

    train, test  clouds;  identities  hash of each corpus' identity
    """

    train: LabelledClouds
    test: LabelledClouds
    identities: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What became of a run; accuracies 0..1.

    checkpoint  whose weights were scored, of epoch `chosen`
    accuracy, class_accuracy  on the test split: of all shapes, and the mean over classes
    validation  its accuracy on the held-out part; None without one
    shapes, step  of the test split, and what one of them is worth
    resumed_from  epochs that were done before this call;  seconds  of this call
    """

    run_dir: Path
    checkpoint: Path
    chosen: int
    accuracy: float
    class_accuracy: float
    validation: float | None
    shapes: int
    step: float
    resumed_from: int
    seconds: float


def read_sets(config: FinetuneConfig, *, progress: Callable[[int], None] | None = None) -> Sets:
    """Read both corpora. Raises EvaluationError for classes that differ, CorpusError for one that does not open."""
    check_corpora(config.train, config.test, points=config.stored_points)
    parts, identities = [], {}
    for name in ("train", "test"):
        uri = getattr(config, name)
        identities[name] = identity_hash(open_corpus(uri, points=config.stored_points).identity)
        parts.append(read_clouds(uri, points=config.stored_points, frame=config.frame, progress=progress))
    check_classes(*parts)
    return Sets(train=parts[0], test=parts[1], identities=identities)


def finetune(
    sets: Sets,
    run_dir: str | Path,
    *,
    model: StudentConfig,
    classifier: Any,
    config: FinetuneConfig,
    start: tuple[str, Mapping[str, Tensor]] | None,
    source: str = "",
    on_event: Callable[[Event], None] | None = None,
) -> FinetuneReport:
    """Fine-tune a classifier, or resume the run in `run_dir`.

    sets    of `read_sets(config)`.
    model   sizes of the encoder; its drop path is replaced by config.drop_path.   classifier  of its architecture.
    start   (hash of the weights' file, its tensors) of a checkpoint whose encoder is taken over; None: from scratch,
            all weights drawn from config.seed.
    source  where `start` came from, for messages.

    One process; a run that is complete already is only scored. Raises ValueError for settings with problems,
    CheckpointError for a directory with another run and for weights that do not fit, EvaluationError for too few
    shapes, TrainingError where the loss stops being finite or several processes were started.
    """
    problems = [f"finetune.{text}" for text in config.problems()]
    problems += [f"classifier.{text}" for text in classifier.problems()]
    if classifier.classes != len(sets.train.label_names):
        problems.append(
            f"classifier.classes = {classifier.classes}; {config.train} has {len(sets.train.label_names)} classes"
        )
    if start is None and config.protocol != "full":
        problems.append(f'finetune.protocol = "{config.protocol}" trains a head on an untrained encoder')
    if problems:
        raise ValueError("\n  ".join((f"{len(problems)} problems in the settings", *problems)))
    with joined(config.device) as ranks, deterministic(config.deterministic, ranks):
        if ranks.size > 1:
            raise TrainingError("fine-tuning runs in one process; start it without torchrun")
        with owned(Path(run_dir), ranks, _settle):
            run = _Run(sets, Path(run_dir), model, classifier, config, start, source, ranks)
            return run.go(on_event)


class _Run:
    """The state of one call of finetune."""

    def __init__(
        self,
        sets: Sets,
        run_dir: Path,
        model: StudentConfig,
        classifier: Any,
        config: FinetuneConfig,
        start: tuple[str, Mapping[str, Tensor]] | None,
        source: str,
        ranks: Ranks,
    ) -> None:
        self.sets, self.run_dir, self.config, self.ranks = sets, run_dir, config, ranks
        if config.protocol == "linear":
            classifier = replace(classifier, hidden=())
        model = replace(model, drop_path=config.drop_path)  # type: ignore[call-arg]
        self.classifier = classifier
        self.sections = sections_of(model=model, classifier=classifier, finetune=config)
        self.identity = {**sets.identities, "start": "none" if start is None else start[0]}
        self.model = new_classifier(model, classifier)
        self.model.initialise(torch.Generator().manual_seed(config.seed))
        if start is not None:
            try:
                load_pretrained_encoder(self.model, start[1], source=source)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        if config.protocol != "full":
            for name, value in self.model.named_parameters():
                value.requires_grad_(self.model.in_head(name))
        self.model.to(ranks.device)
        self.updates = Updates(self.model, config, ranks)
        self.names: dict[Tensor, str] = {value: name for name, value in self.model.named_parameters()}
        rows = np.arange(len(sets.train))
        held_out = np.zeros(len(rows), bool)
        if config.select == "validation":
            held_out = fold_numbers(sets.train.labels, config.validation_folds, config.seed) == 0
        self.rows, self.held_out = rows[~held_out], rows[held_out]
        self.steps = len(self.rows) // config.batch_size
        if not self.steps or (config.select == "validation" and not len(self.held_out)):
            raise EvaluationError(
                f"{config.train} has {len(self.rows)} shapes to train on and {len(self.held_out)} held out; expected "
                f"at least one batch of {config.batch_size}, and one held-out shape where finetune.select needs it"
            )
        self.epoch = 0
        self.metrics: dict[str, Any] = {}
        self._views: dict[str, np.ndarray] = {}

    def go(self, on_event: Callable[[Event], None] | None) -> FinetuneReport:
        """Resume if there is something to resume, train, score, report."""
        began, config = time.perf_counter(), self.config
        self._resume()
        resumed_from, step = self.epoch, self.epoch * self.steps
        with EventLog(self.run_dir, step=step, tensorboard=config.tensorboard, on_event=on_event) as emit:
            emit(
                RunStarted(
                    epoch=self.epoch, step=step, epochs=config.epochs, steps_per_epoch=self.steps,
                    records=len(self.rows), batch_size=config.batch_size,
                    parameters=sum(p.numel() for p in self.updates.parameters), ranks=1,
                    device=str(self.ranks.device), resumed=resumed_from > 0,
                )
            )  # fmt: skip
            while self.epoch < config.epochs:
                self._train_epoch(emit)
                self._select()
                if self.epoch % config.checkpoint_every == 0 or self.epoch == config.epochs:
                    self._checkpoint(emit)
            report = self._score(resumed_from, began)
            emit(RunEnded(epoch=self.epoch, step=self.epoch * self.steps, seconds=report.seconds))
        return report

    def _resume(self) -> None:
        found = checkpoint.latest(self.run_dir)
        if found is None:
            return
        header = checkpoint.read_header(found)
        if header.kind != "classifier":
            refuse_other_run(found, [f"it is of kind {header.kind}"])
        then = {**header.config, "corpora and start": header.cache}
        now = {**self.sections, "corpora and start": self.identity}
        refuse_other_run(found, changed_settings(then, now, free=_FREE))
        checkpoint.restore_training(found, header, self.model, self.updates.optimizer, self.updates.scaler)
        self.epoch, self.metrics = header.epoch, dict(header.metrics)
        self._forget_others()
        logger.info("resuming from %s, %d of %d epochs done", found, header.epoch, self.config.epochs)

    def _train_epoch(self, emit: Callable[[Event], None]) -> None:
        config, began = self.config, time.perf_counter()
        self.model.train()
        if config.protocol != "full" and config.frozen == "still":
            self.model.hold_still()
        totals = np.zeros(2)
        rate = waited_in_all = 0.0
        asked = time.perf_counter()
        for index, batch in enumerate(batches(self.sets.train, self.rows, config, self.epoch)):
            waited = time.perf_counter() - asked
            rate = learning_rate(config, self.epoch, index, self.steps)
            loss, norm = self._step(batch.rows, batch.points, batch.labels, rate)
            if not self.updates.is_finite([loss], norm):
                ids = ", ".join(self.sets.train.ids[row] for row in batch.rows[:4])
                raise TrainingError(
                    f"the loss is {loss}, the gradient norm {norm}, in step {index + 1} of epoch {self.epoch + 1} at "
                    f"learning rate {rate:.3g}; shapes {ids}, ... Lower finetune.learning_rate."
                )
            totals += loss, norm
            waited_in_all += waited
            step = self.epoch * self.steps + index + 1
            emit(
                StepDone(
                    epoch=self.epoch, step=step, losses={LOSS: loss}, learning_rate=rate, gradient_norm=norm,
                    seconds=time.perf_counter() - asked, waited=waited,
                )
            )  # fmt: skip
            asked = time.perf_counter()
        loss, norm = (totals / self.steps).tolist()
        self.epoch += 1
        self.metrics = {**self.metrics, "loss": loss, "learning_rate": rate}
        seconds = time.perf_counter() - began
        emit(
            EpochDone(
                epoch=self.epoch, step=self.epoch * self.steps, losses={LOSS: loss}, learning_rate=rate,
                gradient_norm=norm, seconds=seconds, waited=waited_in_all,
                shapes_per_second=self.steps * config.batch_size / seconds,
            )
        )  # fmt: skip

    def _step(self, rows: np.ndarray, points: np.ndarray, labels: np.ndarray, rate: float) -> tuple[float, float]:
        device = self.ranks.device
        draws = HeadDraws.for_records(rows, self.model.model, seed=self.config.seed, epoch=self.epoch).to(device)
        cloud, target = torch.from_numpy(points).to(device), torch.from_numpy(labels).to(device)
        self.updates.begin()
        with self.updates.autocast():
            logits = self.model(cloud, draws)
            loss = classification_loss(logits, target, smoothing=self.classifier.label_smoothing)
        self.updates.backward(loss)
        norm = self.updates.take(rate)
        return float(loss.detach()), float(norm)

    def _select(self) -> None:
        """After an epoch: keep its weights where they are the best so far by what `select` names."""
        select = self.config.select
        if select == "last":
            return
        answers = self._answers("held out" if select == "validation" else "test")
        labels = self.sets.train.labels[self.held_out] if select == "validation" else self.sets.test.labels
        accuracy = overall_accuracy(answers, labels)
        self.metrics[f"{select}_accuracy"] = accuracy
        if accuracy > self.metrics.get(f"best_{select}_accuracy", -1.0):
            self.metrics |= {f"best_{select}_accuracy": accuracy, "best_epoch": self.epoch}
            self._write_best()

    def _write_best(self) -> None:
        """Write the weights as BEST/epoch-NNNN, then remove the earlier ones; a resumed run may write them again."""
        header = self._header()
        target = self.run_dir / BEST / header.name
        if target.exists():  # of an epoch that is done again: the first time its checkpoint was not reached
            shutil.rmtree(target)
        checkpoint.write_checkpoint_at(target, header, self.model.state_dict(), None)

    def _header(self) -> Header:
        scaler = self.updates.scaler
        return Header(
            epoch=self.epoch, step=self.epoch * self.steps, config=self.sections, cache=self.identity, teacher={},
            metrics=self.metrics, loss_scale=None if scaler is None else scaler.state_dict(),
            versions=software_versions(), kind="classifier",
        )  # fmt: skip

    def _checkpoint(self, emit: Callable[[Event], None]) -> None:
        optimizer = checkpoint.flatten_optimizer(self.updates.optimizer, self.names)
        path = checkpoint.write_checkpoint(self.run_dir, self._header(), self.model.state_dict(), optimizer)
        checkpoint.prune(self.run_dir, keep=self.config.keep_checkpoints, milestone_every=self.config.milestone_every)
        # Only now: until this checkpoint existed, a resumed run would have needed the earlier best.
        self._forget_others()
        emit(CheckpointWritten(epoch=self.epoch, step=self.epoch * self.steps, path=str(path)))

    def _forget_others(self) -> None:
        """Remove all weights from BEST but those that the metrics name."""
        kept = f"epoch-{self.metrics['best_epoch']:04d}" if "best_epoch" in self.metrics else ""
        for old in (self.run_dir / BEST).glob("epoch-*"):
            if old.name != kept:
                shutil.rmtree(old)

    def _score(self, resumed_from: int, began: float) -> FinetuneReport:
        """Score the chosen weights on the test split, and leave metrics.json."""
        last = checkpoint.latest(self.run_dir)
        assert last is not None
        chosen, at = self.epoch, last
        if self.config.select != "last":
            chosen = int(self.metrics["best_epoch"])
            at = self.run_dir / BEST / f"epoch-{chosen:04d}"
            header = checkpoint.read_header(at)
            self.model.load_state_dict(checkpoint.read_tensors(at, header, checkpoint.MODEL))
        answers, labels = self._answers("test"), self.sets.test.labels
        report = FinetuneReport(
            run_dir=self.run_dir,
            checkpoint=at,
            chosen=chosen,
            accuracy=overall_accuracy(answers, labels),
            class_accuracy=mean_class_accuracy(answers, labels),
            validation=self.metrics.get("best_validation_accuracy"),
            shapes=len(labels),
            step=1 / len(labels),
            resumed_from=resumed_from,
            seconds=time.perf_counter() - began,
        )
        noted = {**asdict(report), "checkpoint": str(at.relative_to(self.run_dir))}
        for volatile in ("run_dir", "resumed_from", "seconds"):
            del noted[volatile]
        write_json(self.run_dir / "result.json", {**noted, "settings": json.loads(json.dumps(asdict(self.config)))})
        return report

    def _answers(self, part: str) -> np.ndarray:
        """Labels that the weights as they are give: the first `points` farthest points, in the stored order."""
        if part not in self._views:
            clouds = self.sets.test.points if part == "test" else self.sets.train.points[self.held_out]
            self._views[part] = farthest_points(clouds, self.config.points)
        logits, points = classifier_logits(self.model, self.ranks.device), self._views[part]
        found = [logits(points[start : start + EVALUATED]) for start in range(0, len(points), EVALUATED)]
        return np.concatenate(found).argmax(axis=1)


def _settle(run_dir: Path) -> None:
    """Put the checkpoints of a run that was stopped in order."""
    checkpoint.clean_leftovers(run_dir)
    checkpoint.set_damaged_aside(run_dir)
    for leftover in (run_dir / BEST).glob(".writing-*"):
        shutil.rmtree(leftover)
