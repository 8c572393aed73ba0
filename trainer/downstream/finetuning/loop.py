"""Fine-tuning of a classifier or part segmenter: epochs of steps, the choice of the weights, and an exact way back in.

As in pre-training a run follows from its settings, its corpora, the weights it starts from and the seed; a checkpoint
after an epoch holds all there is, so that a run which was stopped goes on as if nothing had happened, to the byte.
Ranks and accumulated parts share the batches: a step's gradient is the whole batch's, however it is cut.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.files import Header
from trainer.checkpoints.models import changed_settings, refuse_other_run, sections_of, software_versions
from trainer.checkpoints.transfer import load_pretrained_encoder
from trainer.downstream.finetuning.batches import Batch, batches
from trainer.downstream.finetuning.config import FinetuneConfig, SegmentConfig, TuningConfig
from trainer.downstream.finetuning.tasks import Classification, Parts, Sets, Task, View, read_sets, size_problems
from trainer.downstream.linear_svm import fold_numbers
from trainer.downstream.metrics import PartScores
from trainer.engine.events import (
    CheckpointWritten,
    EpochDone,
    Event,
    EventLog,
    RunEnded,
    RunStarted,
    StepDone,
    Working,
)
from trainer.engine.ranks import Ranks, deterministic, joined
from trainer.engine.run_directory import owned, write_json
from trainer.engine.schedule import learning_rate
from trainer.engine.update import Updates
from trainer.errors import CheckpointError, EvaluationError, TrainingError
from trainer.models.config import StudentConfig
from trainer.models.heads.fine_tuned import HeadConfig
from trainer.models.heads.random_inputs import HeadDraws

__all__ = ["FinetuneReport", "SegmentReport", "Sets", "finetune", "read_sets", "segment", "settings_problems"]

logger = logging.getLogger(__name__)

BEST = "best"  # folder of the weights that `select` chose so far
# Settings that may change when a run resumes.
_FREE = {
    f"finetune.{name}"
    for name in ("device", "checkpoint_every", "keep_checkpoints", "milestone_every", "tensorboard", "deterministic")
}


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


@dataclass(frozen=True, kw_only=True)
class SegmentReport:
    """What became of a run; scores 0..1.

    checkpoint  whose weights were scored, of epoch `chosen`
    scores      of these weights on the test split
    best        with select "test": the largest instance and class mIoU and accuracy over epochs, each by itself, which
                is what the field prints beside one another; empty otherwise
    validation  instance mIoU on the held-out part; None without one
    shapes, step  of the test split, and what one of them is worth in instance mIoU
    resumed_from  epochs that were done before this call;  seconds  of this call
    """

    run_dir: Path
    checkpoint: Path
    chosen: int
    scores: PartScores
    best: dict[str, float]
    validation: float | None
    shapes: int
    step: float
    resumed_from: int
    seconds: float


def settings_problems(config: TuningConfig, head: HeadConfig, model: StudentConfig, *, scratch: bool) -> list[str]:
    """List what is wrong with a run's settings, corpora's classes and parts included; no shape is read.

    Raises CorpusError for a corpus that does not open.
    """
    section = "segmentation" if isinstance(config, SegmentConfig) else "classifier"
    problems = [f"finetune.{text}" for text in config.problems()]
    problems += [f"{section}.{text}" for text in (*head.problems(), *head.conflicts(model))]
    if not problems and head.least_points(model) > config.points:
        problems.append(
            f"finetune.points = {config.points} is less than the {head.least_points(model)} that the encoder needs"
        )
    if isinstance(config, FinetuneConfig) and config.head == "fitted":
        hidden: tuple[int, ...] = getattr(head, "hidden", ())
        if config.protocol != "linear" and hidden:
            problems.append('finetune.head = "fitted" is of one linear layer; set classifier.hidden = []')
    if scratch and isinstance(config, FinetuneConfig) and config.protocol != "full":
        problems.append(f'finetune.protocol = "{config.protocol}" trains a head on an untrained encoder')
    return problems or list(size_problems(config, head))


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

    Under torchrun every rank calls this with the same arguments and has the same report. A run that is complete already
    is only scored. Raises ValueError for settings with problems, CheckpointError for a directory with another run and
    for weights that do not fit, EvaluationError for too few shapes, TrainingError where the loss stops being finite or
    a batch does not divide among ranks.
    """
    _refuse(settings_problems(config, classifier, model, scratch=start is None))
    with _run(lambda: Classification(model, classifier, config), sets, run_dir, config, start, source) as run:
        made = run.go(on_event)
        task = run.task
        assert isinstance(task, Classification)
        accuracy, class_accuracy = task.scores(made.answers, made.view)
        report = FinetuneReport(
            run_dir=run.run_dir,
            checkpoint=made.checkpoint,
            chosen=made.chosen,
            accuracy=accuracy,
            class_accuracy=class_accuracy,
            validation=run.metrics.get("best_validation_accuracy"),
            shapes=len(made.view.labels),
            step=1 / len(made.view.labels),
            resumed_from=made.resumed_from,
            seconds=made.seconds,
        )
        run.note(report)
    return report


