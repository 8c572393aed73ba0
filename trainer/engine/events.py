"""Training events and the log files they are written to.

The caller of a run may pass `on_event` and receives every event, in order, in the process of rank 0. The same events
become lines of train.jsonl and TensorBoard scalars.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from teacher_cache.storage.atomic import open_log, read_regular, replace_file
from trainer.engine.watching import Watched
from trainer.losses.terms import WHOLE

__all__ = [
    "CheckpointWritten",
    "EpochDone",
    "Evaluated",
    "Event",
    "EventLog",
    "RunEnded",
    "RunStarted",
    "StepDone",
    "Working",
    "keep_lines",
    "read_events",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events: epochs completed and optimiser steps taken when it happened."""

    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """Training begins, or resumes at epoch `epoch`.

    epochs, steps_per_epoch  planned.   records  in the cache.   parameters  of the student.   ranks, device  where.
    resumed  True when a checkpoint was found.   global_target  source of the global loss' targets; "" without one.
    shapes  digest of the selection of the cache that is trained on; "" for a whole one.
    """

    epochs: int
    steps_per_epoch: int
    records: int
    batch_size: int
    parameters: int
    ranks: int
    device: str
    resumed: bool
    global_target: str = ""
    shapes: str = ""


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimiser step over one whole batch.

    losses  by name, over the whole batch, before weights; a loss that is switched off is 0, or absent.
    gradient_norm  before clipping.
    seconds  of the whole step; waited: the part of it spent waiting for the next batch.
    """

    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    waited: float


@dataclass(frozen=True, kw_only=True)
class EpochDone(Event):
    """Means over the epoch's steps, and its wall time: of a resumed epoch, since it was resumed.

    shapes_per_second  counts all ranks.   skipped  damaged records that others replaced, in the whole epoch.
    memory, gpu_memory  as of `peak_memory`.
    """

    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    waited: float
    shapes_per_second: float
    skipped: int = 0
    memory: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """An evaluation and its result, as `trainer.downstream.comparison` reports it.

    memory, gpu_memory  as of `peak_memory`.
    """

    final: bool
    result: Mapping[str, Any]
    seconds: float
    memory: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Working(Event):
    """How far long work is that is not training, an evaluation for instance; passed on, and never logged."""

    watched: Watched


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten(Event):
    """A checkpoint is complete on the disk."""

    path: str


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """The run reached its last epoch."""

    seconds: float


_MAX_LOG = 1 << 31  # bytes; a line a step takes some 250

_NAMES: dict[type[Event], str] = {
    RunStarted: "start",
    StepDone: "step",
    EpochDone: "epoch",
    Evaluated: "evaluation",
    CheckpointWritten: "checkpoint",
    RunEnded: "end",
}


class EventLog:
    """Writes events to RUN/train.jsonl, to TensorBoard if wanted, and passes them to `on_event`. Use with `with`."""

    def __init__(self, run_dir: Path, *, step: int, tensorboard: bool, on_event: Callable[[Event], None] | None):
        """Open the logs.

        step  optimiser steps already taken: lines beyond, which an earlier, stopped run wrote, are dropped.
        """
        path = run_dir / "train.jsonl"
        keep_lines(path, step)
        self._file = os.fdopen(open_log(path), "a", encoding="utf-8")
        self._on_event = on_event
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __call__(self, event: Event) -> None:
        """Write one event and pass it on."""
        if isinstance(event, Working):
            if self._on_event is not None:
                self._on_event(event)
            return
        self._file.write(json.dumps({"event": _NAMES[type(event)], **_finite(_line(event))}) + "\n")
        self._file.flush()  # a killed process loses no line; what a power cut leaves of one, `keep_lines` drops
        if self._board is not None:
            for tag, value in _scalars(event):
                self._board.add_scalar(tag, value, event.step)
            if not isinstance(event, StepDone):
                self._board.flush()
        if self._on_event is not None:
            self._on_event(event)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Read the events of RUN/train.jsonl, oldest first, as their lines have them; [] where there is no such file.

    Lines that are no events, as a crash leaves them, are passed over.
    """
    try:
        data = read_regular(run_dir / "train.jsonl", _MAX_LOG)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [json.loads(line) for line in data.splitlines(keepends=True) if _step_of(line) is not None]


def keep_lines(path: Path, step: int) -> None:
    """Drop the lines of train.jsonl that lie beyond `step` or are no events; durably.

    A power cut can leave a last line cut short, blank lines, or zeros where data never reached the disk.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    damaged = sum(at is None for at in steps)
    if damaged:
        logger.warning("%s: dropping %d incomplete lines left by a crash", path, damaged)
    if kept != lines:
        replace_file(path, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    """Return the step of an event's line, or None if it is no event."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _logged(losses: Mapping[str, float]) -> dict[str, float]:
    """Losses as logs have them: with a global one, which they show as 0 where there is none."""
    return {**losses, WHOLE: losses.get(WHOLE, 0.0)}


def _line(event: Event) -> dict[str, Any]:
    """The fields of an event's line; losses stand in it as `loss_<name>`."""
    line: dict[str, Any] = {}
    for key, value in asdict(event).items():
        line |= {f"loss_{name}": loss for name, loss in _logged(value).items()} if key == "losses" else {key: value}
    return line


def _scalars(event: Event) -> list[tuple[str, float]]:
    match event:
        case StepDone():
            return [
                *((f"loss/{name}", value) for name, value in _logged(event.losses).items()),
                ("optimiser/learning_rate", event.learning_rate),
                ("optimiser/gradient_norm", event.gradient_norm),
                ("time/step_s", event.seconds),
                ("time/waited_s", event.waited),
            ]
        case EpochDone():
            return [
                *((f"epoch/loss_{name}", value) for name, value in _logged(event.losses).items()),
                ("time/shapes_per_second", event.shapes_per_second),
                ("epoch/skipped", float(event.skipped)),
            ]
        case Evaluated():
            rows = event.result["rows"]
            return [(f"evaluation/{name}", row["accuracy"]) for name, row in rows.items()]
    return []


def _finite(value: Any) -> Any:
    """Replace infinities by text, since JSON has none."""
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
