"""Pre-training: epochs of steps with evaluations, checkpoints and events in between, and exact resumption.

Everything in a run follows from its settings, the cache and the seed. The state that a step starts from is the weights,
the optimiser's averages, and the numbers of epoch and step; a checkpoint holds exactly that, and the sums of the epoch
under way, so a run stopped anywhere resumes from its last checkpoint with the same result as an uninterrupted one.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from teacher_cache import Cache, Selection
from trainer.checkpoints import files as checkpoint
from trainer.checkpoints.files import Header
from trainer.checkpoints.models import refuse_other_run, resume_problems, sections_of, software_versions
from trainer.config import (
    AlignmentConfig,
    EvaluationConfig,
    TeachersConfig,
    TrainerConfig,
    alignment_conflicts,
    teachers_conflicts,
)
from trainer.engine.events import (
    CheckpointWritten,
    EpochDone,
    Event,
    EventLog,
    RunEnded,
    RunStarted,
    StepDone,
)
from trainer.engine.memory import peak_memory
from trainer.engine.ranks import Ranks, deterministic, joined
from trainer.engine.run_directory import owned
from trainer.engine.schedule import learning_rate
from trainer.errors import TrainingError
from trainer.models.build import STUDENTS, new_student
from trainer.models.config import MaskingConfig, StudentConfig
from trainer.models.student import Further
from trainer.pretraining.alignment import Alignment
from trainer.pretraining.data import Loader
from trainer.pretraining.evaluation import Evaluations, check_evaluation
from trainer.pretraining.failure import not_finite
from trainer.pretraining.joined import FurtherCache, join
from trainer.pretraining.progress import Progress
from trainer.pretraining.step import LiveTeacher, Stepper, TeacherTargets

__all__ = ["TrainReport", "TrainingError", "pretrain"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Summary of a run.

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
    cache: Cache | Selection,
    run_dir: str | Path,
    *,
    model: StudentConfig,
    masking: MaskingConfig,
    trainer: TrainerConfig,
    evaluation: EvaluationConfig | None = None,
    alignment: AlignmentConfig | None = None,
    teacher: LiveTeacher | None = None,
    further: Sequence[Cache] = (),
    teachers: TeachersConfig | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> TrainReport:
    """Train a student on a cache, or resume the run in `run_dir`.

    cache      of the shapes, and of the teacher's maps unless `teacher` is given; or a `teacher_cache.Selection` of
               them, which checkpoints, the log and metrics.json then name by its digest.
    alignment  the global loss; None: off. Its targets come from the cache, even with a live teacher; if it has no class
               tokens, mean patch features stand in, and the log, train.jsonl and metrics.json say so.
    run_dir    made if absent. Receives train.jsonl, metrics.json, tensorboard/ and checkpoints/.
    teacher    encodes the student's augmented cloud in every step, as the reference does: given exactly where
               trainer.teacher is "live"; None: the cached maps.
    further    open caches of further teachers, of the same shapes and points, in any order and beside any others: they
               give targets, each with a head of its own; everything else is the first cache's.
    teachers   factors of every teacher's losses; its `caches` are those of `further`, and not opened here.
    on_event   called with every event, in rank 0's process.

    Under torchrun every rank calls this with the same arguments; ranks read checkpoints from `run_dir`, which several
    hosts must share. A run that is complete already is only reported.

    Raises CheckpointError where the directory holds a run with other settings or a damaged checkpoint, DataError where
    the cache cannot feed the run, TrainingError where the loss stops being finite or another process trains in the
    directory, ValueError for settings with problems; EvaluationError and CorpusError for corpora to evaluate on that
    cannot serve, before training begins. DataError too for further caches that do not hold the same points.
    """
    evaluation, alignment = evaluation or EvaluationConfig(), alignment or AlignmentConfig()
    teachers = teachers or TeachersConfig()
    if teachers.caches and len(teachers.caches) != len(further):
        raise ValueError(
            f"teachers.caches names {len(teachers.caches)} caches, and {len(further)} are given as `further`; open and "
            "pass them"
        )
    _check_settings(trainer=trainer, evaluation=evaluation, alignment=alignment, teachers=teachers)
    for fault in (*alignment_conflicts(alignment, trainer), *teachers_conflicts(teachers, trainer, 1 + len(further))):
        raise ValueError(fault)
    if (teacher is not None) != (trainer.teacher == "live"):
        fault = (
            ("needs a live teacher, but none was given")
            if teacher is None
            else "takes no live teacher, but one was given"
        )
        raise ValueError(f'trainer.teacher = "{trainer.teacher}" {fault}; pass `teacher` if and only if it is "live"')
    run_dir = Path(run_dir)
    with joined(trainer.device) as ranks, deterministic(trainer.deterministic, ranks), owned(run_dir, ranks, _settle):
        if trainer.precision == "float16" and ranks.device.type == "cpu":
            raise TrainingError(
                f'trainer.precision = "float16" needs a GPU, but trainer.device = {trainer.device!r} found none. Use '
                '"float32" or "bfloat16".'
            )
        check_evaluation(evaluation, ranks)
        run = _Run(cache, run_dir, model, masking, trainer, evaluation, alignment, teacher, further, teachers, ranks)
        return run.go(on_event)


class _Run:
    """The state of one call of pretrain, in one rank."""

    def __init__(
        self,
        cache: Cache | Selection,
        run_dir: Path,
        model: StudentConfig,
        masking: MaskingConfig,
        trainer: TrainerConfig,
        evaluation: EvaluationConfig,
        alignment: AlignmentConfig,
        teacher: LiveTeacher | None,
        further: Sequence[Cache],
        teachers: TeachersConfig,
        ranks: Ranks,
    ):
        self.run_dir, self.config, self.ranks = run_dir, trainer, ranks
        # Without the cache's place: runs of one experiment write the same checkpoints wherever their cache lies.
        noted = replace(trainer, cache="", stale_cache="refuse")
        self.sections = sections_of(
            model=model, masking=masking, alignment=alignment, trainer=noted, evaluation=evaluation
        )
        weights_2d, weights_global = teachers.factors(1 + len(further))
        factors = list(zip(weights_2d, weights_global, strict=True))
        if len(factors) > 1 or factors[0] != (1, 1):  # absent otherwise, as in runs before there were several
            self.sections["teachers"] = {"weights_2d": list(weights_2d), "weights_global": list(weights_global)}
        self.identity: dict[str, Any] = {**_identity(cache), "records": len(cache)}
        if isinstance(cache, Selection) and cache.digest is not None:  # which of the cache's shapes, in which order
            self.identity["shapes"] = cache.digest
        maker = cache.schema if teacher is None else teacher
        self.teacher_shape: dict[str, Any] = {"channels": maker.channels, "views": maker.views}
        student = STUDENTS.get(model.architecture)
        if further and student is not None and not student.several_teachers:
            raise TrainingError(
                f"model.architecture = {model.architecture!r} learns from one teacher, and {1 + len(further)} are "
                "given. Leave teachers.caches empty and name one cache, or train another student."
            )
        if masking.per_shape > 1 and student is not None and not student.several_masks:
            raise TrainingError(
                f"model.architecture = {model.architecture!r} learns from one mask of a shape in a step, and "
                f"masking.per_shape = {masking.per_shape}. Set it to 1, or train another student."
            )
        whole = alignment.weight > 0
        wanted = [
            (model.predicts_features and for_2d > 0, whole and for_whole > 0) for for_2d, for_whole in factors[1:]
        ]
        joined = join(cache, further, wanted) if further else ()
        if joined:
            self.identity["further"] = [_identity(one.records) for one in joined]
            self.teacher_shape["further"] = [_heads(one)._asdict() for one in joined]
        self.loader = Loader(
            cache,
            model,
            trainer,
            ranks,
            live_teacher=teacher is not None,
            whole=whole,
            further=joined,
            masks=masking.per_shape,
        )
        fresh = new_student(model, masking, self.teacher_shape, seed=trainer.seed, whole=whole)
        self.model = fresh.to(ranks.device)
        skip = trainer.damaged == "skip"

        def targets_of(source: Cache | Selection, wanted: bool) -> Alignment | None:
            if not wanted:
                return None
            return Alignment.of_cache(alignment, source, seed=trainer.seed, device=ranks.device, skip_damaged=skip)

        targets = [targets_of(cache, whole), *(targets_of(one.records, one.whole) for one in joined)]
        self.global_target = "; ".join(found.source for found in targets if found is not None)
        others = [
            TeacherTargets(_stands_for(one.records), found, *factor)
            for one, found, factor in zip(joined, targets[1:], factors[1:], strict=True)
        ]
        self.stepper = Stepper(
            self.model, trainer, ranks, teacher,
            stands_for=_stands_for(cache), alignment=targets[0], factors=factors[0], further=others,
        )  # fmt: skip
        self.updates = self.stepper.updates
        facts = {"global_target": self.global_target} if self.global_target else {}
        if "shapes" in self.identity:
            facts |= {name: self.identity[name] for name in ("records", "shapes")}
        self.evaluations = Evaluations(
            run_dir, evaluation, self.model, ranks,
            settings=self.sections["evaluation"], seed=trainer.seed, facts=facts,
        )  # fmt: skip
        self.names: dict[Tensor, str] = {value: name for name, value in self.model.named_parameters()}
        self.records = len(cache) // cache.poses  # that an epoch visits
        self.progress = Progress(ranks, count_skipped=trainer.damaged == "skip")

    def go(self, on_event: Callable[[Event], None] | None) -> TrainReport:
        """Resume if there is a checkpoint, train, evaluate, report."""
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
        resumed, progress = self._resume(), self.progress
        self.ranks.agree({"epoch": str(progress.epoch), "step": str(progress.step)})
        resumed_from = progress.epoch
        self.ranks.share_weights(self.model)
        with self._events(on_event) as emit:
            emit(
                RunStarted(
                    epoch=progress.epoch,
                    step=progress.step,
                    epochs=self.config.epochs,
                    steps_per_epoch=self.loader.steps_per_epoch,
                    records=self.records,
                    batch_size=self.config.batch_size,
                    parameters=sum(p.numel() for p in self.updates.parameters),
                    ranks=self.ranks.size,
                    device=str(self.ranks.device),
                    resumed=resumed,
                    global_target=self.global_target,
                    shapes=self.identity.get("shapes", ""),
                )
            )
            while progress.epoch < self.config.epochs:
                self._train_epoch(emit)
                self.evaluations.if_due(progress, self.config.epochs, emit)
                if progress.epoch % self.config.checkpoint_every == 0 or progress.epoch == self.config.epochs:
                    self._checkpoint(emit)
            result = self.evaluations.final(progress, emit)
            seconds = time.perf_counter() - started
            emit(RunEnded(epoch=progress.epoch, step=progress.step, seconds=seconds))
        self.ranks.wait()
        last = checkpoint.latest(self.run_dir)
        assert last is not None
        return TrainReport(
            run_dir=self.run_dir,
            checkpoint=last,
            epochs=progress.epoch,
            steps=progress.step,
            resumed_from=resumed_from,
            metrics=progress.metrics,
            evaluation=result,
            seconds=seconds,
        )

    def _resume(self) -> bool:
        """Load the newest checkpoint; -> False if there is none."""
        found = checkpoint.latest(self.run_dir)
        if found is None:
            return False
        header = checkpoint.read_header(found)
        refuse_other_run(found, resume_problems(header, self.sections, self.identity, self.teacher_shape))
        checkpoint.restore_training(found, header, self.model, self.updates.optimizer, self.updates.scaler)
        self.progress.resume(header)
        logger.info("resuming from %s, %d of %d epochs done", found, header.epoch, self.config.epochs)
        return True

    def _train_epoch(self, emit: Callable[[Event], None]) -> None:
        config, progress = self.config, self.progress
        began = time.perf_counter()
        waited_in_all = rate = 0.0
        steps, first = self.loader.steps_per_epoch, progress.steps_done
        with closing(self.loader.epoch(progress.epoch, first)) as batches:  # its threads must not outlive a failure
            for index in range(first, steps):
                asked = time.perf_counter()
                parts = next(batches)
                waited = time.perf_counter() - asked
                rate = learning_rate(config, progress.epoch, index, steps)
                outcome = self.stepper.step(parts, rate)
                if not self.updates.is_finite(outcome.losses.values(), outcome.gradient_norm):
                    facts = {"epoch": progress.epoch, "step": progress.step + 1, "learning_rate": rate}
                    raise not_finite(self.run_dir / "failure", self.ranks.rank, parts, outcome, facts)
                progress.add(outcome, sum(part.skipped for part in parts))
                seconds = time.perf_counter() - asked
                emit(
                    StepDone(
                        epoch=progress.epoch,
                        step=progress.step,
                        **outcome._asdict(),
                        learning_rate=rate,
                        seconds=seconds,
                        waited=waited,
                    )
                )
                waited_in_all += waited
                if config.checkpoint_steps and progress.step % config.checkpoint_steps == 0 and index + 1 < steps:
                    self._checkpoint(emit)
        means, skipped = progress.means(), progress.skipped()
        metrics = {f"loss_{name}": value for name, value in means.losses.items()} | {"learning_rate": rate}
        if config.damaged == "skip":
            metrics["skipped"] = skipped
        progress.end_epoch(metrics)
        seconds, peak = time.perf_counter() - began, peak_memory(self.ranks.device)
        emit(
            EpochDone(
                epoch=progress.epoch,
                step=progress.step,
                **means._asdict(),
                learning_rate=rate,
                seconds=seconds,
                waited=waited_in_all,
                shapes_per_second=(steps - first) * config.batch_size / seconds,
                skipped=skipped,
                memory=peak["memory"],
                gpu_memory=peak["gpu_memory"],
            )
        )

    def _checkpoint(self, emit: Callable[[Event], None]) -> None:
        """Write the current state, between epochs or between the steps of one."""
        config, progress, scaler = self.config, self.progress, self.updates.scaler
        under_way = progress.under_way()
        if self.ranks.main:
            header = Header(
                epoch=progress.epoch,
                step=progress.step,
                config=self.sections,
                cache=self.identity,
                teacher=self.teacher_shape,
                metrics=progress.metrics,
                loss_scale=None if scaler is None else scaler.state_dict(),
                versions=software_versions(),
                under_way=under_way,
            )
            optimizer = checkpoint.flatten_optimizer(self.updates.optimizer, self.names)
            path = checkpoint.write_checkpoint(self.run_dir, header, self.model.state_dict(), optimizer)
            emit(CheckpointWritten(epoch=progress.epoch, step=progress.step, path=str(path)))
            # Only after the new checkpoint is durable, so that there is one to resume from at any moment.
            checkpoint.prune(self.run_dir, keep=config.keep_checkpoints, milestone_every=config.milestone_every)
        self.ranks.wait()  # no rank trains on, or stops, while rank 0 may still be writing

    @contextmanager
    def _events(self, on_event: Callable[[Event], None] | None) -> Iterator[Callable[[Event], None]]:
        """Return the handler of this rank's events: rank 0 writes and passes them on, the others drop them."""
        if not self.ranks.main:
            yield lambda event: None
            return
        board = self.config.tensorboard
        with EventLog(self.run_dir, step=self.progress.step, tensorboard=board, on_event=on_event) as log:
            yield log


def _identity(cache: Any) -> dict[str, Any]:
    """What a checkpoint says of a cache, whichever of its records are trained on."""
    said = {"recipe": cache.recipe.hash}
    if cache.basis is not None:  # not part of the recipe, but the 2D head's outputs are in this basis
        said["basis"] = cache.basis.sha256
    return said


def _heads(cache: FurtherCache) -> Further:
    schema = cache.records.schema
    return Further(schema.channels, schema.views, cache.features, cache.whole)


def _stands_for(cache: Any) -> float:
    """Channels of the teacher for each channel of a cache."""
    return 1.0 if cache.basis is None else float(cache.basis.teacher_channels / cache.basis.channels)


def _check_settings(**sections: Any) -> None:
    problems = [f"{name}.{text}" for name, section in sections.items() for text in section.problems()]
    if problems:
        raise ValueError("\n  ".join((f"{len(problems)} problems in the settings", *problems)))


def _settle(run_dir: Path) -> None:
    """Put the checkpoints of a stopped run in order."""
    checkpoint.clean_leftovers(run_dir)
    checkpoint.set_damaged_aside(run_dir)
