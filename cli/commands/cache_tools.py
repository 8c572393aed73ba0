"""``i2p cache convert | compact | merge | gc``: caches made from caches, and clean-up after dead builds."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cli.options import CachePath, json_option
from cli.show.terminal import answer, echo

if TYPE_CHECKING:
    from teacher_cache import Findings, RecordBatch, Rewritten
    from teacher_cache.location import Location
    from teacher_cache.maintenance.sources import FindUntouched

__all__ = ["compact", "convert", "gc", "merge"]

RECORDS_AT_ONCE = 16  # whose windows are computed at a time; it bounds memory, a record's take a megabyte

# As teacher_cache.config has them; repeated, so that --help loads no room. A test holds the two together.
FORMATS = ("zarr", "webdataset")
FEATURES = ("float16", "float32", "int8")
DEPTHS = ("uint8", "float16", "none")
COMPRESSIONS = ("zstd", "none")

WHAT = {
    "workspace": "unfinished work of a dead process",
    "shard": "a shard that was never committed",
    "unknown": "not a file of a cache",
}

threads_option = click.option(
    "--threads", type=click.IntRange(1, 64), default=2, show_default=True, help="Shards in work at once."
)


@click.command(
    epilog="Examples: i2p cache convert caches/shapenet55-0f3a9c21d7be --format webdataset; "
    "i2p cache convert PATH --features int8 --steps 24 --untouched zero --root small. "
    "A stopped conversion resumes where it was."
)
@click.argument("source", type=CachePath())
@click.option("--root", help="Folder or URL that holds caches. [default: where SOURCE lies]")
@click.option("--format", type=click.Choice(FORMATS), help="Loses nothing.")
@click.option("--compression", type=click.Choice(COMPRESSIONS), help="Loses nothing.")
@click.option("--level", type=click.IntRange(1, 19), help="zstd level. Loses nothing.")
@click.option("--shapes-per-shard", type=click.IntRange(1, 65536), help="Refill shards, in order. Loses nothing.")
@click.option("--features", type=click.Choice(FEATURES), help="Coarser features than SOURCE has.")
@click.option("--steps", type=click.IntRange(7, 127), help="Quantisation steps of --features int8.")
@click.option("--untouched", type=click.Choice(["zero"]), help="Zero features that no lookup reads.")
@click.option("--class-token", type=click.Choice(["none"]), help="Leave out the class tokens.")
@click.option("--depth", type=click.Choice(DEPTHS), help="Coarser images than SOURCE has, or none.")
@threads_option
@json_option
def convert(source: "Location", root: str | None, threads: int, as_json: bool, **storage: Any) -> None:
    """Rewrite a finished cache with another storage, and print its location.

    The new cache has a name and a folder of its own; SOURCE stays as it is. Each of its shards is checked first.
    """
    import teacher_cache
    from teacher_cache.location import parent

    changes = {name: value for name, value in storage.items() if value is not None}
    if not changes:
        raise click.UsageError("say what to change: --format, --features, --shapes-per-shard, ...")
    if "steps" in changes and changes.get("features") != "int8":
        raise click.UsageError("--steps applies to --features int8; give both")
    find = _find_untouched(teacher_cache.open(source)) if "untouched" in changes else None
    with _progress("converting") as show:
        made = teacher_cache.convert(
            source,
            root or parent(source),
            find_untouched=find,
            threads=threads,
            on_progress=show,
            **changes,
        )
    _carry_config(source, made.path, changes)
    before = teacher_cache.open(source).info()
    _say(made, f"{before.bytes / 1e6:.1f} MB before", as_json)


@click.command(epilog="Example: i2p cache compact caches/shapenet55-0f3a9c21d7be. A stopped call resumes where it was.")
@click.argument("path")
@threads_option
@json_option
def compact(path: str, threads: int, as_json: bool) -> None:
    """Join the small shards that growing a cache leaves into full ones, in its place.

    Recipe, records and their numbers stay. Needs space for a second copy meanwhile; no build may run at the same time.
    """
    import teacher_cache

    with _progress("compacting") as show:
        made = teacher_cache.compact(path, threads=threads, on_progress=show)
    if made is None:
        echo(f"its shards are already full: {path}", err=True)
        answer({"path": path, "written": 0}, path, as_json=as_json)
        return
    _say(made, f"{made.shards} shards", as_json)


@click.command(
    epilog="Example: i2p cache merge node1/folder-0f3a9c21d7be node2/folder-0f3a9c21d7be --root caches. "
    "A stopped merge resumes where it was."
)
@click.argument("sources", type=CachePath(), nargs=-1, required=True, metavar="SOURCE SOURCE...")
@click.option("--root", required=True, help="Folder or URL that holds caches, other than where a SOURCE lies.")
@click.option(
    "--duplicates",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="Shapes of several SOURCEs; copies that differ are refused in any case.",
)
@click.option("--refill", is_flag=True, help="Refill shards instead of keeping each SOURCE's own.")
@threads_option
@json_option
def merge(
    sources: "tuple[Location, ...]", root: str, duplicates: Any, refill: bool, threads: int, as_json: bool
) -> None:
    """Merge the shapes of several caches of one recipe into one, in the order named, and print its location.

    The SOURCEs stay as they are. Each of their shards is checked first.
    """
    import teacher_cache

    if len(sources) < 2:
        raise click.UsageError("give two or more caches")
    with _progress("merging") as show:
        made = teacher_cache.merge(
            sources, root, duplicates=duplicates, refill=refill, threads=threads, on_progress=show
        )
    _say(made, f"of {len(sources)} caches", as_json)


@click.command(
    epilog="Examples: i2p cache gc caches; i2p cache gc caches/synthetic-0f3a9c21d7be --unknown; "
    "i2p cache gc caches --yes in scripts."
)
@click.argument("path", type=CachePath())
@click.option("--unknown", is_flag=True, help="Also list files that do not belong to a cache, whoever put them there.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@json_option
def gc(path: "Location", unknown: bool, yes: bool, as_json: bool) -> None:
    """List what dead builds left in the cache PATH, or in all caches of the folder PATH, and ask to remove it.

    Work of running builds, committed shards and finished caches are never touched. Exit 2 when there is something to
    remove, nobody to ask, and no --yes.
    """
    import teacher_cache

    findings = teacher_cache.find_abandoned(str(path), unknown=unknown)
    listed = [
        {"cache": str(piece.cache), "path": piece.path, "kind": piece.kind, "bytes": piece.bytes}
        for piece in findings.abandoned
    ]
    result = {"caches": findings.caches, "abandoned": listed, "faults": [str(fault) for fault in findings.faults]}
    answer(result, partial(_list, findings), as_json=as_json)
    _show(findings, path)
    if findings.abandoned:
        pieces = findings.abandoned
        size = sum(piece.bytes for piece in pieces)
        if not yes and not sys.stdin.isatty():
            echo("nothing was removed: there is no terminal to confirm on; give --yes to remove these", err=True)
            raise SystemExit(2)
        if yes or click.confirm(f"Remove these {len(pieces)} pieces, {size / 1e6:.1f} MB?", err=True):
            with _progress("removing", unit="pieces") as show:
                show(0, len(pieces))
                removed, kept = teacher_cache.gc(pieces, on_progress=lambda done: show(done, len(pieces)))
            freed = sum(piece.bytes for piece in removed)
            echo(f"removed {len(removed)} pieces, {freed / 1e6:.1f} MB", err=True)
            for piece in kept:
                echo(f"kept, because a build uses it now: {piece.cache}/{piece.path}", err=True)
        else:
            echo("nothing was removed", err=True)
    if findings.faults:
        raise SystemExit(1)


def _list(findings: "Findings") -> None:
    for piece in findings.abandoned:
        echo(f"{piece.bytes / 1e6:>10.3f} MB  {piece.cache}/{piece.path}  ({WHAT[piece.kind]})")


def _show(findings: "Findings", path: "Location") -> None:
    for fault in findings.faults:
        echo(f"cannot be read: {fault}", err=True)
    if findings.busy:
        echo(f"{findings.busy} locks of running builds were left alone", err=True)
    if not findings.caches:
        echo(f"no caches in {path}", err=True)
    elif not findings.abandoned:
        echo(f"nothing is abandoned in {findings.caches} caches", err=True)


@contextmanager
def _progress(title: str, unit: str = "shards") -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that shows progress from its first call on, unless all was done by then."""
    from cli.show.progress import Progress

    shown: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal shown
        if shown is None and done < total:
            shown = Progress(title, total, unit=unit, initial=done)
        if shown is not None:
            shown.update(done)

    try:
        yield show
    finally:
        if shown is not None:
            shown.__exit__(*sys.exc_info())


