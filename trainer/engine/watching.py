"""Progress of long work, told to whoever watches: a terminal, a log, nobody."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Count", "Watch", "Watched"]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """How far a piece of work is.

    work         what is done, a word such as "reading"
    unit         of done and total
    done, total  units; total 0 where it is not known
    notes        words beside it, such as {"encoder": "trained"}
    """

    work: str
    unit: str
    done: int
    total: int
    notes: Mapping[str, object] = field(default_factory=dict)


Watch = Callable[[Watched], None]


class Count:
    """Counts the units of one piece of work and tells `watch`, if there is one."""

    def __init__(self, watch: Watch | None, work: str, unit: str, total: int):
        self._watch, self._work, self._unit, self._total = watch, work, unit, total
        self._done = 0
        self._notes: Mapping[str, object] = {}

    def add(self, more: int) -> None:
        """Note that so many more units are done."""
        self.at(self._done + more, **self._notes)

    def at(self, done: int, **notes: object) -> None:
        """Set the units that are done, and the notes."""
        self._done, self._notes = done, notes
        if self._watch is not None:
            self._watch(Watched(work=self._work, unit=self._unit, done=done, total=self._total, notes=self._notes))
