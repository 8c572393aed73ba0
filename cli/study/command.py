"""``i2p study``: many trainings of one small student, side by side."""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cli.study.plan import Run

__all__ = ["study"]


@click.group(epilog="Example: i2p study guidance --real 'modelnet10=npz:FILE?split=train,npz:FILE?split=test'")
def study() -> None:
    """Train one small student under many settings, and compare."""


@study.command(
    epilog="Examples: i2p study guidance; i2p study guidance --only full --only 3d-random --seeds 5; "
    "i2p study guidance --teacher b16=teacher.architecture=ViT-B-16,teacher.pretrained=openai. "
    "A study that is stopped goes on where it was; a finished one is only reported."
)
@click.argument("config", default="study", metavar="[CONFIG]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/study"), show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Students trained in each arm.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at a time, a thread each."
)
@click.option("--teacher", "given", multiple=True, metavar="NAME=SETTINGS",
              help="One more teacher: settings of [teacher], separated by commas.")  # fmt: skip
@click.option("--main", default="embedded", show_default=True, help="Teacher of the arms that run with one only.")
@click.option("--real", multiple=True, metavar="NAME=TRAIN,TEST", help="Labelled corpora to evaluate on, too.")
@click.option("--only", multiple=True, metavar="ARM", help="These arms instead of all; may be given many times.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting.")
@click.option("--report", "report_only", is_flag=True, help="Report what is there; run nothing.")
def guidance(
    config: str,
    out: Path,
    seeds: int,
    workers: int,
    given: tuple[str, ...],
    main: str,
    real: tuple[str, ...],
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    report_only: bool,
) -> None:
    """Does 2D guidance pay? Masking and targets with and without teachers, on one cache a teacher."""
    from cli.study.arms import TEACHERS
    from cli.study.plan import plan_runs, result_of

    teachers = {**TEACHERS, **dict(map(_teacher, given))}
    runs = plan_runs(
        config, overrides, teachers=teachers, main=main, seeds=seeds, real=[_real(text) for text in real], only=only,
        folder=out,
    )  # fmt: skip
    results = {run: found for run in runs if (found := result_of(run)) is not None}
    failed: list[str] = []
    if not report_only and len(results) < len(runs):
        failed = _carry_out([run for run in runs if run not in results], results, workers, len(runs))
    _report(list(results.values()), out, len(runs))
    if failed:
        click.echo(f"{len(failed)} of {len(runs)} runs failed; run the same command again to try them again", err=True)
        raise SystemExit(1)


def _carry_out(missing: Sequence["Run"], results: dict["Run", Any], workers: int, total: int) -> list[str]:
    """Build the caches that are needed, then do the runs, in processes; -> titles of those that failed."""
    from cli.cache import build_from
    from cli.progress import Progress
    from cli.study.plan import cache_settings
    from cli.study.worker import do, prepare

    caches: dict[str, Path] = {}
    for run in missing:
        if run.cache not in caches:
            caches[run.cache] = build_from(cache_settings(run)).path
    failed: list[str] = []
    # Fresh processes: forking one that has run numba and torch's thread pools is not safe.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare, initargs=(1,))
    begun = time.perf_counter()
    with pool, Progress("study", total, unit="runs", initial=total - len(missing)) as progress:
        waiting = {pool.submit(do, run, caches[run.cache]): run for run in missing}
        for future in as_completed(waiting):
            run = waiting[future]
            try:
                results[run] = future.result()
            except Exception as error:  # one run's failure is reported, and the others go on
                failed.append(run.title)
                progress.write(f"FAILED {run.title}: {type(error).__name__}: {error}")
            else:
                scores = ", ".join(f"{name} {100 * s['accuracy']:.1f}%" for name, s in results[run]["sets"].items())
                progress.write(f"{run.title}: {scores} ({results[run]['seconds']:.0f} s)")
            progress.update(progress.done + 1)
    from cli.progress import human_seconds

    click.echo(f"{len(missing)} runs in {human_seconds(time.perf_counter() - begun)}, {workers} at a time", err=True)
    return failed


def _report(results: Sequence[Mapping[str, Any]], out: Path, total: int) -> None:
    from cli.study.report import markdown, picture, summarise

    if not results:
        raise click.ClickException(f"no run of this study has ended in {out}")
    summary = summarise(results)
    table = markdown(summary)
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (out / "study.md").write_text(table + "\n", encoding="utf-8")
    picture(summary, out / "study.png")
    click.echo(table)
    if len(results) < total:
        click.echo(f"{len(results)} of {total} runs have ended", err=True)
    click.echo(f"written: {out / 'study.md'}, study.json, study.png", err=True)


def _teacher(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, settings = text.partition("=")
    parts = tuple(part if part.startswith("teacher.") else f"teacher.{part}" for part in settings.split(",") if part)
    if not (equals and name and parts):
        raise click.BadParameter(f"{text}: expected NAME=key=value,key=value", param_hint="--teacher")
    return name, parts


def _real(text: str) -> tuple[str, str, str]:
    name, equals, pair = text.partition("=")
    train, comma, test = pair.partition(",")
    if not (equals and comma and name and train and test):
        raise click.BadParameter(f"{text}: expected NAME=TRAIN,TEST", param_hint="--real")
    return name, train, test
