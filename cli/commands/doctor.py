"""``i2p doctor``: what this installation is and whether it works."""

import json
from pathlib import Path

import click

from cli.exit_codes import EXIT_FAILED
from cli.show.terminal import echo

__all__ = ["doctor"]


@click.command(epilog="Example: i2p doctor > doctor.txt   (what a bug report should carry)")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(as_json: bool) -> None:
    """Print versions, processors, memory, disk, teachers' weights, and whether the kernels run and compile.

    Nothing is downloaded and nothing is written. Exit code 1 where something that is needed fails.
    """
    from cli.actions.doctor import examine, report_text

    found = examine(Path())
    echo(json.dumps(found, indent=1) if as_json else report_text(found))
    if found["failed"]:
        raise SystemExit(EXIT_FAILED)