def _say(made: "Rewritten", more: str, as_json: bool) -> None:
    state = "already complete" if not made.written else f"{made.written} of {made.shards} shards written"
    echo(f"{state}: {made.records} records, {made.bytes / 1e6:.1f} MB, {more}", err=True)
    found = {"path": str(made.path), "records": made.records, "bytes": made.bytes,
             "shards": made.shards, "written": made.written}  # fmt: skip
    answer(found, str(made.path), as_json=as_json)


def _find_untouched(cache: Any) -> "FindUntouched":
    """Return a function that finds the tokens no lookup at a stored point reads, as the build does."""
    import numpy as np
    import torch

    from cuda.geometry import ViewGeometry
    from cuda.untouched import untouched_tokens

    image_side, side = cache.schema.image_side, cache.schema.image_side // cache.schema.patch_side

    def find(batch: "RecordBatch") -> Any:
        found = []
        for start in range(0, len(batch), RECORDS_AT_ONCE):
            rows = slice(start, start + RECORDS_AT_ONCE)
            geometry = ViewGeometry(*(torch.from_numpy(part[rows]) for part in (batch.lo, batch.cell, batch.offset)))
            found.append(untouched_tokens(batch.points[rows], geometry, image_side=image_side, side=side))
        return np.concatenate(found)

    return find


def _carry_config(source: "Location", made: "Location", changes: dict[str, Any]) -> None:
    """Copy the experiment to the new cache, as a build does, so that `i2p cache repair` finds its paths there."""
    from cli.experiment.own_recipe import CONFIG_COPY, experiment_by_recipe
    from cli.experiment.toml import ConfigError, to_toml
    from teacher_cache.location import parent
    from teacher_cache.storage.opening import storage_at

    try:
        experiment = experiment_by_recipe(source)
    except ConfigError:
        return  # no notes to hand on
    changed = replace(experiment, cache=replace(experiment.cache, root=str(parent(made)), **changes))
    storage_at(made).write_documents({CONFIG_COPY: to_toml(changed).encode()})
