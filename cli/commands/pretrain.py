"""``i2p pretrain``: train an encoder from an experiment and score it."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import CachePath, LocalPath, config_argument, config_options, json_option
from cli.show.terminal import answer, echo
from cli.show.titles import ENCODER_TITLES

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment
    from teacher_cache.location import Location
    from trainer.engine.events import Event
    from trainer.pretraining.loop import TrainReport

__all__ = ["pretrain", "table"]

REPORT = "report"  # the folder of a run's own

logger = logging.getLogger(__name__)

_TITLES = {"3d": "3D", "2d": "2D"}  # of losses; others are called by their names


@click.command(
    epilog="Examples: i2p pretrain quickstart; i2p pretrain mine.toml --set trainer.epochs=50; "
    "torchrun --nproc-per-node 8 -m cli.main pretrain shapenet --cache PATH; "
    "i2p pretrain quickstart --cache PATH --cache DINOV2. A stopped run resumes where it was."
)
@config_argument
@config_options
@click.option("--cache", "cache_paths", type=CachePath(), multiple=True,
              help="Train on this cache instead of the one CONFIG describes. More of them, of the same shapes, are "
                   "further teachers: --set teachers.weights_2d=[1, 0.5], teachers.weights_global.")  # fmt: skip
@click.option(
    "--stale-cache",
    type=click.Choice(["refuse", "train"]),
    help="Short for --set trainer.stale_cache=...: how a cache whose corpus changed is handled.",
)
@click.option("--out", type=LocalPath(file_okay=False), help="Run directory. [default: runs/CONFIG]")
@click.option("--report/--no-report", "reports", default=True, show_default=True,
              help="Write a page with results and pictures into the run directory at the end.")  # fmt: skip
@json_option
def pretrain(
    config: str,
    overrides: tuple[str, ...],
    print_config: bool,
    cache_paths: "tuple[Location, ...]",
    stale_cache: str | None,
    out: Path | None,
    reports: bool,
    as_json: bool,
) -> None:
    """Pre-train an encoder as CONFIG (a preset or a TOML file) says; its cache is built first if missing."""
    import teacher_cache
    from cli.actions.build_cache import build_from
    from cli.actions.stale import check_corpus, finished_cache
    from cli.experiment.toml import ConfigError, load_experiment, to_toml
    from cli.show.progress import Progress
    from pipeline.build.own_records import own_records
    from teacher_cache.location import resolve
    from trainer.config import teachers_conflicts
    from trainer.engine.ranks import place_in_launch

    experiment = load_experiment(
        config, [*overrides, *([f"trainer.stale_cache='{stale_cache}'"] if stale_cache else [])]
    )
    if cache_paths[1:]:
        further = tuple(map(str, cache_paths[1:]))
        experiment = replace(experiment, teachers=replace(experiment.teachers, caches=further))
    faults = list(teachers_conflicts(experiment.teachers, experiment.trainer, 1 + len(experiment.teachers.caches)))
    if faults:
        raise ConfigError(config, faults)
    if print_config:
        echo(to_toml(experiment), nl=False)
        return
    launch, named = place_in_launch(), True
    cache_path: Location | None = None
    if cache_paths:  # noted, so that the run's own config.toml repeats the run
        cache_path = cache_paths[0]
        experiment = replace(experiment, trainer=replace(experiment.trainer, cache=str(cache_path)))
    elif experiment.trainer.cache:
        cache_path = resolve(experiment.trainer.cache)
    else:
        _check_alone(launch.size)
        cache_path = finished_cache(experiment) if experiment.trainer.stale_cache == "train" else None
        if cache_path is None:
            cache_path = build_from(experiment).path  # which compares the corpus itself
        named = False
    with Progress("opening cache and corpus", 0, unit="", quiet=launch.rank != 0):
        opened = teacher_cache.open(cache_path)
        if named and launch.rank == 0 and experiment.trainer.stale_cache == "refuse":
            check_corpus(experiment, cache_path)
        own, notes = own_records(opened, experiment.corpus, as_it_is=experiment.trainer.stale_cache == "train")
    for note in notes if launch.rank == 0 else ():
        echo(note, err=True)
    more = [teacher_cache.open(resolve(path)) for path in experiment.teachers.caches]
    run_dir = out or Path("runs") / experiment.name
    report = _train(experiment, own, more, run_dir, launch.rank)
    if launch.rank == 0:
        before = run_dir / REPORT / "index.html"
        if report.resumed_from == report.epochs and before.is_file():  # nothing to say that it does not
            page: Path | None = before
        else:
            page = _report(run_dir, opened, experiment.trainer.device) if reports else None
        _say_result(experiment, run_dir, report, page, as_json=as_json)


def _check_alone(ranks: int) -> None:
    if ranks > 1:
        raise click.UsageError(
            "under torchrun a finished cache is needed: build it first with `i2p cache build CONFIG`, and pass the "
            "path it prints as --cache"
        )


def _train(experiment: "Experiment", opened: Any, further: Sequence[Any], run_dir: Path, rank: int) -> "TrainReport":
    from cli.experiment.live import live_teacher
    from cli.experiment.toml import to_toml
    from cli.show.pictures import curves
    from cli.show.progress import human_seconds
    from teacher_cache.storage.atomic import replace_file
    from trainer.pretraining.loop import pretrain as run

    def note_settings() -> None:
        # Only now that the run is accepted: a refused call must not change an earlier run's record of its settings.
        replace_file(run_dir / "config.toml", to_toml(experiment).encode())

    quiet = rank != 0
    reporter = _Reporter(quiet=quiet, evaluates=experiment.evaluation.enabled, on_start=note_settings)
    try:
        report = run(
            opened,
            run_dir,
            model=experiment.model,
            masking=experiment.masking,
            alignment=experiment.alignment,
            trainer=experiment.trainer,
            evaluation=experiment.evaluation,
            teacher=live_teacher(experiment, opened),
            further=further,
            teachers=experiment.teachers,
            on_event=reporter,
        )
    finally:
        reporter.close()
    if rank == 0:
        curves(run_dir, run_dir / "curves.png")
        if report.resumed_from == report.epochs:
            echo(f"already complete: {report.epochs} epochs", err=True)
        else:
            echo(f"trained {report.epochs - report.resumed_from} epochs in {human_seconds(report.seconds)}", err=True)
    return report


def _report(run_dir: Path, cache: Any, device: str) -> Path | None:
    """Write the run's page. The run is complete: what fails here is said, and changes neither it nor its exit code."""
    try:
        from cli.actions.report import report_runs
        from cli.show.progress import Watching

        with Watching() as watch:
            return report_runs([run_dir], run_dir / REPORT, caches=[cache], device=device, watch=watch)
    except Exception as error:
        echo(f"NO REPORT was written: {type(error).__name__}: {error}", err=True)
        echo(f"the run itself is complete; `i2p report {run_dir}` tries again", err=True)
        logger.debug("the report failed", exc_info=True)
        return None


