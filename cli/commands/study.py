"""``i2p study``: many trainings of one small student, side by side."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import LocalPath, all_of, json_option, labelled_pair
from cli.show.terminal import answer, echo

if TYPE_CHECKING:
    from cli.study.arms import Arm
    from cli.study.plan import Run
    from teacher_cache.location import Location

__all__ = ["study"]


@click.group(epilog="Example: i2p study guidance --real 'modelnet10=npz:FILE?split=train,npz:FILE?split=test'")
def study() -> None:
    """Train one small student under many settings, and compare."""


def _options(out: Path) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator with the options of every study.

    out  default working folder.
    """
    many: dict[str, Any] = {"multiple": True}
    shown: dict[str, Any] = {"show_default": True}
    positive = click.IntRange(min=1)
    options: list[Callable[..., Any]] = [
        click.argument("config", default="study", metavar="[CONFIG]"),
        click.option("--out", type=LocalPath(file_okay=False), help=f"Working folder.  [default: {out}]"),
        click.option("--seeds", type=positive, default=3, help="Students trained in each arm.", **shown),
        click.option("--workers", type=positive, default=2, help="Runs at a time, a thread each.", **shown),
        click.option("--teacher", "given", metavar="NAME=SETTINGS",
                     help="One more teacher: settings of [teacher], separated by commas; or A+B, those together.",
                     **many),
        click.option("--main", default="embedded", help="Teacher of the arms that run with one only.", **shown),
        click.option("--real", metavar="NAME=TRAIN,TEST", help="Labelled corpora to evaluate on, too.", **many),
        click.option("--pretrain-on", "corpora", metavar="NAME=URI",
                     help="Train on this corpus instead of CONFIG's; of several, on each in turn.", **many),
        click.option("--only", metavar="ARM[:TEACHER]",
                     help="These arms instead of all; may be given many times.", **many),
        click.option("--set", "overrides", metavar="SECTION.KEY=VALUE", help="Override one setting.", **many),
        click.option("--report", "report_only", is_flag=True, help="Report what is there; run nothing."),
        json_option,
        click.option("--from", "files", type=LocalPath(exists=True, dir_okay=False), metavar="FILE",
                     help="Take the runs in a study's runs.json as done; with --report, report them alone.", **many),
    ]  # fmt: skip

    return all_of(options)


@study.command(
    epilog="Examples: i2p study guidance; i2p study guidance --only full --only 3d-random --seeds 5; "
    "i2p study guidance --teacher b16=architecture=ViT-B-16,pretrained=openai --teacher both=embedded+b16; "
    "i2p study guidance --seeds 5 --from a/runs.json; "
    "i2p study guidance --report --from a/runs.json --from b/runs.json. "
    "A stopped study resumes where it was; a finished one is only reported."
)
@_options(Path("runs/study"))
def guidance(**options: Any) -> None:
    """Measure whether 2D guidance pays: masking and targets with and without teachers, one cache per teacher."""
    from cli.study.arms import ARMS, BASELINE

    _study(ARMS, BASELINE, Path("runs/study"), **options)


@study.command(
    epilog="Examples: i2p study scaling; i2p study scaling --set 'corpus.uri=\"folder:meshes\"' --seeds 5. "
    "It stops, resumes and reports like the guidance study."
)
@_options(Path("runs/scaling"))
def scaling(**options: Any) -> None:
    """Do more shapes pay? The full method on a tenth, three tenths and all of one cache, for as many steps."""
    from cli.study.arms import SCALING, SHARES_BASELINE

    _study(SCALING, SHARES_BASELINE, Path("runs/scaling"), **options)


def _study(
    arms: Sequence["Arm"],
    baseline: str,
    place: Path,
    *,
    config: str,
    out: Path | None,
    seeds: int,
    workers: int,
    given: tuple[str, ...],
    main: str,
    real: tuple[str, ...],
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    report_only: bool,
    as_json: bool,
    corpora: tuple[str, ...],
    files: tuple[Path, ...],
) -> None:
    """Plan, carry out and report a study of these arms; the rest are the options of `_options`.

    baseline  arm that gains are over.   place  working folder, if none is given.
    """
    from cli.study.arms import TEACHERS
    from cli.study.plan import plan_runs, result_of
    from cli.study.report import read_measurements

    measured, theirs = read_measurements(files)
    if files and report_only:
        spent = sum(run["seconds"] for run in measured)
        _report(measured, out, len(measured), seconds=spent, baseline=theirs, as_json=as_json)
        return
    out = out or place
    teachers = {**TEACHERS, **dict(map(_teacher, given))}
    runs = plan_runs(
        config, overrides, teachers=teachers, main=main, seeds=seeds, only=only, folder=out, arms=arms,
        real=[labelled_pair(text, "--real") for text in real], corpora=[_corpus(text) for text in corpora],
    )  # fmt: skip
    results: dict[Run, Any] = {run: found for run in runs if (found := result_of(run)) is not None}
    source = ", ".join(map(str, files))
    recorded = _recorded(runs, measured, results, source) if files else {}
    results |= recorded
    failed: list[str] = []
    began = time.perf_counter()
    missing = [] if report_only else [run for run in runs if run not in results]
    if missing:
        failed = _carry_out(missing, results, workers, len(runs), sources=dict.fromkeys(recorded, source))
    spent = time.perf_counter() - began if missing else 0.0
    _report(list(results.values()), out, len(runs), seconds=spent, baseline=baseline, as_json=as_json)
    if failed:
        echo(f"{len(failed)} of {len(runs)} runs failed; run the same command again to retry them", err=True)
        raise SystemExit(1)


