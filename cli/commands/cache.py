"""``i2p cache``: build, inspect and verify teacher caches."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.actions.build_cache import build_from
from cli.actions.verify_cache import verify_shown
from cli.commands.cache_repair import repair
from cli.commands.cache_tools import compact, convert, gc, merge
from cli.options import CachePath, LocalPath, config_argument, config_options, json_option
from cli.show.terminal import answer, echo

if TYPE_CHECKING:
    from teacher_cache import Cache, CacheInfo
    from teacher_cache.location import Location

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Build, inspect and verify teacher caches."""


for tool in (compact, convert, merge, gc, repair):
    cache.add_command(tool)


@cache.command(
    epilog="Example: i2p cache build shapenet --set build.scheduler=processes --set build.workers=4. "
    "A stopped build resumes where it was; a complete one returns at once."
)
@config_argument
@config_options
@click.option("--scheduler", help="Short for --set build.scheduler=...: threads, processes, or tcp://host:8786.")
@click.option("--workers", type=int, help="Short for --set build.workers=...")
@click.option("--retry-refused", is_flag=True, help="Try every refused shape again, not only those that changed.")
@click.option("--changed", type=click.Choice(["refuse", "rebuild"]),
              help="Short for --set build.changed=...: how changed or missing shapes are handled.")  # fmt: skip
@click.option("--check-content", is_flag=True, help="Compare the content of all files, not only their size and time.")
@json_option
def build(
    config: str,
    overrides: tuple[str, ...],
    print_config: bool,
    scheduler: str | None,
    workers: int | None,
    retry_refused: bool,
    changed: str | None,
    check_content: bool,
    as_json: bool,
) -> None:
    """Build the teacher cache of CONFIG (a preset or a TOML file) and print its location."""
    from cli.experiment.toml import load_experiment, to_toml

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
        report = build_from(experiment)
        found = {
            "path": str(report.path), "shapes": report.shapes, "shards": report.shards, "built": report.built,
            "quarantined": [vars(item) for item in report.quarantined], "seconds": report.seconds,
        }  # fmt: skip
        answer(found, str(report.path), as_json=as_json)
    except TooManyRefused as error:
        echo(error.path)  # it is there all the same
        raise


@cache.command(epilog="Example: i2p cache info caches/synthetic-0f3a9c21d7be")
@click.argument("path", type=CachePath())
@json_option
def info(path: "Location", as_json: bool) -> None:
    """Print a cache's recipe, size, counts and quarantine. Reads an unfinished cache too."""
    import teacher_cache

    opened = teacher_cache.open(path, allow_incomplete=True)
    answer(_info_json(opened), partial(_print_info, opened), as_json=as_json)


def _info_json(opened: "Cache") -> dict[str, Any]:
    found, basis = opened.info(), opened.basis
    return {
        "path": found.path,
        "complete": found.complete,
        "format": found.format,
        "recipe_hash": found.recipe.hash,
        "recipe": {part: dict(getattr(found.recipe, part)) for part in ("corpus", "projection", "teacher", "storage")},
        "schema": found.schema.to_json(),
        "records": found.records,
        "poses": opened.poses,
        "planned": found.planned,
        "shards": found.shards,
        "bytes": found.bytes,
        "label_names": list(found.label_names),
        "class_token": opened.stores_class,
        "basis": None
        if basis is None
        else {"sha256": basis.sha256, "channels": basis.channels, "teacher_channels": basis.teacher_channels},
        "quarantined": [vars(item) for item in found.quarantined],
    }


def _print_info(opened: "Cache") -> None:
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
@json_option
def verify(path: "Location", as_json: bool) -> None:
    """Compare every byte of a finished cache with its checksums; exit 1 and list the files when something is wrong."""
    problems = verify_shown(path)
    found = {"path": str(path), "sound": not problems, "problems": [vars(problem) for problem in problems]}
    if problems or as_json:
        answer(found, "\n".join(map(str, problems)), as_json=as_json)
    if problems:
        echo(f"{len(problems)} problems in {path}", err=True)
        raise SystemExit(1)
    echo(f"sound: {path}", err=True)


