"""Verification of a cache, with progress."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teacher_cache import Problem
    from teacher_cache.location import Location

__all__ = ["verify_shown"]


def verify_shown(path: "Location") -> "list[Problem]":
    """Compare every byte of a finished cache with its checksums, with progress on standard error; -> the problems."""
    import teacher_cache
    from cli.show.progress import Progress

    with Progress("verifying", 0, unit="files") as progress:  # listing and receipts come before the first file

        def show(done: int, total: int) -> None:
            progress.expect(total)
            progress.update(done)

        return teacher_cache.verify(path, on_progress=show)
