"""``i2p cache``: build a teacher cache, look into it, check it."""

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cli.cache_tools import compact, convert, gc, merge
from cli.options import CachePath, LocalPath, config_argument, config_options
from cli.own_recipe import CONFIG_COPY, experiment_by_recipe
from cli.terminal import echo

if TYPE_CHECKING:
    from cli.experiment import Experiment
    from pipeline.build import BuildReport
    from teacher_cache.location import Location
    from teacher_cache.verify import Problem

__all__ = ["build_from", "cache"]

REASONS_SHOWN = 5
REPAIR_ROUNDS = 3


@click.group()
def cache() -> None:
    """Build a teacher cache, look into it, check it."""


for tool in (compact, convert, merge, gc):
    cache.add_command(tool)


@cache.command(
    epilog="Example: i2p cache build shapenet --set build.scheduler=processes --set build.workers=4. "
    "A build that was stopped goes on where it was; a complete one returns at once."
)
@config_argument
@config_options
@click.option("--scheduler", help="Short for --set build.scheduler=...: threads, processes, or tcp://host:8786.")
@click.option("--workers", type=int, help="Short for --set build.workers=...")
@click.option("--retry-refused", is_flag=True, help="Try every refused shape again, not only those that changed.")
@click.option("--changed", type=click.Choice(["refuse", "rebuild"]),
              help="Short for --set build.changed=...: what is done about shapes that changed or went.")  # fmt: skip
@click.option("--check-content", is_flag=True, help="Compare the content of all files, not only their size and time.")
def build(
    config: str,
    overrides: tuple[str, ...],
    print_config: bool,
    scheduler: str | None,
    workers: int | None,
    retry_refused: bool,
    changed: str | None,
    check_content: bool,
) -> None:
    """Build the teacher cache of CONFIG (a preset or a TOML file) and print where it is."""
    from cli.config import load_experiment, to_toml

    extra = [f"build.scheduler='{scheduler}'"] if scheduler else []
    extra += [f"build.workers={workers}"] if workers is not None else []
    extra += ["build.retry_refused=true"] if retry_refused else []
    extra += [f"build.changed='{changed}'"] if changed else []
    extra += ["build.check='content'"] if check_content else []
    experiment = load_experiment(config, [*overrides, *extra])
    if print_config:
        echo(to_toml(experiment), nl=False)
        return
    from pipeline.errors import TooManyRefused

    try:
        echo(build_from(experiment).path)
    except TooManyRefused as error:
        echo(error.path)  # it is there all the same
        raise


def build_from(experiment: "Experiment") -> "BuildReport":
    """Build an experiment's cache with progress on standard error; a complete one is only reported."""
    from cli.config import to_toml
    from cli.progress import Progress, human_seconds
    from pipeline.build import BuildProgress, build_cache
    from pipeline.errors import TooManyRefused
    from teacher_cache.storage import storage_at

    progress: Progress | None = None
    fitting: Progress | None = None

    def show_fit(done: int, total: int) -> None:
        nonlocal fitting
        if fitting is None:
            fitting = Progress("basis", total, unit="shapes")
            fitting.write(f"fitting {experiment.cache.channels} channels to what the teacher says of {total} shapes")
        fitting.update(done)

    def show(state: BuildProgress) -> None:
        nonlocal progress, fitting
        if fitting is not None:
            fitting.__exit__(None, None, None)
            fitting = None
        if progress is None:
            if state.shards_done == state.shards_total:
                return
            progress = Progress("cache", state.shapes_total, unit="shapes", initial=state.shapes_done)
            progress.write(
                f"building the cache of {experiment.corpus.uri}: {state.shapes_done} of {state.shapes_total} shapes "
                f"and {state.shards_done} of {state.shards_total} shards are there already"
            )
        shards = f"{state.shards_done}/{state.shards_total}"
        progress.update(state.shapes_done, shards=shards, quarantined=state.quarantined)

    _say_when_random(experiment)
    warnings = logging.getLogger("pipeline.teacher")
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
            on_progress=show,
            on_fit=show_fit,
        )
    except TooManyRefused as error:
        with suppress(OSError):  # of a finished cache on a disk that is read only: what was refused is the news
            storage_at(error.path).write_documents({CONFIG_COPY: to_toml(experiment).encode()})
        raise
    finally:
        warnings.setLevel(level)
        if fitting is not None:
            fitting.__exit__(None, None, None)
        if progress is not None:
            progress.__exit__(None, None, None)
    if report.already_complete:
        echo(f"cache complete: {report.shapes} shapes in {report.path}", err=True)
        return report
    storage_at(report.path).write_documents({CONFIG_COPY: to_toml(experiment).encode()})
    rate = f"{report.shapes / report.seconds:.1f} shapes/s" if report.built == report.shards else "resumed"
    echo(
        f"cache built: {report.shapes} shapes, {report.shards} shards in {human_seconds(report.seconds)} ({rate})",
        err=True,
    )
    work = ", ".join(f"{stage} {share:.0%}" for stage, share in report.shares.items())
    busy = "" if report.taught is None else f"; the teacher took {report.taught:.0%} of {report.teachers} lanes' time"
    echo(f"its work: {work}{busy}", err=True)
    _say_quarantine(report.quarantined)
    return report