@cache.command(
    name="list", epilog="Examples: i2p cache list; i2p cache list /data/caches; i2p cache list s3://bucket/caches"
)
@click.argument("root", type=CachePath(), default="caches")
@json_option
def list_all(root: "Location", as_json: bool) -> None:
    """List the caches in a folder, with what they were built from and their size."""
    import teacher_cache

    found, faults = teacher_cache.list_caches(root)
    caches = [
        {
            "path": info.path, "complete": info.complete, "records": info.records, "bytes": info.bytes,
            "format": info.format, "recipe_hash": info.recipe.hash, "corpus": dict(info.recipe.corpus),
            "teacher": dict(info.recipe.teacher), "storage": dict(info.recipe.storage),
        }
        for info in found
    ]  # fmt: skip
    answer({"caches": caches, "faults": [str(fault) for fault in faults]}, partial(_print_list, found), as_json=as_json)
    for fault in faults:
        echo(f"cannot be read: {fault}", err=True)
    if not found and not faults:
        echo(f"no caches in {root}", err=True)
    if faults:
        raise SystemExit(1)


def _print_list(found: "Sequence[CacheInfo]") -> None:
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


@cache.command(epilog="Example: i2p cache render caches/synthetic-0f3a9c21d7be --shape 0 --shape 17 --out views.png")
@click.argument("path", type=CachePath())
@click.option(
    "--shape", "shapes", type=int, multiple=True, help="Record number; may be given many times. Default: 0 to 4."
)
@click.option("--out", type=LocalPath(dir_okay=False), default=Path("cache.png"), show_default=True)
@json_option
def render(path: "Location", shapes: tuple[int, ...], out: Path, as_json: bool) -> None:
    """Draw shapes of a cache: the cloud, its depth views, and the teacher's saliency over them."""
    import teacher_cache
    from cli.show.pictures import record_sheet

    opened = teacher_cache.open(path, allow_incomplete=True)
    chosen = list(shapes) or list(range(min(5, len(opened))))
    outside = [index for index in chosen if not 0 <= index < len(opened)]
    if outside:
        raise click.BadParameter(f"{outside[0]} is outside 0..{len(opened) - 1}", param_hint="--shape")
    records = [opened[index] for index in chosen]
    names = opened.label_names
    titles = [names[record.label] if 0 <= record.label < len(names) else record.id for record in records]
    record_sheet(records, out, titles=titles)
    answer({"picture": str(out), "records": chosen}, str(out), as_json=as_json)


@cache.command(
    name="report",
    epilog="Examples: i2p cache report caches/synthetic-0f3a9c21d7be; "
    "i2p cache report s3://bucket/caches/NAME --no-corpus",
)
@click.argument("path", type=CachePath())
@click.option("--out", type=LocalPath(file_okay=False), help="Folder. [default: NAME-report]")
@click.option("--shapes", type=click.IntRange(1, 200), default=12, show_default=True, help="Shapes that are drawn.")
@click.option("--config", help="Experiment whose corpus is compared. [default: the one that the cache notes]")
@click.option("--no-corpus", is_flag=True, help="Leave the corpus alone: no changes, no pictures of refused shapes.")
@json_option
def report(path: "Location", out: Path | None, shapes: int, config: str | None, no_corpus: bool, as_json: bool) -> None:
    """Write a page about a cache: counts, classes, quarantine, duplicates, size, views, and what a rebuild would do.

    One HTML file that needs no network, and its pictures as PNGs.
    """
    from cli.actions.report_cache import report_cache
    from cli.experiment.own_recipe import experiment_by_recipe
    from cli.experiment.toml import ConfigError, load_experiment
    from cli.show.progress import Watching

    if config is not None and no_corpus:
        raise click.UsageError("--config names the corpus to compare, and --no-corpus says not to")
    experiment = None
    if config is not None:
        experiment = load_experiment(config)
    elif not no_corpus:
        try:
            experiment = experiment_by_recipe(path)
        except ConfigError as error:
            echo(f"note: the corpus is not looked at: {error}", err=True)
    if out is None:
        out = Path(f"{str(path).rstrip('/').rpartition('/')[2]}-report")
    with Watching() as watch:
        page = report_cache(path, out, shapes=shapes, experiment=experiment, watch=watch)
    size = page.stat().st_size
    answer({"page": str(page), "bytes": size}, f"report      {page} ({size / 1e6:.1f} MB)", as_json=as_json)
