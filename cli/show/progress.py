"""Progress display: a bar on a terminal, a plain line every half minute elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType

from cli.show.terminal import echo, escaped

__all__ = ["Progress"]

LINE_EVERY_S = 30.0


class Progress:
    """Counts work done, with a rate and an ETA, on standard error.

    total    units of work in all.
    initial  units already done by an earlier run; they do not enter the rate.
    """

    def __init__(self, title: str, total: int, *, unit: str, initial: int = 0, quiet: bool = False):
        self.title, self.total, self.unit = title, total, unit
        self.done = self.initial = initial
        self._quiet = quiet
        self._started = self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=initial, desc=title, unit=unit, dynamic_ncols=True, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self.done > self.initial:
            self._line()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Keep the display alive while nothing is counted, for work that ends in large pieces."""
        over = Event()

        def beat() -> None:
            while not over.wait(1.0):
                if self._bar is not None:
                    self._bar.refresh()
                elif time.monotonic() - self._last_line >= LINE_EVERY_S:
                    self._line()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def update(self, done: int, **notes: object) -> None:
        """Set the units done so far, and notes such as ``quarantined=3`` or ``loss="0.51"``."""
        if self._bar is not None:
            self._bar.set_postfix({k: str(v) for k, v in notes.items()}, refresh=False)
            self._bar.update(done - self.done)
        self.done = done
        self._notes = ", ".join(f"{key} {value}" for key, value in notes.items())
        if self._bar is None and time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._line()

    def add(self, more: int) -> None:
        """Note that so many more units are done."""
        self.update(self.done + more)

    def write(self, text: str) -> None:
        """Write a line above the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(escaped(text), file=sys.stderr)
        else:
            echo(text, err=True)

    def _line(self) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        self._last_line = now
        rate = (self.done - self.initial) / max(now - self._started, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        eta = "done" if self.done >= self.total else f"about {human_seconds(left)} left"
        notes = f", {self._notes}" if getattr(self, "_notes", "") else ""
        echo(f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, {eta}{notes}", err=True)


def human_seconds(seconds: float) -> str:
    """Format seconds: 12 s, 3 min 20 s, 2 h 05 min; 'unknown' for what is not finite."""
    if seconds != seconds or seconds == float("inf"):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