@cache.command(epilog="Example: i2p cache info caches/synthetic-0f3a9c21d7be")
@click.argument("path", type=CachePath())
def info(path: "Location") -> None:
    """Print a cache's recipe, size, counts and quarantine. Reads an unfinished cache too."""
    import teacher_cache

    opened = teacher_cache.open(path, allow_incomplete=True)
    found, poses = opened.info(), opened.poses
    refused = len(found.quarantined)
    planned = f" of {(found.planned - refused) // poses + refused} planned" if found.planned >= 0 else ""
    state = "complete" if found.complete else "NOT complete: run its build again to finish it"
    schema = found.schema
    echo(f"cache        {found.path}")
    echo(f"state        {state}")
    echo(f"format       {found.format}, version {found.recipe.format_version}")
    echo(f"recipe       {found.recipe.hash}")
    echo(f"shapes       {found.records // poses}{planned}, {refused} quarantined")
    echo(f"poses        {poses} of each shape, {found.records} records")
    echo(f"labels       {len(found.label_names)}")
    echo(
        f"record       {schema.points} points, {schema.views} views of {schema.image_side} x {schema.image_side} "
        f"pixels, {schema.tokens} tokens of {schema.channels} channels, "
        f"{'a' if opened.stores_class else 'no'} class token of each view"
    )
    if (basis := opened.basis) is not None:
        echo(
            f"basis        {basis.sha256[:12]}, {basis.channels} of the teacher's {basis.teacher_channels} channels, "
            f"{100 * basis.kept:.2f}% of the variance of {basis.shapes} shapes"
        )
    echo(
        f"size         {found.bytes / 1e6:.1f} MB in {found.shards} shards, "
        f"{found.bytes_per_record * poses / 1e3:.1f} kB a shape"
    )
    for part in ("corpus", "projection", "teacher", "storage"):
        echo(f"\n[{part}]")
        for key, value in getattr(found.recipe, part).items():
            echo(f"  {key} = {value}")
    if found.quarantined:
        echo("\nquarantined")
        for item in found.quarantined:
            echo(f"  {item.id}: {item.source}: {item.reason}")


@cache.command(epilog="Example: i2p cache verify caches/synthetic-0f3a9c21d7be && rsync ...")
@click.argument("path", type=CachePath())
def verify(path: "Location") -> None:
    """Compare every byte of a finished cache with its checksums; exit 1 and list the files when something is wrong."""
    import teacher_cache
    from cli.progress import Progress

    progress: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress("verifying", total, unit="files")
        progress.update(done)

    problems = teacher_cache.verify(path, on_progress=show)
    if progress is not None:
        progress.__exit__(None, None, None)
    for problem in problems:
        echo(problem)
    if problems:
        echo(f"{len(problems)} problems in {path}", err=True)
        raise SystemExit(1)
    echo(f"sound: {path}", err=True)


