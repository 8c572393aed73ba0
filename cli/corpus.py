"""``i2p corpus``: list and picture the shapes of a corpus."""

from collections import Counter
from pathlib import Path

import click

from cli.options import LocalPath
from cli.terminal import echo

__all__ = ["corpus"]


@click.group(
    epilog='A corpus is named by a short URI: "synthetic:?count=100", "folder:meshes", "modelnet40:DIR?split=train".'
)
def corpus() -> None:
    """List and picture the shapes of a corpus."""


@corpus.command(epilog='Example: i2p corpus info "folder:meshes"')
@click.argument("uri")
@click.option("--points", default=2048, show_default=True, help="Points read of each shape.")
@click.option("--check", is_flag=True, help="Read every shape, and list those that cannot be used.")
def info(uri: str, points: int, check: bool) -> None:
    """Print what a corpus holds; with --check, exit 1 when some of its shapes cannot be used."""
    from cli.progress import Progress
    from pipeline.corpora import ShapeError, open_corpus

    shapes = open_corpus(uri, points=points)
    labels = Counter(label for i in range(len(shapes)) if (label := shapes.label(i)) is not None)
    echo(f"corpus    {shapes.uri}")
    echo(f"shapes    {len(shapes)}, {points} points each")
    echo(f"labels    {len(shapes.label_names)} classes, {sum(labels.values())} shapes labelled")
    width = max((len(name) for name in shapes.label_names), default=0)
    for label, name in enumerate(shapes.label_names):
        echo(f"  {name:<{width}}  {labels[label]}")
    if not check:
        return
    bad = []
    with Progress("checking", len(shapes), unit="shapes") as progress:
        for i in range(len(shapes)):
            try:
                shapes[i]
            except ShapeError as error:
                bad.append(error)
            progress.update(i + 1, unusable=len(bad))
    echo(f"unusable  {len(bad)}")
    for unusable in bad:
        echo(f"  {unusable}")
    if bad:
        raise SystemExit(1)


@corpus.command(epilog='Example: i2p corpus render "synthetic:?count=48" --out shapes.png')
@click.argument("uri")
@click.option("--out", type=LocalPath(dir_okay=False), default=Path("corpus.png"), show_default=True)
@click.option("--count", default=48, show_default=True, help="How many shapes, from --first on.")
@click.option("--first", default=0, show_default=True, help="Index of the first shape.")
@click.option("--points", default=2048, show_default=True, help="Points read of each shape.")
def render(uri: str, out: Path, count: int, first: int, points: int) -> None:
    """Write a picture of a corpus's shapes (PNG)."""
    from pipeline.corpora import ShapeError, open_corpus
    from pipeline.render import contact_sheet

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
    echo(out)