def segment(
    sets: Sets,
    run_dir: str | Path,
    *,
    model: StudentConfig,
    segmentation: Any,
    config: SegmentConfig,
    start: tuple[str, Mapping[str, Tensor]] | None,
    source: str = "",
    on_event: Callable[[Event], None] | None = None,
) -> SegmentReport:
    """Fine-tune a part segmenter, or go on with the run that lies in `run_dir`. Arguments and errors as `finetune`."""
    _refuse(settings_problems(config, segmentation, model, scratch=start is None))

    def task() -> Parts:
        return Parts(model, segmentation, config, sets.train.label_names, sets.train.part_names)

    with _run(task, sets, run_dir, config, start, source) as run:
        made = run.go(on_event)
        assert isinstance(run.task, Parts)
        best = [name for name in ("instance", "classes", "accuracy") if f"best_test_{name}" in run.metrics]
        report = SegmentReport(
            run_dir=run.run_dir,
            checkpoint=made.checkpoint,
            chosen=made.chosen,
            scores=run.task.scores(made.answers, made.view),
            best={name: run.metrics[f"best_test_{name}"] for name in best},
            validation=run.metrics.get("best_validation_instance"),
            shapes=len(made.view.labels),
            step=1 / len(made.view.labels),
            resumed_from=made.resumed_from,
            seconds=made.seconds,
        )
        run.note(report)
    return report


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n  ".join((f"{len(problems)} problems in the settings", *problems)))


@contextmanager
def _run(
    task: Callable[[], Task],
    sets: Sets,
    run_dir: str | Path,
    config: TuningConfig,
    start: tuple[str, Mapping[str, Tensor]] | None,
    source: str,
) -> "Iterator[_Run]":
    """A run in its directory, which no other process may use meanwhile."""
    with joined(config.device) as ranks, deterministic(config.deterministic, ranks):
        parts = ranks.size * config.accumulation
        if config.batch_size % parts:
            raise TrainingError(
                f"finetune.batch_size = {config.batch_size} does not divide among {ranks.size} ranks times "
                f"finetune.accumulation = {config.accumulation}; choose a multiple of {parts}."
            )
        with owned(Path(run_dir), ranks, _settle):
            yield _Run(task(), sets, Path(run_dir), config, start, source, ranks)


@dataclass(frozen=True)
class _Made:
    """The chosen weights' checkpoint and epoch, their answers on the test split, and what this call was."""

    checkpoint: Path
    chosen: int
    answers: np.ndarray
    view: View
    resumed_from: int
    seconds: float


