"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from teacher_cache.location import Location

__all__ = ["CachePath", "config_argument", "config_options"]


class CachePath(click.ParamType):
    """A cache's folder, which must be there, or its URL."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "Location":
        from teacher_cache.location import localise

        location = localise(value)
        if isinstance(location, Path) and not location.is_dir():
            self.fail(f"Directory {str(location)!r} does not exist.", param, ctx)
        return location


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
