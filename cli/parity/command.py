"""``i2p parity``: compare with arrays recorded from the reference implementation."""

import platform
from collections.abc import Sequence
from pathlib import Path

import click

from cli.options import LocalPath

__all__ = ["parity"]

_PAGE = "docs/reference-parity.md"


@click.command(
    epilog="Exit code 0 when everything is within tolerance, 1 otherwise. "
    "Example: i2p parity ../shared/reference --section pretrain"
)
@click.argument("folder", metavar="DIR", type=LocalPath(exists=True, file_okay=False))
@click.option("--section", "names", multiple=True, metavar="NAME", help="Compare this section only; may be repeated.")
@click.option(
    "--markdown",
    "page",
    is_flag=False,
    flag_value=_PAGE,
    type=LocalPath(dir_okay=False),
    help=f"Also write the table as Markdown. [without a path: {_PAGE}]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Depart from the reference preset in one setting, to see what it changes; may be repeated.",
)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.pass_context
def parity(
    context: click.Context,
    folder: Path,
    names: tuple[str, ...],
    page: Path | None,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Compare with the reference implementation, whose inputs, weights and outputs are recorded in DIR.

    All sizes are read from DIR. Its README says what the files are and where the tolerances come from.
    """
    import numpy as np
    import torch

    from cli.exit_codes import EXIT_FAILED
    from cli.parity.models import reference_settings
    from cli.parity.recorded import Recorded
    from cli.parity.report import Environment, as_markdown, as_text, summary
    from cli.parity.runner import SECTIONS, count_parts, run_section
    from cli.show.progress import Progress
    from pipeline.teacher.tower import resolve_device

    _check_names(names, tuple(SECTIONS))
    chosen = [name for name in SECTIONS if name in names or not names]
    settings = reference_settings(overrides)
    where = resolve_device(device)
    recorded = Recorded(folder)
    results = []
    begun = 0
    quiet = context.parent is not None and bool(context.parent.params.get("quiet"))
    with Progress("parity", count_parts(chosen, recorded, settings), unit="parts", quiet=quiet) as progress:

        def on_part(part: str) -> None:
            nonlocal begun
            progress.update(begun, now=f"{name}, {part}")
            begun += 1

        for name in chosen:
            results.append(result := run_section(name, recorded, settings, device=where, on_part=on_part))
            wrong = sum(not row.passed for row in result.rows)
            outcome = f"{wrong} of {len(result.rows)} NOT within tolerance" if wrong else f"{len(result.rows)} ok"
            progress.write(f"{name:<16}{outcome}, {result.seconds:.1f} s")
        progress.update(begun)
    for result in results:
        click.echo(as_text(result) + "\n")
    click.echo(f"{summary(results)}; {sum(result.seconds for result in results):.0f} s")
    if page is not None:
        options = [f"--section {name}" for name in names] + [f"--set {text}" for text in overrides]
        environment = Environment(
            command=" ".join(["i2p parity DIR --markdown", *options]),
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=np.__version__,
            device=torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU ({platform.machine()})",
            threads=torch.get_num_threads(),
        )
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(as_markdown(results, environment), encoding="utf-8")
        progress.write(f"table written to {page}")
    if not all(result.passed for result in results):
        context.exit(EXIT_FAILED)


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name} is not one; sections: {', '.join(known)}", param_hint="--section")
