"""``i2p cache repair``: rebuild what is damaged in a cache, from the cache's own recipe."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import click

from cli.actions.build_cache import build_from
from cli.actions.verify_cache import verify_shown
from cli.experiment.own_recipe import CONFIG_COPY, experiment_by_recipe
from cli.options import CachePath, json_option
from cli.show.terminal import answer, echo

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment
    from teacher_cache.location import Location
    from teacher_cache.maintenance.verify import Problem

__all__ = ["repair"]

REPAIR_ROUNDS = 3


@click.command(
    epilog="Examples: i2p cache repair caches/synthetic-0f3a9c21d7be; i2p cache repair PATH --config mine.toml"
)
@click.argument("path", type=CachePath())
@click.option("--config", help="Experiment the cache was built from. [default: the cache's own recipe, with the places "
              "of corpus and weights that it notes]")  # fmt: skip
@click.option("--scheduler", help="As build.scheduler; never taken from the cache. [default: this machine]")
@click.option("--workers", type=int, help="As build.workers.")
@click.option("--changed", type=click.Choice(["refuse", "rebuild"]), default="rebuild", show_default=True,
              help="If the corpus changed since the cache was built: rebuild those shards too, so that "
              "old and new never mix, or stop before anything is done.")  # fmt: skip
@json_option
def repair(
    path: "Location",
    config: str | None,
    scheduler: str | None,
    workers: int | None,
    changed: Literal["refuse", "rebuild"],
    as_json: bool,
) -> None:
    """Find damaged shards of a cache and rebuild only those; exit 1 when something is left."""
    import teacher_cache
    from cli.experiment.toml import load_experiment
    from teacher_cache.location import parent

    problems = verify_shown(path)
    rounds = 0
    rebuilt: set[int] = set()
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
            echo(f"{len(stale)} shards will be rebuilt from the current files", err=True)
            problems = [*taken_back, *(stale_problem(shard) for shard in stale)]
        shapes = _shapes_by_shard(path, experiment)
    # A damaged manifest hides what is damaged below it, so a second look can find more than the first.
    while any(_mendable(problem) for problem in problems) and rounds < REPAIR_ROUNDS:
        shards = teacher_cache.withdraw(path, problems)
        rebuilt |= set(shards)
        echo(f"{len(problems)} problems; rebuilding {len(shards)} shards", err=True)
        build_from(
            replace(experiment, build=replace(experiment.build, max_refused=1.0)),  # it was settled at the build
            restore={shard: shapes[shard] for shard in shards if shard in shapes},
        )
        problems, rounds = verify_shown(path), rounds + 1
    left = [vars(problem) for problem in problems]
    found = {"path": str(path), "sound": not problems, "rebuilt": sorted(rebuilt), "problems": left}
    if problems or as_json:
        answer(found, "\n".join(map(str, problems)), as_json=as_json)
    if problems:
        echo(f"{len(problems)} problems remain in {path}", err=True)
        raise SystemExit(1)
    echo(f"sound: {path}", err=True)


def _stale_shards(experiment: "Experiment", path: "Location", *, refuse: bool) -> tuple[int, ...]:
    """List shards with shapes that changed or vanished since, and report them on standard error.

    Raises BuildError where they are refused.
    """
    from pipeline.build.changes import refuse_stale
    from pipeline.build.driver import changes_of

    changes = changes_of(
        experiment.corpus, experiment.projection, experiment.teacher, experiment.cache,
        content=experiment.build.check == "content",
    )  # fmt: skip
    if refuse:
        refuse_stale(changes, path)
    for line in changes.lines():
        echo(line, err=True)
    return changes.shards if changes.stale else ()


def _shapes_by_shard(path: "Location", experiment: "Experiment") -> dict[int, list[str]]:
    """Read the shapes of each shard with a sound receipt, before it is withdrawn: other experiments' shapes, too."""
    from pipeline.build.upkeep import as_built
    from teacher_cache.format.receipts import noted_receipts
    from teacher_cache.maintenance.repair import sound_description
    from teacher_cache.storage.opening import storage_at

    noted = noted_receipts(storage_at(path), sound_description(path))
    return {receipt.shard: as_built(receipt, experiment.corpus.poses) for receipt, _ in noted}


def stale_problem(shard: int) -> "Problem":
    """Return the problem of a sound shard whose source files have changed."""
    from teacher_cache.format.paths import receipt_path
    from teacher_cache.maintenance.verify import Problem

    return Problem(file=receipt_path(shard), shard=shard, what="was made from files that have changed since")


def _say_what_runs(experiment: "Experiment", path: "Location", config: str | None) -> None:
    """Report what will run before anything is built into a cache that someone else may have made."""
    noted = f"paths from the cache's {CONFIG_COPY}, checked against its recipe" if config is None else config
    weights = experiment.teacher.weights or experiment.teacher.pretrained
    workers = f", {experiment.build.workers} workers" if experiment.build.workers else ""
    echo(
        f"repairing {path} ({noted}):\n  corpus    {experiment.corpus.uri}\n"
        f"  teacher   {experiment.teacher.architecture}, weights {weights}\n"
        f"  build     {experiment.build.scheduler}{workers}",
        err=True,
    )


def _check_describes(experiment: "Experiment", path: "Location", source: str) -> None:
    """Check that the experiment describes this cache before anything is taken from it. Raises ConfigError."""
    import teacher_cache
    from cli.experiment.toml import ConfigError
    from pipeline.build.driver import cache_of
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
