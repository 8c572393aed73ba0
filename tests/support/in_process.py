"""What the pool of `cli.study.workers` does, in this process: as many starts of an interpreter fewer."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cli.study.workers import WorkerError

PLACE = "cli.study.workers.do_all"  # where the commands take it from


def do_all_here(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, tuple[Any, ...]]], workers: int
) -> Iterator[Any]:
    """Take the place of do_all; a failure is a result, as it is there."""
    for job, arguments in jobs:
        try:
            yield job, function(*arguments)
        except Exception as error:
            yield job, WorkerError(f"{type(error).__name__}: {error}")