@cache.command(
    epilog="Examples: i2p cache repair caches/synthetic-0f3a9c21d7be; i2p cache repair PATH --config mine.toml"
)
@click.argument("path", type=CachePath())
@click.option("--config", help="Experiment the cache was built from. [default: the cache's own recipe, with the places "
              "of corpus and weights that it notes]")  # fmt: skip
@click.option("--scheduler", help="As build.scheduler; never taken from the cache. [default: this machine]")
@click.option("--workers", type=int, help="As build.workers.")
@click.option("--changed", type=click.Choice(["refuse", "rebuild"]), default="rebuild", show_default=True,
              help="Where the corpus changed since the cache was built: build those shards again too, so that "
              "old and new never mix, or stop before anything is done.")  # fmt: skip
def repair(
    path: "Location",
    config: str | None,
    scheduler: str | None,
    workers: int | None,
    changed: Literal["refuse", "rebuild"],
) -> None:
    """Find what is damaged in a cache and build just that again; exit 1 when something is left."""
    import teacher_cache
    from cli.config import load_experiment
    from teacher_cache.location import parent

    problems = teacher_cache.verify(path)
    rounds = 0
    if any(_mendable(problem) for problem in problems):
        if config is None:
            experiment = experiment_by_recipe(path, scheduler=scheduler, workers=workers)
        else:
            extra = [f"build.scheduler={scheduler!r}"] if scheduler else []
            extra += [f"build.workers={workers}"] if workers is not None else []
            experiment = load_experiment(config, extra)
            # Where the cache lies now, wherever that experiment once put it.
            experiment = replace(experiment, cache=replace(experiment.cache, root=str(parent(path))))
        experiment = replace(experiment, build=replace(experiment.build, changed=changed))
        _say_what_runs(experiment, path, config)
        _check_describes(experiment, path, config or CONFIG_COPY)
        if stale := _stale_shards(experiment, path, refuse=changed == "refuse"):
            # Their receipts may go with the damage below, and with them what tells that these shapes changed.
            taken_back = [problem for problem in problems if _mendable(problem)]
            echo(f"{len(stale)} shards are built again with the files as they are now", err=True)
            problems = [*taken_back, *(stale_problem(shard) for shard in stale)]
    # A damaged manifest hides what is damaged below it, so a second look can find more than the first.
    while any(_mendable(problem) for problem in problems) and rounds < REPAIR_ROUNDS:
        shards = teacher_cache.withdraw(path, problems)
        echo(f"{len(problems)} problems; building {len(shards)} shards again", err=True)
        build_from(replace(experiment, build=replace(experiment.build, max_refused=1.0)))  # it was settled at the build
        problems, rounds = teacher_cache.verify(path), rounds + 1
    for problem in problems:
        echo(problem)
    if problems:
        echo(f"{len(problems)} problems are left in {path}", err=True)
        raise SystemExit(1)
    echo(f"sound: {path}", err=True)


def _stale_shards(experiment: "Experiment", path: "Location", *, refuse: bool) -> tuple[int, ...]:
    """Shards with shapes that changed or went since; said on standard error. Raises BuildError where refused."""
    from pipeline.build import changes_of
    from pipeline.changes import refuse_stale

    changes = changes_of(
        experiment.corpus, experiment.projection, experiment.teacher, experiment.cache,
        content=experiment.build.check == "content",
    )  # fmt: skip
    if refuse:
        refuse_stale(changes, path)
    for line in changes.lines():
        echo(line, err=True)
    return changes.shards if changes.stale else ()


def stale_problem(shard: int) -> "Problem":
    """A shard that is sound, and of files that are not there any more."""
    from teacher_cache.layout import receipt_path
    from teacher_cache.verify import Problem

    return Problem(file=receipt_path(shard), shard=shard, what="is of files that have changed since")


