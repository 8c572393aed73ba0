"""The ``i2p`` command: one group, commands loaded only when they are used.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 1 failed, or damage found; 2 wrong
usage or configuration; 130 interrupted.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from cli.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from cli.options import logging_options
from cli.show.terminal import EscapingFormatter, echo

# name -> (module, attribute, one line of help): listed here so that `i2p --help` imports no room.
COMMANDS = {
    "cache": ("cli.commands.cache", "cache", "Build, inspect and verify teacher caches."),
    "checkpoint": (
        "cli.commands.checkpoint",
        "checkpoint",
        "Inspect a checkpoint; convert from and to the reference's.",
    ),
    "corpus": ("cli.commands.corpus", "corpus", "Inspect and render the shapes of a corpus."),
    "doctor": ("cli.commands.doctor", "doctor", "Print versions and devices, and try what this machine can do."),
    "downstream": (
        "cli.commands.downstream",
        "downstream",
        "Take an encoder through every protocol, beside its twin without a teacher: one table.",
    ),
    "evaluate": ("cli.commands.evaluate", "evaluate", "Score an encoder with a linear SVM on labelled shapes."),
    "embed": ("cli.commands.embed", "embed", "Write an encoder's features of a corpus; draw nearest neighbours."),
    "fewshot": ("cli.commands.fewshot", "fewshot", "Score encoders by linear probes on a few shapes of a few classes."),
    "finetune": ("cli.commands.finetune", "finetune", "Fine-tune a classifier from an encoder, or from scratch."),
    "presets": ("cli.commands.presets", "presets", "List the presets, or print one."),
    "pretrain": (
        "cli.commands.pretrain",
        "pretrain",
        "Pre-train an encoder from a cache (built first if it is not there).",
    ),
    "report": ("cli.commands.report", "report", "Write a page of one run, or of several side by side."),
    "results": ("cli.commands.results", "results", "Gather what runs have measured into one table, beside papers'."),
    "segment": ("cli.commands.segment", "segment", "Train a part segmenter from an encoder, or from scratch."),
    "study": ("cli.commands.study", "study", "Train one small student under many settings, and compare."),
    "teacher": ("cli.commands.teacher", "teacher", "Train the embedded teacher; measure what a teacher knows."),
    "vote": ("cli.commands.vote", "vote", "Score a fine-tuned classifier with a vote over draws of its points."),
}

# The base of each room's errors, by the module that has it.
_OWN = {
    "pipeline.errors": "PipelineError",
    "teacher_cache.errors": "CacheError",
    "trainer.errors": "TrainerError",
}


class LazyGroup(click.Group):
    """A click group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 failed or damage found, 2 wrong usage or configuration, 130 interrupted.",
)
@click.version_option(package_name="i2p-pretrain", prog_name="i2p")
@logging_options
def cli(verbose: int, quiet: bool, debug: bool) -> None:
    """Pre-train 3D point-cloud encoders with what 2D models already know.

    \b
    i2p pretrain quickstart        build the quickstart's cache and train on it
    i2p presets                    the experiments that come with the package
    i2p cache build shapenet       only the cache, for a real corpus
    """
    begin_logging(verbose, quiet=quiet)


def begin_logging(verbose: int, *, quiet: bool) -> None:
    """Send log lines of every library to standard error, as many as `--verbose` and `--quiet` ask for."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EscapingFormatter("%(levelname)s %(name)s: %(message)s"))
    # Other libraries' warnings are shown; with -vv all their log lines are, with -q nothing but errors.
    others = logging.ERROR if quiet else logging.INFO if verbose > 1 else logging.WARNING
    logging.basicConfig(level=others, handlers=[handler], force=True)
    for room in ("cli", "pipeline", "teacher_cache", "trainer", "cuda"):
        logging.getLogger(room).setLevel(level)
    # Dask gives its loggers handlers and levels of its own, here and in the processes it starts. Connections that end
    # when a cluster closes need no report, and the build itself reports why a worker died.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "info" if verbose > 1 else "critical")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; expected errors become a message and an exit code."""
    run(cli, "i2p", arguments)


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command called by `name` and exit as `i2p` does: expected errors become a message and an exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    try:
        # standalone_mode off, because click answers 1 to an interruption, which scripts cannot tell from a failure.
        code = command.main(args=argv, prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        if debug:
            traceback.print_exc()
        echo("interrupted; run the same command again to resume", err=True)
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except Exception as error:
        if debug or not _expected(error):
            echo(traceback.format_exc(), err=True, nl=False)
        if not _expected(error):
            echo("this is a bug; please report it with the lines above", err=True)
        else:
            echo(f"error: {error}", err=True)
        code = EXIT_USAGE if _is_configuration(error) else EXIT_FAILED
    sys.exit(code if isinstance(code, int) else 0)


def _is_configuration(error: Exception) -> bool:
    return _is_a(error, "cli.experiment.toml", "ConfigError")


def _expected(error: Exception) -> bool:
    """Check whether this error is one of the rooms' own, whose text is written for people."""
    # An OSError that names its errno is the machine's: a full disk, a file that is not there, no permission.
    if isinstance(error, OSError) and error.errno is not None:
        return True
    return _is_configuration(error) or any(_is_a(error, module, name) for module, name in _OWN.items())


def _is_a(error: Exception, module: str, name: str) -> bool:
    # Only a module already imported can have raised it, so nothing heavy is loaded to say no.
    return module in sys.modules and isinstance(error, getattr(sys.modules[module], name))


if __name__ == "__main__":
    main()
