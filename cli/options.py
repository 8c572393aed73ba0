"""Options that several commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from teacher_cache.location import Location

__all__ = [
    "CachePath",
    "CheckpointPath",
    "LocalPath",
    "all_of",
    "config_argument",
    "config_options",
    "fine_tuning_options",
    "json_option",
    "labelled_pair",
    "logging_options",
]


class CachePath(click.ParamType):
    """A cache's folder, which must exist, or its URL."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "Location":
        from teacher_cache.errors import StorageError
        from teacher_cache.location import localise

        try:
            location = localise(value)
        except StorageError as error:
            self.fail(str(error), param, ctx)
        if isinstance(location, Path) and not location.is_dir():
            self.fail(f"Directory {str(location)!r} does not exist.", param, ctx)
        return location


class LocalPath(click.Path):
    """A path of this machine, which may also be written as a file: URL; another URL would be a folder of that name."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from teacher_cache.errors import StorageError
        from teacher_cache.location import localise

        try:
            location = localise(value)
        except StorageError as error:
            self.fail(str(error), param, ctx)
        if not isinstance(location, Path):
            self.fail(f"expected a local path, found the URL {location}", param, ctx)
        return super().convert(location, param, ctx)


class CheckpointPath(LocalPath):
    """A run directory or a checkpoint, or the word embedded for the package's own."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "embedded":
            from trainer.checkpoints.files import EMBEDDED

            return EMBEDDED
        return super().convert(value, param, ctx)


def labelled_pair(text: str, option: str) -> tuple[str, str, str]:
    """Read NAME=TRAIN,TEST, the value of `option`: a name and the URIs of two labelled corpora.

    Raises click.BadParameter for anything else.
    """
    from pipeline.corpora.uri import split_uris

    name, _, pair = text.partition("=")
    uris = split_uris(pair)
    if not name or len(uris) != 2:
        hint = "NAME=TRAIN,TEST with two corpora, as in mine=folder:a,folder:b"
        raise click.BadParameter(f"{text}: expected {hint}", param_hint=option)
    return name, uris[0], uris[1]


def logging_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--verbose``, ``--quiet`` and ``--debug``, which `cli.main.run` looks for itself."""
    command = click.option("--debug", is_flag=True, help="Show tracebacks.")(command)
    command = click.option("-q", "--quiet", is_flag=True, help="Errors only.")(command)
    return click.option("-v", "--verbose", count=True, help="More log lines; twice for debugging.")(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
"""Of every command that prints a result; `cli.show.terminal.answer` prints either."""

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


def all_of(options: Sequence[Callable[..., Any]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Join decorators into one; help shows the options in their order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def fine_tuning_options(*, place: str, section: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add CONFIG and the options of a model that is trained on labels.

    place    the folder that --out stands for where it is not given, as the help tells it.
    section  of the configuration, beside [finetune] and [model].
    """
    options: list[Callable[..., Any]] = [
        click.argument("config"),
        click.option("--from", "start", required=True, metavar="RUN|none",
                     help="A pre-trained run or checkpoint, embedded, or none: all weights drawn from the seed."),
        click.option("--sizes", metavar="RUN", help="With --from none: take the encoder's sizes from this run."),
        click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True,
                     help="Runs, with seeds from finetune.seed on; a published row takes three."),
        click.option("--out", type=LocalPath(file_okay=False), help=f"Directory. [default: {place}]"),
        click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                     help=f"Override one setting of [finetune], {section} or [model]."),
        json_option,
    ]  # fmt: skip

    return all_of(options)