def _say_what_runs(experiment: "Experiment", path: "Location", config: str | None) -> None:
    """Before anything is built into a cache that somebody else may have made."""
    noted = f"places noted in the cache's {CONFIG_COPY}, checked against its recipe" if config is None else config
    weights = experiment.teacher.weights or experiment.teacher.pretrained
    workers = f", {experiment.build.workers} workers" if experiment.build.workers else ""
    echo(
        f"repairing {path} ({noted}):\n  corpus    {experiment.corpus.uri}\n"
        f"  teacher   {experiment.teacher.architecture}, weights {weights}\n"
        f"  build     {experiment.build.scheduler}{workers}",
        err=True,
    )


def _check_describes(experiment: "Experiment", path: "Location", source: str) -> None:
    """Before anything is taken from a cache: would this experiment's build be of this cache? Raises ConfigError."""
    import teacher_cache
    from cli.config import ConfigError
    from pipeline.build import cache_of
    from teacher_cache.location import resolve

    recipe, place = cache_of(experiment.corpus, experiment.projection, experiment.teacher, experiment.cache)
    if resolve(place) == resolve(path):
        return
    try:
        differing = teacher_cache.open(path, allow_incomplete=True).recipe.differences(recipe)
    except teacher_cache.CacheError:
        differing = []  # what is damaged cannot be compared
    remedy = "name its own experiment" if differing else f"name its own experiment, or call the folder {place}"
    raise ConfigError(source, [f"describes the cache {place}, not {path}; {remedy}", *differing])


def _mendable(problem: Any) -> bool:
    return not problem.foreign


@cache.command(
    name="list", epilog="Examples: i2p cache list; i2p cache list /data/caches; i2p cache list s3://bucket/caches"
)
@click.argument("root", type=CachePath(), default="caches")
def list_all(root: "Location") -> None:
    """List the caches in a folder, with what they are made of and their size."""
    import teacher_cache

    found, faults = teacher_cache.list_caches(root)
    for info in found:
        recipe = info.recipe
        shapes = info.records // recipe.corpus.get("poses", 1)
        state = "complete" if info.complete else "unfinished"
        teacher = recipe.teacher.get("architecture", "?")
        random = " (random)" if "random_seed" in recipe.teacher else ""
        echo(
            f"{info.path.rpartition('/')[2]:<32} {state:<10} {shapes:>8} shapes {info.bytes / 1e6:>9.1f} MB  "
            f"{info.format:<10} {recipe.storage.get('features', '?'):<8} "
            f"{recipe.corpus.get('kind', '?')}, {teacher}{random}"
        )
    for fault in faults:
        echo(f"cannot be read: {fault}", err=True)
    if not found and not faults:
        echo(f"no caches in {root}", err=True)
    if faults:
        raise SystemExit(1)


@cache.command(epilog="Example: i2p cache render caches/synthetic-0f3a9c21d7be --shape 0 --shape 17 --out views.png")
@click.argument("path", type=CachePath())
@click.option(
    "--shape", "shapes", type=int, multiple=True, help="Record number; may be given many times. Default: 0 to 4."
)
@click.option("--out", type=LocalPath(dir_okay=False), default=Path("cache.png"), show_default=True)
def render(path: "Location", shapes: tuple[int, ...], out: Path) -> None:
    """Draw shapes of a cache: the cloud, its depth views, and the teacher's saliency over them."""
    import teacher_cache
    from cli.pictures import record_sheet

    opened = teacher_cache.open(path, allow_incomplete=True)
    chosen = list(shapes) or list(range(min(5, len(opened))))
    outside = [index for index in chosen if not 0 <= index < len(opened)]
    if outside:
        raise click.BadParameter(f"{outside[0]} is outside 0..{len(opened) - 1}", param_hint="--shape")
    records = [opened[index] for index in chosen]
    names = opened.label_names
    titles = [names[record.label] if 0 <= record.label < len(names) else record.id for record in records]
    record_sheet(records, out, titles=titles)
    echo(out)


def _say_when_random(experiment: "Experiment") -> None:
    if experiment.teacher.random:
        echo(
            "note: this experiment names a RANDOM teacher: its cache exercises the path, but holds no 2D knowledge",
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
