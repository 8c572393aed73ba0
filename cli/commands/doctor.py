"""``i2p doctor``: what this installation is and whether it works."""

from pathlib import Path

import click

from cli.exit_codes import EXIT_FAILED
from cli.options import json_option
from cli.show.terminal import answer

__all__ = ["doctor"]


@click.command(epilog="Example: i2p doctor > doctor.txt   (what a bug report should carry)")
@json_option
def doctor(as_json: bool) -> None:
    """Print versions, processors, memory, disk, teachers' weights, and whether the kernels run and compile.

    Nothing is downloaded and nothing is written. Exit code 1 where something that is needed fails.
    """
    from cli.actions.doctor import examine, report_text

    found = examine(Path())
    answer(found, report_text(found), as_json=as_json)
    if found["failed"]:
        raise SystemExit(EXIT_FAILED)