def _say_result(
    experiment: "Experiment", run_dir: Path, report: "TrainReport", page: Path | None, *, as_json: bool
) -> None:
    """Print what came out and where it lies, and what to do with it."""
    drawn = run_dir / "curves.png"
    found = {
        "encoder": str(report.checkpoint),
        "report": None if page is None else str(page),
        "curves": str(drawn) if drawn.is_file() else None,
        "log": str(run_dir / "train.jsonl"),
        "tensorboard": str(run_dir / "tensorboard") if experiment.trainer.tensorboard else None,
    }
    result = {
        "epochs": report.epochs, "steps": report.steps, "metrics": dict(report.metrics),
        "evaluation": report.evaluation, **found,
    }  # fmt: skip
    lines = [] if report.evaluation is None else [table(report.evaluation)]
    lines += [f"{name:<12}{place}" for name, place in found.items() if place is not None]
    lines.append("next")
    if page is not None:
        lines.append(f"  open {page} in a browser: results, curves, what the student saw and predicts")
    if report.evaluation is None:
        lines.append(f"  i2p evaluate {run_dir} --train URI --test URI    what it is worth on labelled shapes")
    lines += [
        f"  i2p embed {run_dir} URI --out features.npz    its features of your shapes",
        f"  i2p finetune synthetic --from {run_dir}    a classifier from it",
        f"  i2p report {run_dir} OTHER    two runs side by side",
    ]
    answer(result, "\n".join(lines), as_json=as_json)


