"""Pre-training: epochs of steps, with evaluations, checkpoints and events in between, and an exact way back in.

Everything in a run follows from its settings, the cache and the seed. The state that a step starts from is the weights,
the optimiser's averages, and the numbers of epoch and step; a checkpoint holds exactly that, and the sums of the epoch
under way, so a run that was stopped anywhere goes on from its last checkpoint as if nothing had happened.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from teacher_cache.reading.selection import Selection
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.files import Header
from trainer.checkpoints.models import new_model, resume_problems, sections_of, software_versions
from trainer.config import AlignmentConfig, EvaluationConfig, TrainerConfig, alignment_conflicts
from trainer.engine.events import (
    CheckpointWritten,
    EpochDone,
    Evaluated,
    Event,
    EventLog,
    RunEnded,
    RunStarted,
    StepDone,
)
from trainer.engine.ranks import Ranks, deterministic, joined
from trainer.engine.run_directory import known_json, owned, write_json
from trainer.engine.schedule import learning_rate
from trainer.errors import CheckpointError, TrainingError
from trainer.models.config import MaskingConfig, ModelConfig
from trainer.pretraining.alignment import Alignment, Wholes
from trainer.pretraining.data import Loader, Part, Records
from trainer.pretraining.failure import not_finite
from trainer.pretraining.step import LiveTeacher, Outcome, Stepper

__all__ = ["TrainReport", "TrainingCache", "TrainingError", "pretrain"]

logger = logging.getLogger(__name__)


class TrainingCache(Records, Wholes, Protocol):
    """A cache that can be trained on: `teacher_cache.Cache`."""

    @property
    def recipe(self) -> Any: ...

    @property
    def basis(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What became of a run.

    checkpoint   the last one.   epochs, steps  completed in all, earlier runs included; `resumed_from`: epochs before
    metrics      of the last epoch: loss_3d, loss_2d, learning_rate
    evaluation   the final Comparison as JSON types, None without evaluation corpora
    seconds      of this call
    """

    run_dir: Path
    checkpoint: Path
    epochs: int
    steps: int
    resumed_from: int
    metrics: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    seconds: float