class _Run:
    """The state of one call, in one rank."""

    def __init__(
        self,
        task: Task,
        sets: Sets,
        run_dir: Path,
        config: TuningConfig,
        start: tuple[str, Mapping[str, Tensor]] | None,
        source: str,
        ranks: Ranks,
    ) -> None:
        self.task, self.sets, self.run_dir, self.config, self.ranks = task, sets, run_dir, config, ranks
        self.model = task.model
        self.sections = sections_of(**{"model": self.model.model, task.section: task.head, "finetune": config})
        self.identity = {**sets.identities, "start": "none" if start is None else start[0]}
        if start is not None:
            try:
                load_pretrained_encoder(self.model, start[1], source=source)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
        task.prepare(self.model)
        self.model.to(ranks.device)
        encoder = set(self.model.sought(()).names)
        self.updates = Updates(self.model, config, ranks, lambda name: config.encoder_rate if name in encoder else 1.0)
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
        self._views: dict[str, View] = {}

    def go(self, on_event: Callable[[Event], None] | None) -> _Made:
        """Resume if there is something to resume, train, score."""
        began, config = time.perf_counter(), self.config
        found = checkpoint.latest(self.run_dir)
        self.ranks.agree(
            {
                "version": json.dumps(software_versions(), sort_keys=True),
                "corpora and start": json.dumps(self.identity, sort_keys=True),
                **{f"[{name}]": json.dumps(section, sort_keys=True) for name, section in self.sections.items()},
                "the checkpoint to resume from": "none" if found is None else found.name,
            }
        )
        self._resume(found)
        resumed_from, step = self.epoch, self.epoch * self.steps
        with self._events(step, on_event) as emit:
            if found is None and self.ranks.main:
                self.task.begin(
                    self.sets.train, self.rows, self.ranks.device, scratch=self.identity["start"] == "none",
                    watch=lambda watched: emit(Working(epoch=0, step=0, watched=watched)),
                )  # fmt: skip
            self.ranks.share_weights(self.model)
            emit(
                RunStarted(
                    epoch=self.epoch, step=step, epochs=config.epochs, steps_per_epoch=self.steps,
                    records=len(self.rows), batch_size=config.batch_size,
                    parameters=sum(p.numel() for p in self.updates.parameters), ranks=self.ranks.size,
                    device=str(self.ranks.device), resumed=resumed_from > 0,
                )
            )  # fmt: skip
            while self.epoch < config.epochs:
                self._train_epoch(emit)
                self._select()
                if self.epoch % config.checkpoint_every == 0 or self.epoch == config.epochs:
                    self._checkpoint(emit)
            at, chosen = self._load_chosen()
            view = self._view("test")
            answers, seconds = self._answers(view), time.perf_counter() - began
            emit(RunEnded(epoch=self.epoch, step=self.epoch * self.steps, seconds=seconds))
        return _Made(at, chosen, answers, view, resumed_from, seconds)

    def note(self, report: FinetuneReport | SegmentReport) -> None:
        """Leave result.json: what a report says of the run, and nothing of this call."""
        noted = {**asdict(report), "checkpoint": str(report.checkpoint.relative_to(self.run_dir))}
        for volatile in ("run_dir", "resumed_from", "seconds"):
            del noted[volatile]
        if self.ranks.main:
            settings = json.loads(json.dumps(asdict(self.config)))
            write_json(self.run_dir / "result.json", {**noted, "settings": settings})
        self.ranks.wait()

    @contextmanager
    def _events(self, step: int, on_event: Callable[[Event], None] | None) -> Iterator[Callable[[Event], None]]:
        if not self.ranks.main:
            yield lambda event: None
            return
        with EventLog(self.run_dir, step=step, tensorboard=self.config.tensorboard, on_event=on_event) as emit:
            yield emit

    def _resume(self, found: Path | None) -> None:
        if found is None:
            return
        header = checkpoint.read_header(found)
        if header.kind != self.task.kind:
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
        self.task.train_mode(self.model)
        totals = np.zeros(2)
        rate = waited_in_all = 0.0
        asked = time.perf_counter()
        shares = batches(self.sets.train, self.rows, config, self.epoch, rank=self.ranks.rank, ranks=self.ranks.size)
        for index, batch in enumerate(shares):
            waited = time.perf_counter() - asked
            rate = learning_rate(config, self.epoch, index, self.steps)
            loss, norm = self._step(batch, rate)
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
                    epoch=self.epoch, step=step, losses={self.task.loss_name: loss}, learning_rate=rate,
                    gradient_norm=norm, seconds=time.perf_counter() - asked, waited=waited,
                )
            )  # fmt: skip
            asked = time.perf_counter()
        loss, norm = (totals / self.steps).tolist()
        self.epoch += 1
        self.metrics = {**self.metrics, "loss": loss, "learning_rate": rate}
        seconds = time.perf_counter() - began
        emit(
            EpochDone(
                epoch=self.epoch, step=self.epoch * self.steps, losses={self.task.loss_name: loss}, learning_rate=rate,
                gradient_norm=norm, seconds=seconds, waited=waited_in_all,
                shapes_per_second=self.steps * config.batch_size / seconds,
            )
        )  # fmt: skip

    def _step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """One step on this rank's share of a batch: each part's mean counts as its share of the batch's shapes."""
        config, device = self.config, self.ranks.device
        self.updates.begin()
        losses = []
        for part in batch.split(config.accumulation):
            draws = HeadDraws.for_records(part.rows, self.model.model, seed=config.seed, epoch=self.epoch).to(device)
            with self.updates.autocast():
                loss = self.task.loss(part, draws, device) * (len(part.rows) / config.batch_size)
            self.updates.backward(loss)
            losses.append(loss.detach())
        norm = self.updates.take(rate, twice=isinstance(config, SegmentConfig) and config.updates == 2)
        return float(self.ranks.sum(torch.stack(losses).sum())), float(norm)

    def _select(self) -> None:
        """After an epoch: keep its weights where they are the best so far by what `select` names."""
        select = self.config.select
        if select == "last":
            return
        view = self._view("held out" if select == "validation" else "test")
        found = self.task.choice(self._answers(view), view)
        deciding = next(iter(found))
        score, before = found[deciding], self.metrics.get(f"best_{select}_{deciding}", -1.0)
        for name, value in found.items():
            self.metrics[f"{select}_{name}"] = value
            self.metrics[f"best_{select}_{name}"] = max(value, self.metrics.get(f"best_{select}_{name}", -1.0))
        if score > before or (self.task.later and score == before):
            self.metrics["best_epoch"] = self.epoch
            self._write_best()

    def _write_best(self) -> None:
        """Write the weights as BEST/epoch-NNNN, then remove those before; a run that goes on may write them again."""
        if self.ranks.main:
            header = self._header()
            target = self.run_dir / BEST / header.name
            if target.exists():  # of an epoch that is done again: the first time its checkpoint was not reached
                shutil.rmtree(target)
            checkpoint.write_checkpoint_at(target, header, self.model.state_dict(), None)
        self.ranks.wait()

    def _header(self) -> Header:
        scaler = self.updates.scaler
        return Header(
            epoch=self.epoch, step=self.epoch * self.steps, config=self.sections, cache=self.identity, teacher={},
            metrics=self.metrics, loss_scale=None if scaler is None else scaler.state_dict(),
            versions=software_versions(), kind=self.task.kind,
        )  # fmt: skip

    def _checkpoint(self, emit: Callable[[Event], None]) -> None:
        config = self.config
        if self.ranks.main:
            optimizer = checkpoint.flatten_optimizer(self.updates.optimizer, self.names)
            path = checkpoint.write_checkpoint(self.run_dir, self._header(), self.model.state_dict(), optimizer)
            checkpoint.prune(self.run_dir, keep=config.keep_checkpoints, milestone_every=config.milestone_every)
            # Only now: until this checkpoint was there, a run that goes on had need of the best before.
            self._forget_others()
            emit(CheckpointWritten(epoch=self.epoch, step=self.epoch * self.steps, path=str(path)))
        self.ranks.wait()  # no rank trains on, or stops, while rank 0 may still be writing

    def _forget_others(self) -> None:
        """Remove all weights from BEST but those that the metrics name."""
        if not self.ranks.main:
            return
        kept = f"epoch-{self.metrics['best_epoch']:04d}" if "best_epoch" in self.metrics else ""
        for old in (self.run_dir / BEST).glob("epoch-*"):
            if old.name != kept:
                shutil.rmtree(old)

    def _load_chosen(self) -> tuple[Path, int]:
        """Load the weights that `select` chose; -> their checkpoint and epoch."""
        last = checkpoint.latest(self.run_dir)
        assert last is not None
        if self.config.select == "last":
            return last, self.epoch
        chosen = int(self.metrics["best_epoch"])
        at = self.run_dir / BEST / f"epoch-{chosen:04d}"
        header = checkpoint.read_header(at)
        self.model.load_state_dict(checkpoint.read_tensors(at, header, checkpoint.MODEL))
        return at, chosen

    def _view(self, part: str) -> View:
        if part not in self._views:
            clouds, rows = self.sets.train, self.held_out
            if part == "test":
                clouds, rows = self.sets.test, np.arange(len(self.sets.test))
            self._views[part] = self.task.view(clouds, rows)
        return self._views[part]

    def _answers(self, view: View) -> np.ndarray:
        """What the weights as they are answer, all ranks together: each a share of the shapes, the last one filled."""
        n, at_a_time = len(view.labels), self.task.at_a_time
        share = -(-n // self.ranks.size)
        mine = np.minimum(np.arange(self.ranks.rank * share, (self.ranks.rank + 1) * share), n - 1)
        found = []
        for start in range(0, share, at_a_time):
            rows = mine[start : start + at_a_time]
            found.append(self.task.answers(view.points[rows], view.labels[rows], self.ranks.device))
        answers = np.concatenate(found)
        if self.ranks.size > 1:
            answers = self.ranks.gather_rows(torch.from_numpy(answers)).cpu().numpy()[:n]
        return answers


def _settle(run_dir: Path) -> None:
    """Put the checkpoints of a run that was stopped in order."""
    checkpoint.clean_leftovers(run_dir)
    checkpoint.set_damaged_aside(run_dir)
    for leftover in (run_dir / BEST).glob(".writing-*"):
        shutil.rmtree(leftover)
