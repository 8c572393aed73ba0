"""``i2p pretrain``: train an encoder from an experiment and score it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import CachePath, LocalPath, config_argument, config_options
from cli.show.terminal import echo

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment
    from teacher_cache.location import Location
    from trainer.engine.events import Event

__all__ = ["pretrain", "table"]

_TITLES = {"3d": "3D", "2d": "2D"}  # of losses; others are called by their names


@click.command(
    epilog="Examples: i2p pretrain quickstart; i2p pretrain mine.toml --set trainer.epochs=50; "
    "torchrun --nproc-per-node 8 -m cli.main pretrain shapenet --cache PATH. A stopped run goes on where it was."
)
@config_argument
@config_options
@click.option("--cache", "cache_path", type=CachePath(),
              help="Train on this cache instead of the one CONFIG describes.")  # fmt: skip
@click.option(
    "--stale-cache",
    type=click.Choice(["refuse", "train"]),
    help="Short for --set trainer.stale_cache=...: how a cache whose corpus changed is handled.",
)
@click.option("--out", type=LocalPath(file_okay=False), help="Run directory. [default: runs/CONFIG]")
def pretrain(
    config: str,
    overrides: tuple[str, ...],
    print_config: bool,
    cache_path: "Location | None",
    stale_cache: str | None,
    out: Path | None,
) -> None:
    """Pre-train an encoder as CONFIG (a preset or a TOML file) says; its cache is built first if missing."""
    import teacher_cache
    from cli.actions.build_cache import build_from
    from cli.actions.stale import check_corpus, finished_cache
    from cli.experiment.toml import load_experiment, to_toml
    from pipeline.build.own_records import own_records
    from teacher_cache.location import resolve
    from trainer.engine.ranks import place_in_launch

    experiment = load_experiment(
        config, [*overrides, *([f"trainer.stale_cache='{stale_cache}'"] if stale_cache else [])]
    )
    if print_config:
        echo(to_toml(experiment), nl=False)
        return
    launch, named = place_in_launch(), True
    if cache_path is not None:  # noted, so that the run's own config.toml repeats the run
        experiment = replace(experiment, trainer=replace(experiment.trainer, cache=str(cache_path)))
    elif experiment.trainer.cache:
        cache_path = resolve(experiment.trainer.cache)
    else:
        _check_alone(launch.size)
        cache_path = finished_cache(experiment) if experiment.trainer.stale_cache == "train" else None
        if cache_path is None:
            cache_path = build_from(experiment).path  # which compares the corpus itself
        named = False
    opened = teacher_cache.open(cache_path)
    if named and launch.rank == 0 and experiment.trainer.stale_cache == "refuse":
        check_corpus(experiment, cache_path)
    own, notes = own_records(opened, experiment.corpus, as_it_is=experiment.trainer.stale_cache == "train")
    for note in notes if launch.rank == 0 else ():
        echo(note, err=True)
    _train(experiment, own, out or Path("runs") / experiment.name, launch.rank)


def _check_alone(ranks: int) -> None:
    if ranks > 1:
        raise click.UsageError(
            "under torchrun, name a finished cache: build it first with `i2p cache build CONFIG`, "
            "and give the path it prints as --cache"
        )


def _train(experiment: "Experiment", opened: Any, run_dir: Path, rank: int) -> None:
    from cli.experiment.live import live_teacher
    from cli.experiment.toml import to_toml
    from cli.show.pictures import curves
    from cli.show.progress import human_seconds
    from teacher_cache.storage.commit import replace_file
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
            on_event=reporter,
        )
    finally:
        reporter.close()
    if rank != 0:
        return
    drawn = curves(run_dir, run_dir / "curves.png")
    if report.resumed_from == report.epochs:
        echo(f"complete already: {report.epochs} epochs", err=True)
    else:
        echo(f"trained {report.epochs - report.resumed_from} epochs in {human_seconds(report.seconds)}", err=True)
    if report.evaluation is not None:
        echo(table(report.evaluation))
    echo(f"encoder     {report.checkpoint}")
    if drawn:
        echo(f"curves      {run_dir / 'curves.png'}")
    echo(
        f"log         {run_dir / 'train.jsonl'}"
        + (f", {run_dir / 'tensorboard'}" if experiment.trainer.tensorboard else "")
    )


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
    titles = {
        "coordinates": "coordinate statistics",
        "untrained": "untrained encoder",
        "embedded": "the package's own encoder",
        "point-nn": "Point-NN (no weights)",
        "trained": "trained encoder",
    }
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
            f"  {titles.get(name, name):<26}{feature:<8}{row['dimensions']:>8}{100 * row['accuracy']:>11.1f}%"
            f"{spread}{other}"
        )
    skipped = result["train"]["skipped"] + result["test"]["skipped"]
    if skipped:
        lines.append(f"  {skipped} shapes could not be read and were left out")
    return "\n".join(lines)


class _Reporter:
    """Training events as a progress bar and, per epoch, a line."""

    def __init__(self, *, quiet: bool, evaluates: bool, on_start: Callable[[], None]):
        self._quiet, self._evaluates, self._on_start = quiet, evaluates, on_start
        self._progress: Any = None
        self._epochs = 0

    def __call__(self, event: "Event") -> None:
        from cli.show.progress import Progress, human_seconds
        from trainer.engine.events import CheckpointWritten, EpochDone, Evaluated, RunStarted, StepDone

        match event:
            case RunStarted():
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
                self._progress.write("evaluating the encoder beside its baselines")
            case Evaluated() if not event.final:
                accuracy = event.result["rows"]["trained"]["accuracy"]
                self._progress.write(f"epoch {event.epoch:>3}  linear SVM {100 * accuracy:.1f}%")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
