"""``i2p results``: one table of what runs have measured, beside what papers report."""

import json
from pathlib import Path

import click

from cli.options import LocalPath
from cli.show.terminal import echo

__all__ = ["results"]


@click.command(
    epilog="Examples: i2p results runs/*; i2p fewshot runs/quickstart --train URI --json > few.json && "
    "i2p results runs/quickstart few.json --format csv"
)
@click.argument("runs", nargs=-1, required=True, type=LocalPath(exists=True))
@click.option("--format", "form", type=click.Choice(["markdown", "csv", "json"]), default="markdown", show_default=True)
@click.option("--published/--no-published", default=True, show_default=True,
              help="Figures of papers on the same set and task beside them.")  # fmt: skip
@click.option("--out", type=LocalPath(dir_okay=False), help="Write it there instead of printing it.")
@click.option("--json", "form", flag_value="json", help="Short for --format json.")
def results(runs: tuple[Path, ...], form: str, published: bool, out: Path | None) -> None:
    """Gather what RUNS have measured: run directories, and JSON files of evaluate, fewshot and vote.

    Every row names its protocol and seeds, and what one shape of its test set is worth. Published figures are listed
    below with their own protocols, which differ: compare them, but do not subtract.
    """
    from cli.actions.gather_results import ResultsError, gather, published_rows, to_csv, to_markdown
    from teacher_cache.storage.atomic import replace_file

    try:
        rows = gather(runs)
    except ResultsError as error:
        raise click.ClickException(str(error)) from None
    if published:
        rows += published_rows(rows)
    text = {"markdown": to_markdown, "csv": to_csv, "json": lambda rows: json.dumps(rows, indent=1)}[form](rows)
    if out is None:
        echo(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, (text + "\n").encode())
        echo(out)
