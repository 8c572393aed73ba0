"""Build of an experiment's cache, with progress and a report of what was built and refused."""

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cli.experiment.own_recipe import CONFIG_COPY
from cli.show.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cli.experiment.sections import Experiment
    from pipeline.build.driver import BuildReport
    from teacher_cache.location import Location

__all__ = ["build_from"]

REASONS_SHOWN = 5


def build_from(experiment: "Experiment", *, restore: "Mapping[int, Sequence[str]] | None" = None) -> "BuildReport":
    """Build an experiment's cache with progress on standard error; a complete one is only reported.

    restore  shapes by shard of shards that were withdrawn, as `build_cache` has it.
    """
    from cli.show.progress import Progress, human_seconds
    from pipeline.build.driver import BuildProgress, build_cache
    from pipeline.errors import TooManyRefused

    # Until the first shape: the corpus is listed and compared with what is there, the teacher loaded.
    opening = Progress("opening corpus and teacher", 0, unit="")
    progress: Progress | None = None
    fitting: Progress | None = None

    def show_fit(done: int, total: int) -> None:
        nonlocal fitting
        opening.end()
        if fitting is None:
            fitting = Progress("basis", total, unit="shapes")
            fitting.write(f"fitting {experiment.cache.channels} channels to the teacher's features of {total} shapes")
        fitting.update(done)

    def show(state: BuildProgress) -> None:
        nonlocal progress, fitting
        opening.end()
        if fitting is not None:
            fitting.end()
            fitting = None
        if progress is None:
            if state.shards_done == state.shards_total:
                return
            progress = Progress("cache", state.shapes_total, unit="shapes", initial=state.shapes_done)
            progress.write(
                f"building the cache of {experiment.corpus.uri}: {state.shapes_done} of {state.shapes_total} shapes "
                f"and {state.shards_done} of {state.shards_total} shards already exist"
            )
        shards = f"{state.shards_done}/{state.shards_total}"
        progress.update(state.shapes_done, shards=shards, quarantined=state.quarantined)

    _say_when_random(experiment)
    warnings = logging.getLogger("pipeline.teacher.tower")
    level = warnings.level
    if experiment.teacher.random:  # the room warns too; a person has just read it in plain words, once
        warnings.setLevel(logging.ERROR)
    try:
        report = build_cache(
            experiment.corpus,
            experiment.projection,
            experiment.teacher,
            experiment.cache,
            experiment.build,
            restore=restore,
            on_progress=show,
            on_fit=show_fit,
        )
    except TooManyRefused as error:
        with suppress(OSError):  # a finished cache on a read-only disk: the refused shapes still have to be reported
            _note_places(experiment, error.path, others=error.others)
        raise
    finally:
        warnings.setLevel(level)
        opening.end()
        if fitting is not None:
            fitting.end()
        if progress is not None:
            progress.end()
    if report.already_complete:
        more = f", which contains {report.others} more" if report.others else ""
        echo(f"cache complete: {report.shapes} shapes in {report.path}{more}", err=True)
        return report
    _note_places(experiment, report.path, others=report.others)
    rate = f"{report.shapes / report.seconds:.1f} shapes/s" if report.built == report.shards else "resumed"
    echo(
        f"cache built: {report.shapes} shapes, {report.shards} shards in {human_seconds(report.seconds)} ({rate})",
        err=True,
    )
    work = ", ".join(f"{stage} {share:.0%}" for stage, share in report.shares.items())
    busy = "" if report.taught is None else f"; the teacher took {report.taught:.0%} of {report.teachers} lanes' time"
    echo(f"time: {work}{busy}", err=True)
    _say_quarantine(report.quarantined)
    return report


def _note_places(experiment: "Experiment", path: "Location", *, others: int) -> None:
    """Leave a copy of the experiment in the cache, where a repair looks for the places of corpus and weights: of the
    one that is about the most of the shapes, as far as two can be compared."""
    from cli.experiment.toml import to_toml
    from teacher_cache.storage.opening import storage_at

    storage = storage_at(path)
    if others:
        with suppress(FileNotFoundError):
            storage.read(CONFIG_COPY)
            return
    storage.write_documents({CONFIG_COPY: to_toml(experiment).encode()})


def _say_when_random(experiment: "Experiment") -> None:
    if experiment.teacher.random:
        echo(
            "note: this experiment has a RANDOM teacher: its cache tests the pipeline, but contains no 2D knowledge",
            err=True,
        )


def _say_quarantine(quarantined: Any) -> None:
    if not quarantined:
        return
    echo(f"{len(quarantined)} shapes could not be used and are listed in the manifest (i2p cache info):", err=True)
    for item in quarantined[:REASONS_SHOWN]:
        echo(f"  {item.source}: {item.reason}", err=True)
    if len(quarantined) > REASONS_SHOWN:
        echo(f"  ... and {len(quarantined) - REASONS_SHOWN} more", err=True)
