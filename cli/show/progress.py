"""Progress display: a bar on a terminal, a plain line every half minute elsewhere, both also while no unit is done."""

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cli.show.terminal import echo, escaped

if TYPE_CHECKING:
    from trainer.engine.watching import Watched

__all__ = ["Progress", "Watching", "human_seconds"]

LINE_EVERY_S = 30.0
BEAT_S = 1.0  # between looks at the clock
SHOWN_AFTER_S = 2.0  # on a terminal: work that is done by then needs no bar


class Progress:
    """Counts work done, with a rate and an ETA, on standard error. Use with `with`, or close it.

    total    units of work in all; 0 where that is not known.
    unit     of them; "" for a wait without any, which is told by its time alone.
    initial  units already done by an earlier run; they do not enter the rate.

    A thread looks at the clock, so that a long unit does not leave the terminal silent.
    """

    def __init__(self, title: str, total: int, *, unit: str, initial: int = 0, quiet: bool = False):
        self.title, self.total, self.unit = title, total, unit
        self.done = self.initial = initial
        self._quiet, self._notes, self._paused = quiet, "", False
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        self._lock = threading.Lock()  # of the bar and the lines, which two threads write
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total or None, initial=initial, desc=title, unit=f" {unit}", dynamic_ncols=True, file=sys.stderr,
                delay=SHOWN_AFTER_S, bar_format=None if unit else "{desc}: {elapsed}",
            )  # fmt: skip
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if not quiet:
            self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)
            self._thread.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(line=kind is None)

    def end(self, *, line: bool = True) -> None:
        """End it; without a terminal with a last line, if any unit was done and `line` says so."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            elif line and self.done > self.initial:
                self._line()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def update(self, done: int, **notes: object) -> None:
        """Set the units done so far, and notes such as ``quarantined=3`` or ``loss="0.51"``."""
        with self._lock:
            self._paused = False
            if self._bar is not None:
                self._bar.set_postfix({k: str(v) for k, v in notes.items()}, refresh=False)
                self._bar.update(done - self.done)
            self.done = done
            self._notes = ", ".join(f"{key} {value}" for key, value in notes.items())
            self._line_if_due()

    def expect(self, total: int) -> None:
        """Set the units in all, where they become known on the way."""
        with self._lock:
            self.total = total
            if self._bar is not None:
                self._bar.total = total or None

    def pause(self) -> None:
        """Say nothing until the next unit, while other work is shown."""
        self._paused = True

    def add(self, more: int) -> None:
        """Note that so many more units are done."""
        self.update(self.done + more)

    def write(self, text: str) -> None:
        """Write a line above the bar."""
        if self._quiet:
            return
        with self._lock:
            if self._bar is not None:
                self._bar.write(escaped(text), file=sys.stderr)
            else:
                echo(text, err=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with self._lock:
                if self._paused:
                    continue
                if self._bar is None:
                    self._line_if_due()
                elif self.seconds >= SHOWN_AFTER_S:
                    self._bar.delay = 0  # it is on the screen from here on: `close` must end its line
                    self._bar.refresh()

    def _line_if_due(self) -> None:
        if self._bar is None and time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        self._last_line = now
        rate = (self.done - self.initial) / max(now - self._started, 1e-9)
        of = f"/{self.total}" if self.total else ""
        if not self.total:
            eta = f"{human_seconds(now - self._started)} so far"
        elif self.done >= self.total:
            eta = "done"
        elif rate > 0:
            eta = f"about {human_seconds((self.total - self.done) / rate)} left"
        else:
            eta = f"{human_seconds(now - self._started)} so far"
        if not self.unit:
            echo(f"{self.title}: {eta}", err=True)
            return
        notes = f", {self._notes}" if self._notes else ""
        echo(f"{self.title}: {self.done}{of} {self.unit}, {rate:.1f}/s, {eta}{notes}", err=True)


class Watching:
    """Shows work that tells how far it is (`trainer.engine.watching`): a Progress for each piece. Use with `with`."""

    def __init__(self, *, quiet: bool = False):
        self._quiet = quiet
        self._progress: Progress | None = None

    def __enter__(self) -> "Watching":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(finished=kind is None)

    def __call__(self, state: "Watched") -> None:
        if self._progress is None or self._progress.title != state.work:
            self._end()
            self._progress = Progress(state.work, state.total, unit=state.unit, quiet=self._quiet)
        self._progress.update(state.done, **state.notes)
        if state.total and state.done >= state.total:
            self._end()

    def _end(self, *, finished: bool = True) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.end(line=finished and progress.seconds >= SHOWN_AFTER_S)  # done at once: not worth a line


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
