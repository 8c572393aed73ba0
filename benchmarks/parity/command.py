"""``python -m benchmarks.parity``: compare with arrays recorded from the reference implementation."""

import logging
import platform
from collections.abc import Sequence
from pathlib import Path

import click

from cli.main import begin_logging, run
from cli.options import LocalPath, logging_options
from cli.show.terminal import echo

__all__ = ["NAME", "main", "parity"]

NAME = "python -m benchmarks.parity"
_PAGES = {"hierarchical": "docs/reference-parity.md", "plain": "docs/reference-parity-plain.md"}
_OWN_PAGE = "the family's page"  # stands for one of them


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit code 0 when everything is within tolerance, 1 otherwise. "
    f"Example: {NAME} recorded/ --section pretrain",
)
@click.argument("folder", metavar="DIR", type=LocalPath(exists=True, file_okay=False))
@click.option("--section", "names", multiple=True, metavar="NAME", help="Compare this section only; may be repeated.")
@click.option(
    "--markdown",
    "page",
    is_flag=False,
    flag_value=_OWN_PAGE,
    type=LocalPath(dir_okay=False),
    help=f"Also write the table as Markdown. [without a path: {' or '.join(_PAGES.values())}]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Depart from the preset (reference, or point-mae) in one setting, to see what it changes; may be repeated.",
)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N.")
@logging_options
@click.pass_context
def parity(
    context: click.Context,
    folder: Path,
    names: tuple[str, ...],
    page: Path | None,
    overrides: tuple[str, ...],
    device: str,
    verbose: int,
    quiet: bool,
    debug: bool,
) -> None:
    """Compare with the reference implementation, whose inputs, weights and outputs are recorded in DIR.

    DIR is of I2P-MAE and Point-M2AE or of the plain-transformer family (Point-MAE, Point-BERT, ACT, ReCon, PCP-MAE,
    Point-FEMAE); its files tell. All sizes are read from it. Its README says what the files are and where the
    tolerances come from.
    """
    begin_logging(verbose, quiet=quiet)
    logging.getLogger("benchmarks").setLevel(logging.getLogger("cli").level)
    import numpy as np
    import torch

    from benchmarks.parity.models import reference_settings
    from benchmarks.parity.plain_models import plain_settings
    from benchmarks.parity.recorded import Recorded
    from benchmarks.parity.report import Environment, as_markdown, as_text, summary
    from benchmarks.parity.runner import count_parts, run_section, sections_for
    from cli.exit_codes import EXIT_FAILED
    from cli.show.progress import Progress
    from pipeline.teacher.tower import resolve_device

    recorded = Recorded(folder)
    family, sections = sections_for(recorded)
    _check_names(names, tuple(sections))
    chosen = [name for name in sections if name in names or not names]
    settings = {"hierarchical": reference_settings, "plain": plain_settings}[family](overrides)
    where = resolve_device(device)
    results = []
    begun = 0
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
        echo(as_text(result) + "\n")
    echo(f"{summary(results)}; {sum(result.seconds for result in results):.0f} s")
    if page is not None:
        options = [f"--section {name}" for name in names] + [f"--set {text}" for text in overrides]
        environment = Environment(
            command=" ".join([NAME, "DIR --markdown", *options]),
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=np.__version__,
            device=torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU ({platform.machine()})",
            threads=torch.get_num_threads(),
            family=family,
        )
        page = Path(_PAGES[family]) if page == Path(_OWN_PAGE) else page
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(as_markdown(results, environment), encoding="utf-8")
        progress.write(f"table written to {page}")
    if not all(result.passed for result in results):
        context.exit(EXIT_FAILED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, with the exit codes and the words of `i2p`."""
    run(parity, NAME, arguments)


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name} is not one; sections: {', '.join(known)}", param_hint="--section")