def pretrain(
    cache: TrainingCache,
    run_dir: str | Path,
    *,
    model: ModelConfig,
    masking: MaskingConfig,
    trainer: TrainerConfig,
    evaluation: EvaluationConfig | None = None,
    alignment: AlignmentConfig | None = None,
    teacher: LiveTeacher | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> TrainReport:
    """Train a student on a cache, or go on with the run that lies in `run_dir`.

    cache      of the shapes, and of the teacher's maps unless `teacher` is given; or a `teacher_cache.Selection` of
               them, which checkpoints, the log and metrics.json then name by its digest.
    alignment  the global loss; None: off. Its targets are of the cache, with a live teacher too; where the cache has no
               class tokens something else stands in, and the log, train.jsonl and metrics.json say so.
    run_dir    made if absent. Receives train.jsonl, metrics.json, tensorboard/ and checkpoints/.
    teacher    looks at the student's augmented cloud in every step, as the reference does: given exactly where
               trainer.teacher is "live"; None: the cached maps.
    on_event   called with every event, in rank 0's process.

    Under torchrun every rank calls this with the same arguments; ranks read checkpoints from `run_dir`, which several
    hosts must share. A run that is complete already is only reported.

    Raises CheckpointError where the directory holds a run with other settings or a damaged checkpoint, DataError where
    the cache cannot feed the run, TrainingError where the loss stops being finite or another process trains in the
    directory, ValueError for settings with problems; EvaluationError and CorpusError for corpora to evaluate on that
    cannot serve, before training begins.
    """
    evaluation, alignment = evaluation or EvaluationConfig(), alignment or AlignmentConfig()
    _check_settings(trainer=trainer, evaluation=evaluation, alignment=alignment)
    for fault in alignment_conflicts(alignment, trainer):
        raise ValueError(fault)
    if (teacher is not None) != (trainer.teacher == "live"):
        fault = "needs a live teacher, none was given" if teacher is None else "takes no live teacher, one was given"
        raise ValueError(f'trainer.teacher = "{trainer.teacher}" {fault}; pass `teacher` with "live" only')
    run_dir = Path(run_dir)
    with joined(trainer.device) as ranks, deterministic(trainer.deterministic, ranks), owned(run_dir, ranks, _settle):
        if trainer.precision == "float16" and ranks.device.type == "cpu":
            raise TrainingError(
                f'trainer.precision = "float16" needs a GPU, and trainer.device = {trainer.device!r} found none. '
                'Use "float32" or "bfloat16".'
            )
        if evaluation.enabled and ranks.main:
            from trainer.downstream.clouds import check_corpora

            check_corpora(evaluation.train, evaluation.test, points=evaluation.stored_points)
        run = _Run(cache, run_dir, model, masking, trainer, evaluation, alignment, teacher, ranks)
        return run.go(on_event)


class _Run:
    """The state of one call of pretrain, in one rank."""

    def __init__(
        self,
        cache: TrainingCache,
        run_dir: Path,
        model: ModelConfig,
        masking: MaskingConfig,
        trainer: TrainerConfig,
        evaluation: EvaluationConfig,
        alignment: AlignmentConfig,
        teacher: LiveTeacher | None,
        ranks: Ranks,
    ):
        self.run_dir, self.config, self.evaluation, self.ranks = run_dir, trainer, evaluation, ranks
        # Without the cache's place: runs of one experiment write the same checkpoints wherever their cache lies.
        noted = replace(trainer, cache="", stale_cache="refuse")
        self.sections = sections_of(
            model=model, masking=masking, alignment=alignment, trainer=noted, evaluation=evaluation
        )
        self.identity = {"recipe": cache.recipe.hash, "records": len(cache)}
        if cache.basis is not None:  # which a recipe does not say: what the 2D head has learnt is of this basis
            self.identity["basis"] = cache.basis.sha256
        if isinstance(cache, Selection) and cache.digest is not None:  # which of the cache's shapes, in which order
            self.identity["shapes"] = cache.digest
        maker = cache.schema if teacher is None else teacher
        self.teacher_shape = {"channels": maker.channels, "views": maker.views}
        whole = alignment.weight > 0
        self.loader = Loader(cache, model, trainer, ranks, live_teacher=teacher is not None, whole=whole)
        fresh = new_model(model, masking, self.teacher_shape, seed=trainer.seed, whole=whole)
        self.model = fresh.to(ranks.device)
        stands_for = 1.0 if cache.basis is None else cache.basis.teacher_channels / cache.basis.channels
        self.alignment = None
        if whole:
            self.alignment = Alignment.of_cache(
                alignment, cache, seed=trainer.seed, device=ranks.device, skip_damaged=trainer.damaged == "skip"
            )
        self.stepper = Stepper(self.model, trainer, ranks, teacher, stands_for=stands_for, alignment=self.alignment)
        self.names: dict[Tensor, str] = {value: name for name, value in self.model.named_parameters()}
        self.records = len(cache) // cache.poses  # that an epoch visits
        self.epoch = self.step = 0
        self._begin_epoch()
        self.metrics: dict[str, Any] = {}
        self._evaluator: Any = None

    def go(self, on_event: Callable[[Event], None] | None) -> TrainReport:
        """Resume if there is something to resume, train, evaluate, report."""
        started = time.perf_counter()
        found = checkpoint.latest(self.run_dir)
        self.ranks.agree(
            {
                "version": json.dumps(software_versions(), sort_keys=True),
                "the cache": json.dumps(self.identity, sort_keys=True),
                **{f"[{name}]": json.dumps(section, sort_keys=True) for name, section in self.sections.items()},
                "the checkpoint to resume from": "none" if found is None else found.name,
            }
        )
        resumed = self._resume()
        self.ranks.agree({"epoch": str(self.epoch), "step": str(self.step)})
        resumed_from = self.epoch
        self.ranks.share_weights(self.model)
        with self._events(on_event) as emit:
            emit(
                RunStarted(
                    epoch=self.epoch,
                    step=self.step,
                    epochs=self.config.epochs,
                    steps_per_epoch=self.loader.steps_per_epoch,
                    records=self.records,
                    batch_size=self.config.batch_size,
                    parameters=sum(p.numel() for p in self.stepper.parameters),
                    ranks=self.ranks.size,
                    device=str(self.ranks.device),
                    resumed=resumed,
                    global_target=self._global_target,
                    shapes=self.identity.get("shapes", ""),
                )
            )
            while self.epoch < self.config.epochs:
                self._train_epoch(emit)
                self._evaluate_if_due(emit)
                self._checkpoint_if_due(emit)
            result = self._final_evaluation(emit)
            seconds = time.perf_counter() - started
            emit(RunEnded(epoch=self.epoch, step=self.step, seconds=seconds))
        self.ranks.wait()
        last = checkpoint.latest(self.run_dir)
        assert last is not None
        return TrainReport(
            run_dir=self.run_dir,
            checkpoint=last,
            epochs=self.epoch,
            steps=self.step,
            resumed_from=resumed_from,
            metrics=self.metrics,
            evaluation=result,
            seconds=seconds,
        )

    def _begin_epoch(self) -> None:
        self._steps_done = 0  # of the epoch under way
        self._totals = [0.0] * len(Outcome._fields)  # of these, in the order of Outcome
        self._skipped_before = 0  # damaged records skipped in these by all ranks, up to the checkpoint resumed from
        self._skipped = 0  # and since then, by this rank

    def _resume(self) -> bool:
        """Take over the newest checkpoint; -> False where there is none."""
        found = checkpoint.latest(self.run_dir)
        if found is None:
            return False
        header = checkpoint.read_header(found)
        problems = resume_problems(header, self.sections, self.identity, self.teacher_shape)
        if problems:
            lines = "\n  ".join(problems)
            raise CheckpointError(
                f"{found} belongs to a run with other settings:\n  {lines}\n"
                "Use the settings it was started with, or another run directory."
            )
        self.model.load_state_dict(checkpoint.read_tensors(found, header, checkpoint.MODEL))
        flat = checkpoint.read_tensors(found, header, checkpoint.OPTIMIZER)
        checkpoint.restore_optimizer(self.stepper.optimizer, self.names, flat, found)
        if self.stepper.scaler is not None and header.loss_scale is not None:
            self.stepper.scaler.load_state_dict(header.loss_scale)
        self.epoch, self.step, self.metrics = header.epoch, header.step, dict(header.metrics)
        if header.under_way is not None:
            self._steps_done = int(header.under_way["steps"])
            found_totals = [float(total) for total in header.under_way["totals"]]
            self._totals = found_totals + [0.0] * (len(Outcome._fields) - len(found_totals))
            self._skipped_before = int(header.under_way["skipped"])
        logger.info("going on from %s, %d of %d epochs done", found, header.epoch, self.config.epochs)
        return True

    def _train_epoch(self, emit: Callable[[Event], None]) -> None:
        began = time.perf_counter()
        waited_in_all = rate = 0.0
        steps, first = self.loader.steps_per_epoch, self._steps_done
        with closing(self.loader.epoch(self.epoch, first)) as batches:  # its threads must not outlive a failure
            for index in range(first, steps):
                asked = time.perf_counter()
                parts = next(batches)
                waited = time.perf_counter() - asked
                rate = learning_rate(self.config, self.epoch, index, steps)
                outcome = self.stepper.step(parts, rate)
                self._require_finite(outcome, parts, rate)
                self.step += 1
                emit(
                    StepDone(
                        epoch=self.epoch,
                        step=self.step,
                        learning_rate=rate,
                        seconds=time.perf_counter() - asked,
                        waited=waited,
                        **outcome._asdict(),
                    )
                )
                self._totals = [total + value for total, value in zip(self._totals, outcome, strict=True)]
                self._steps_done = index + 1
                self._skipped += sum(part.skipped for part in parts)
                waited_in_all += waited
                every = self.config.checkpoint_steps
                if every and self.step % every == 0 and index + 1 < steps:
                    self._checkpoint(emit)
        self.epoch += 1
        means = Outcome(*(total / steps for total in self._totals))
        skipped = self._skipped_by_all()
        self.metrics = {"loss_3d": means.loss_3d, "loss_2d": means.loss_2d, "learning_rate": rate}
        if self.alignment is not None:
            self.metrics["loss_global"] = means.loss_global
        if self.config.damaged == "skip":
            self.metrics["skipped"] = skipped
        self._begin_epoch()
        seconds = time.perf_counter() - began
        emit(
            EpochDone(
                epoch=self.epoch,
                step=self.step,
                **means._asdict(),
                learning_rate=rate,
                seconds=seconds,
                waited=waited_in_all,
                shapes_per_second=(steps - first) * self.config.batch_size / seconds,
                skipped=skipped,
            )
        )

    def _require_finite(self, outcome: Outcome, parts: list[Part], rate: float) -> None:
        """Stop where training has blown up; a float16 gradient that overflows is the loss scaler's business."""
        values = outcome if self.stepper.scaler is None else outcome._replace(gradient_norm=0.0)
        if all(abs(value) < float("inf") for value in values):
            return
        facts = {"epoch": self.epoch, "step": self.step + 1, "learning_rate": rate}
        raise not_finite(self.run_dir / "failure", self.ranks.rank, parts, outcome, facts)

    def _evaluate_if_due(self, emit: Callable[[Event], None]) -> None:
        """A short evaluation between epochs: one seed, no baselines."""
        every = self.evaluation.every
        if not (self.evaluation.enabled and every and self.epoch % every == 0 and self.epoch < self.config.epochs):
            return
        if self.ranks.main:
            result = self._compare(emit, final=False)
            self.metrics["svm_accuracy"] = result["rows"]["trained"]["accuracy"]
            self._write_metrics(result, final=False)
        self.ranks.wait()

    def _final_evaluation(self, emit: Callable[[Event], None]) -> Mapping[str, Any] | None:
        """Evaluate the last epoch in full, unless metrics.json says that this was done; -> the result, in rank 0."""
        if not self.ranks.main:
            return None
        known = known_json(self.run_dir / "metrics.json", "the evaluation")
        same = known.get("epoch") == self.epoch and known.get("evaluation_settings") == self.sections["evaluation"]
        if known.get("final") and same and "evaluation" in known:
            return known["evaluation"]
        result = self._compare(emit, final=True) if self.evaluation.enabled else None
        self._write_metrics(result, final=True)
        return result

    def _write_metrics(self, result: Mapping[str, Any] | None, *, final: bool) -> None:
        content: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "final": final}
        if self._global_target:
            content["global_target"] = self._global_target
        if "shapes" in self.identity:
            content |= {"records": self.identity["records"], "shapes": self.identity["shapes"]}
        content |= dict(sorted(self.metrics.items()))  # in the order that a checkpoint gives them back
        content |= {"evaluation_settings": self.sections["evaluation"], "evaluation": result}
        write_json(self.run_dir / "metrics.json", content)

    def _compare(self, emit: Callable[[Event], None], *, final: bool) -> Mapping[str, Any]:
        """Score the model as it is; after the last epoch with all seeds, and beside the baselines."""
        from trainer.downstream.comparison import Evaluator
        from trainer.downstream.features import Encoder, model_encoder

        began = time.perf_counter()
        if self._evaluator is None:
            self._evaluator = Evaluator(self.evaluation)
        encoders: dict[str, Encoder] = {}
        if final and self.evaluation.baselines:
            encoders |= self._evaluator.baselines(self.model, seed=self.config.seed, device=self.ranks.device)
        encoders["trained"] = model_encoder(self.model, self.ranks.device, self.evaluation.model_feature)
        result = self._evaluator.compare(encoders, seeds=None if final else 1).to_json()
        emit(
            Evaluated(
                epoch=self.epoch,
                step=self.step,
                final=final,
                result=result,
                seconds=time.perf_counter() - began,
            )
        )
        return result

    @property
    def _global_target(self) -> str:
        return "" if self.alignment is None else self.alignment.source

    def _skipped_by_all(self) -> int:
        """Damaged records skipped in the epoch under way, by all ranks."""
        if self.config.damaged == "raise":
            return 0
        return self._skipped_before + int(self.ranks.sum(torch.tensor(self._skipped)))

    def _checkpoint_if_due(self, emit: Callable[[Event], None]) -> None:
        if self.epoch % self.config.checkpoint_every == 0 or self.epoch == self.config.epochs:
            self._checkpoint(emit)

    def _checkpoint(self, emit: Callable[[Event], None]) -> None:
        """Write the state as it is, between epochs or between the steps of one."""
        config, skipped = self.config, self._skipped_by_all()
        totals = self._totals if self.alignment is not None else self._totals[:3]
        under_way = {"steps": self._steps_done, "totals": totals, "skipped": skipped}
        if self.ranks.main:
            scaler = self.stepper.scaler
            header = Header(
                epoch=self.epoch,
                step=self.step,
                config=self.sections,
                cache=self.identity,
                teacher=self.teacher_shape,
                metrics=self.metrics,
                loss_scale=None if scaler is None else scaler.state_dict(),
                versions=software_versions(),
                under_way=under_way if self._steps_done else None,
            )
            optimizer = checkpoint.flatten_optimizer(self.stepper.optimizer, self.names)
            path = checkpoint.write_checkpoint(self.run_dir, header, self.model.state_dict(), optimizer)
            emit(CheckpointWritten(epoch=self.epoch, step=self.step, path=str(path)))
            checkpoint.prune(self.run_dir, keep=config.keep_checkpoints, milestone_every=config.milestone_every)
        self.ranks.wait()

    @contextmanager
    def _events(self, on_event: Callable[[Event], None] | None) -> Iterator[Callable[[Event], None]]:
        """Where this rank's events go: rank 0 writes and hands them on, the others drop them."""
        if not self.ranks.main:
            yield lambda event: None
            return
        board = self.config.tensorboard
        with EventLog(self.run_dir, step=self.step, tensorboard=board, on_event=on_event) as log:
            yield log


def _check_settings(**sections: Any) -> None:
    problems = [f"{name}.{text}" for name, section in sections.items() for text in section.problems()]
    if problems:
        raise ValueError("\n  ".join((f"{len(problems)} problems in the settings", *problems)))


def _settle(run_dir: Path) -> None:
    """Put the checkpoints of a run that was stopped in order."""
    checkpoint.clean_leftovers(run_dir)
    checkpoint.set_damaged_aside(run_dir)
