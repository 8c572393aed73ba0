"""``i2p corpus``: inspect and render the shapes of a corpus."""

from functools import partial
from pathlib import Path

import click

from cli.options import LocalPath, json_option
from cli.show.terminal import answer, echo

__all__ = ["corpus"]


@click.group(
    epilog='A corpus is named by a short URI: "synthetic:?count=100", "folder:meshes", "modelnet40:DIR?split=train".'
)
def corpus() -> None:
    """Inspect and render the shapes of a corpus."""


@corpus.command(epilog='Example: i2p corpus info "folder:meshes" --check')
@click.argument("uri")
@click.option("--points", default=2048, show_default=True, help="Points read of each shape.")
@click.option("--check", is_flag=True,
              help="Read every shape; report sizes, duplicates, refused shapes and skipped data.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), metavar="N",
              help="Reading processes. [default: one per core, at most 16; npz and HDF5 use one]")  # fmt: skip
@json_option
def info(uri: str, points: int, check: bool, workers: int | None, as_json: bool) -> None:
    """Print the contents of a corpus; with --check, exit 1 when some of its shapes would be refused."""
    from cli.show.corpus_report import contents, print_contents, print_report
    from cli.show.progress import Progress
    from pipeline.corpora import open_corpus
    from pipeline.corpora.survey import survey

    if workers is not None and not check:
        raise click.UsageError("--workers says how many processes read shapes; without --check none is read")
    with Progress("opening the corpus", 0, unit=""):
        shapes = open_corpus(uri, points=points)
    if not check:
        found = contents(shapes)
        answer(found, partial(print_contents, found), as_json=as_json)
        return
    with Progress("checking", len(shapes), unit="shapes") as progress:
        report = survey(
            shapes, processes=workers, progress=lambda done, refused: progress.update(done, refused=refused)
        )
    answer(report.to_json(), partial(print_report, report), as_json=as_json)
    if report.refused:
        raise SystemExit(1)


@corpus.command(epilog='Example: i2p corpus check "scanobjectnn:data/ScanObjectNN?variant=pb_t50_rs&split=all"')
@click.argument("uri")
@click.option("--points", default=2048, show_default=True, help="Points read of each shape.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes that read; as of `corpus info`.")
@json_option
def check(uri: str, points: int, workers: int | None, as_json: bool) -> None:
    """Verify a published set: which release it is, its counts, its labels, every shape, and checksums where known.

    Exit 1 where something is missing, wrong or cannot be read. Archives are compared where they still lie beside.
    """
    from cli.actions.check_release import check_release, print_check
    from pipeline.corpora import open_corpus

    found = check_release(open_corpus(uri, points=points), workers)
    answer(found, partial(print_check, found), as_json=as_json)
    if found["problems"]:
        raise SystemExit(1)


@corpus.command(epilog='Example: i2p corpus render "synthetic:?count=48" --out shapes.png')
@click.argument("uri")
@click.option("--out", type=LocalPath(dir_okay=False), default=Path("corpus.png"), show_default=True)
@click.option("--count", default=48, show_default=True, help="How many shapes, from --first on.")
@click.option("--first", default=0, show_default=True, help="Index of the first shape.")
@click.option("--points", default=2048, show_default=True, help="Points read of each shape.")
@json_option
def render(uri: str, out: Path, count: int, first: int, points: int, as_json: bool) -> None:
    """Render a corpus's shapes to a PNG."""
    from cli.show.clouds import contact_sheet
    from pipeline.corpora import ShapeError, open_corpus

    shapes = open_corpus(uri, points=points)
    chosen = []
    for i in range(first, min(first + count, len(shapes))):
        try:
            chosen.append(shapes[i])
        except ShapeError as error:
            echo(f"left out: {error}", err=True)
    if not chosen:
        raise click.ClickException(f"{uri} has no usable shape from index {first} on; it holds {len(shapes)}")
    names = shapes.label_names
    titles = [shape.id if shape.label is None else names[shape.label] for shape in chosen]
    contact_sheet(chosen, out, titles=titles)
    answer({"picture": str(out), "shapes": [shape.id for shape in chosen]}, str(out), as_json=as_json)
