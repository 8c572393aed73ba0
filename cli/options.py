"""Options that several commands share."""

from collections.abc import Callable
from typing import Any

import click

__all__ = ["config_argument", "config_options"]

config_argument = click.argument("config", default="quickstart", metavar="[CONFIG]")


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--set`` and ``--print-config``."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Override one setting; may be given many times.",
    )(command)
    return click.option("--print-config", is_flag=True, help="Print the resolved configuration as TOML and stop.")(
        command
    )
