"""``i2p report``: a page of one run, or of several side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import CachePath, LocalPath, json_option
from cli.show.terminal import answer

if TYPE_CHECKING:
    from teacher_cache.location import Location

__all__ = ["report"]


@click.command(
    epilog="Examples: i2p report runs/quickstart; i2p report runs/a runs/b --out compared; "
    "i2p report runs/moved --cache /data/caches/synthetic-0f3a9c21d7be"
)
@click.argument("runs", type=LocalPath(exists=True, file_okay=False), nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=LocalPath(file_okay=False), help="Folder. [default: RUN/report; of several, ./report]")
@click.option(
    "--cache",
    "caches",
    type=CachePath(),
    multiple=True,
    help="The cache of all runs, or one for each, in order. [default: where the run's settings say]",
)
@click.option("--shapes", type=click.IntRange(1, 100), default=12, show_default=True, help="Shapes that are shown.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def report(
    runs: tuple[Path, ...],
    out: Path | None,
    caches: "tuple[Location, ...]",
    shapes: int,
    device: str,
    as_json: bool,
) -> None:
    """Write a page with the results, curves and pictures of RUNs: one HTML file that needs no network, and PNGs.

    Clouds on it turn with the mouse. What a run or a student cannot show is said there.
    """
    from cli.actions.report import report_runs
    from cli.commands.pretrain import REPORT
    from cli.show.progress import Watching

    if len(caches) not in (0, 1, len(runs)):
        raise click.UsageError(f"{len(caches)} caches for {len(runs)} runs; give one for all, or one for each")
    if len(set(runs)) < len(runs):
        raise click.UsageError("a run is given twice")
    if out is None:
        out = runs[0] / REPORT if len(runs) == 1 else Path(REPORT)
    with Watching() as watch:
        page = report_runs(runs, out, caches=caches, device=device, shapes=shapes, watch=watch)
    size = page.stat().st_size
    found: dict[str, Any] = {"page": str(page), "bytes": size, "pictures": str(page.with_name("pictures"))}
    answer(found, f"report      {page} ({size / 1e6:.1f} MB)", as_json=as_json)