def _recorded(
    runs: Sequence["Run"], measured: Sequence[dict[str, Any]], own: Mapping["Run", Any], source: str
) -> dict["Run", Any]:
    """Return the recorded results of runs that this study's folder does not have; say how many are of no run of it."""
    from cli.experiment.toml import ConfigError
    from cli.study.recorded import recorded_results

    found, others = recorded_results(runs, measured, source)
    for run, result in found.items():
        if own.get(run, result) != result:
            raise ConfigError(source, [f"tells the run {run.title} differently than {run.folder}; leave one out"])
    if others:
        echo(f"{others} of {len(measured)} recorded runs are not of this study and are left out", err=True)
    return {run: result for run, result in found.items() if run not in own}


def _carry_out(
    missing: Sequence["Run"], results: dict["Run", Any], workers: int, total: int, *, sources: Mapping["Run", str]
) -> list[str]:
    """Build the required caches, then do the runs, in processes; -> titles of those that failed.

    sources  the files that results come from which are not of this study's folder.
    """
    from cli.actions.build_cache import build_from
    from cli.show.progress import Progress
    from cli.study.plan import caches_of, require_caches
    from cli.study.worker import do
    from cli.study.workers import WorkerError, do_all

    caches: dict[str, Location] = {}
    for run in missing:
        if not {run.cache, *(key for key, _ in run.further)} <= set(caches):
            for key, experiment in caches_of(run).items():
                if key not in caches:
                    caches[key] = build_from(experiment).path
    for run, result in results.items():
        require_caches(run, result, caches, source=sources.get(run))
    failed: list[str] = []
    jobs = [(run, (run, caches[run.cache], *(caches[key] for key, _ in run.further))) for run in missing]
    with (
        Progress("study", total, unit="runs", initial=total - len(missing)) as progress,
        closing(do_all(do, jobs, workers)) as ended,
    ):
        for run, found in ended:
            if isinstance(found, WorkerError):
                failed.append(run.title)
                progress.write(f"FAILED {run.title}: {found}")
            else:
                results[run] = found
                scores = ", ".join(f"{name} {100 * score['accuracy']:.1f}%" for name, score in found["sets"].items())
                progress.write(f"{run.title}: {scores} ({found['seconds']:.0f} s)")
            progress.update(progress.done + 1)
    return failed


def _report(
    results: Sequence[Mapping[str, Any]], out: Path | None, total: int, *, seconds: float, baseline: str, as_json: bool
) -> None:
    """Print the results, and write them into `out`; `seconds` were spent on the runs and caches by this command."""
    from cli.show.progress import human_seconds
    from cli.study.report import markdown, picture, summarise, write_measurements
    from teacher_cache.storage.atomic import replace_file
    from trainer.engine.run_directory import known_json

    if not results:
        raise click.ClickException(f"no run of this study has finished in {out}")
    summary = summarise(results, baseline)
    table = markdown(summary)
    if out is None:
        answer(summary, table, as_json=as_json)
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / "study.json"
    earlier = known_json(path, "the table").get("seconds", 0.0)
    summary["seconds"] = earlier + seconds
    replace_file(path, (json.dumps(summary, indent=1) + "\n").encode())
    replace_file(out / "study.md", (table + "\n").encode())
    picture(summary, out / "study.png")
    write_measurements(results, out / "runs.json", baseline)
    answer(summary, table, as_json=as_json)
    if len(results) < total:
        echo(f"{len(results)} of {total} runs have finished", err=True)
    echo(f"{human_seconds(summary['seconds'])} in all, caches included", err=True)
    echo(f"written: {out / 'study.md'}, study.json, study.png; every run's measurements in runs.json", err=True)


def _teacher(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, settings = text.partition("=")
    # A setting of another section is one that this teacher needs, such as projection.normalisation=clip. Commas in
    # brackets are of one value; what has no "=" is a combination of other teachers, A+B.
    parts = tuple(
        part if "=" not in part or "." in part.partition("=")[0] else f"teacher.{part}"
        for part in re.split(r",(?![^\[]*\])", settings)
        if part
    )
    if not (equals and name and parts) or any("=" not in part for part in parts[1:]):
        raise click.BadParameter(f"{text}: expected NAME=key=value,key=value or NAME=A+B", param_hint="--teacher")
    return name, parts


def _corpus(text: str) -> tuple[str, str]:
    name, _, uri = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or ":" not in uri:
        raise click.BadParameter(
            f"{text}: expected NAME=URI, as in real=folder:meshes; a name of letters, digits, '.', '_' and '-'",
            param_hint="--pretrain-on",
        )
    return name, uri
