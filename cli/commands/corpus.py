"""``i2p corpus``: inspect, render and pack the shapes of a corpus."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import LocalPath, json_option
from cli.show.terminal import answer, echo

if TYPE_CHECKING:
    from pipeline.corpora.packing import Packed

__all__ = ["corpus"]


@click.group(
    epilog='A corpus is named by a short URI: "synthetic:?count=100", "folder:meshes", "modelnet40:DIR?split=train".'
)
def corpus() -> None:
    """Inspect, render and pack the shapes of a corpus."""


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
        raise click.UsageError("--workers is the number of reading processes; without --check nothing is read")
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

    Exit 1 where something is missing, wrong or cannot be read. Archives are compared where they are still next to the
    data.
    """
    from cli.actions.check_release import check_release, print_check
    from cli.show.progress import Progress
    from pipeline.corpora import open_corpus

    with Progress("opening the corpus", 0, unit=""):
        shapes = open_corpus(uri, points=points)
    found = check_release(shapes, workers)
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
    from cli.show.progress import Progress
    from pipeline.corpora import ShapeError, open_corpus

    with Progress("opening the corpus", 0, unit=""):
        shapes = open_corpus(uri, points=points)
    chosen = []
    for i in range(first, min(first + count, len(shapes))):
        try:
            chosen.append(shapes[i])
        except ShapeError as error:
            echo(f"left out: {error}", err=True)
    if not chosen:
        raise click.ClickException(f"{uri} has no usable shape from index {first} on; it has {len(shapes)}")
    names = shapes.label_names
    titles = [shape.id if shape.label is None else names[shape.label] for shape in chosen]
    contact_sheet(chosen, out, titles=titles)
    answer({"picture": str(out), "shapes": [shape.id for shape in chosen]}, str(out), as_json=as_json)


@corpus.command(
    epilog="Examples: i2p corpus pack folder:meshes packed; i2p corpus pack 'folder:meshes?split=train' s3://bucket/a; "
    "i2p corpus pack shapenet55:DIR clouds --as clouds --points 8192. The packed corpus is shards:OUT. Run a stopped "
    "command again to finish it."
)
@click.argument("uri")
@click.argument("out")
@click.option("--as", "stored", type=click.Choice(["files", "clouds"]),
              help="Keep each shape's files, or sampled points. [default: files, where shapes have some]")  # fmt: skip
@click.option("--points", default=2048, show_default=True, help="Points of each stored cloud; fewer can be read later.")
@click.option("--shapes-per-shard", type=click.IntRange(1, 100_000), default=1024, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes that read. [default: one per core]")
@json_option
def pack(
    uri: str, out: str, stored: str | None, points: int, shapes_per_shard: int, workers: int | None, as_json: bool
) -> None:
    """Pack a corpus into tar shards with an index, in a folder or behind a URL (s3://, ...).

    WebDataset reads the shards; shards:OUT reads any shape of them by one request, from a folder, an object store or a
    web server. Exit 1 where shapes were left out; OUT/refused.jsonl says why.
    """
    from cli.show.progress import Progress
    from pipeline.corpora import open_corpus
    from pipeline.corpora.packing import pack as packed
    from teacher_cache.location import localise

    with Progress("opening the corpus", 0, unit=""):
        corpus = open_corpus(uri, points=points)
    with Progress("packing", len(corpus), unit="shapes") as progress:
        found = packed(
            corpus,
            localise(out),
            stored=stored,
            shapes_per_shard=shapes_per_shard,
            processes=workers,
            progress=lambda done, refused: progress.update(done, refused=refused),
        )
    _print_packed(found, out, as_json)


@corpus.command(epilog="Example: i2p corpus index tars; i2p cache build --set corpus.uri=shards:tars")
@click.argument("folder", type=LocalPath(exists=True, file_okay=False))
@json_option
def index(folder: Path, as_json: bool) -> None:
    """Index the tar files (WebDataset) below a folder, so that shards:FOLDER reads them where they are.

    Each sample holds one mesh or cloud, and its label as .cls or in .json. Exit 1 where samples were left out.
    """
    from cli.show.progress import Progress
    from pipeline.corpora.tar_index import index_tars, tar_files

    with Progress("indexing", len(tar_files(folder)), unit="tar files") as progress:
        found = index_tars(folder, progress=lambda done, refused: progress.update(done, refused=refused))
    _print_packed(found, str(folder), as_json)


def _print_packed(found: "Packed", out: str, as_json: bool) -> None:
    from cli.show.corpus_report import human_bytes

    there = ", as before" if found.already else ""
    said = f"shards:{out}: {found.shapes} shapes in {found.shards} shards, {human_bytes(found.bytes)}{there}"
    answer({**asdict(found), "corpus": f"shards:{out}"}, said, as_json=as_json)
    if found.refused:
        echo(f"{found.refused} shapes left out; {out}/refused.jsonl says why. The first:", err=True)
        for id, reason in found.first:
            echo(f"  {id}: {reason}", err=True)
        raise SystemExit(1)