def table(result: Mapping[str, Any]) -> str:
    """Format an evaluation as text: one row per encoder, mean and deviation in per cent."""
    logistic = result.get("logistic", {})
    lines = [
        f"linear SVM on {result['test']['shapes']} shapes of {result['test']['uri']}",
        f"  fitted on {result['train']['shapes']} of {result['train']['uri']}; {result['classes']} classes, "
        f"{result['points']} points, {result['protocol']}, {result['seeds']} seed{'s' if result['seeds'] > 1 else ''}",
        f"  {'':<26}{'feature':<8}{'numbers':>8}{'linear SVM' if logistic else 'accuracy':>12}"
        + (f"{'':<6}{'logistic regression':>23}" if logistic else ""),
        f"  {'always the largest class':<26}{'none':<8}{0:>8}{100 * result['chance']:>11.1f}%",
    ]
    for name, row in result["rows"].items():
        spread = f" ± {100 * row['spread']:.1f}" if result["seeds"] > 1 else ""
        feature = "none" if name == "coordinates" else row["feature"]
        other = ""
        if name in logistic:
            found = logistic[name]
            other = f"{100 * found['accuracy']:>21.1f}%"
            other += f" ± {100 * found['spread']:.1f}" if result["seeds"] > 1 else ""
            spread = f"{spread:<7}"
        lines.append(
            f"  {ENCODER_TITLES.get(name, name):<26}{feature:<8}{row['dimensions']:>8}{100 * row['accuracy']:>11.1f}%"
            f"{spread}{other}"
        )
    skipped = result["train"]["skipped"] + result["test"]["skipped"]
    if skipped:
        lines.append(f"  {skipped} shapes could not be read and were left out")
    return "\n".join(lines)


class _Reporter:
    """Training events as a progress bar and, per epoch, a line."""

    def __init__(self, *, quiet: bool, evaluates: bool, on_start: Callable[[], None]):
        from cli.show.progress import Progress, Watching

        self._quiet, self._evaluates, self._on_start = quiet, evaluates, on_start
        self._progress: Any = None
        self._epochs = 0
        self._watching = Watching(quiet=quiet)
        # Until training begins: checks of the evaluation's corpora, targets of the global loss, the newest checkpoint.
        self._before = Progress("preparing", 0, unit="", quiet=quiet)

    def __call__(self, event: "Event") -> None:
        from cli.show.progress import Progress, human_seconds
        from trainer.engine.events import CheckpointWritten, EpochDone, Evaluated, RunStarted, StepDone, Working

        match event:
            case RunStarted():
                self._before.end()
                self._on_start()
                self._epochs = event.epochs
                total = event.epochs * event.steps_per_epoch
                self._progress = Progress("training", total, unit="steps", initial=event.step, quiet=self._quiet)
                how = "resuming" if event.resumed else "training"
                self._progress.write(
                    f"{how} a student of {event.parameters / 1e6:.2f}M parameters on {event.records} shapes: epoch "
                    f"{event.epoch} of {event.epochs}, batch {event.batch_size}, {event.device}, {event.ranks} process"
                    f"{'es' if event.ranks > 1 else ''}"
                )
            case StepDone():
                self._progress.update(
                    event.step, **{f"loss_{name}": f"{value:.4f}" for name, value in event.losses.items()}
                )
            case EpochDone():
                losses = "  ".join(f"{_TITLES.get(name, name)} {value:.4f}" for name, value in event.losses.items())
                self._progress.write(
                    f"epoch {event.epoch:>3}  loss {losses}  "
                    f"lr {event.learning_rate:.2e}  {event.shapes_per_second:.0f} shapes/s  "
                    f"{human_seconds(event.seconds)}, {event.waited:.1f} s of them waiting for data"
                    + (f", {event.skipped} damaged records left out" if event.skipped else "")
                )
            case CheckpointWritten() if event.epoch == self._epochs and self._evaluates:
                self._progress.end()
                self._progress.write("evaluating the encoder beside its baselines")
            case Working():
                self._progress.pause()
                self._watching(event.watched)
            case Evaluated() if not event.final:
                accuracy = event.result["rows"]["trained"]["accuracy"]
                self._progress.write(f"epoch {event.epoch:>3}  linear SVM {100 * accuracy:.1f}%")

    def close(self) -> None:
        self._before.end()
        if self._progress is not None:
            self._progress.end()
        self._watching.__exit__(*sys.exc_info())
