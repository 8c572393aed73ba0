"""SIGKILL a builder again and again, rerun it, and compare with a build that nobody disturbed."""

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.support.faults import (
    Scenario,
    builders,
    cache_of,
    check_finished,
    check_unfinished,
    stages_of,
    start_builder,
)
from tests.support.limits import HANG

__all__ = ["Campaign", "Kill", "table"]

AIMS = ("read", "project", "teach", "write", "commit", "finish")
SHOWN = ("import", "open", *AIMS, "wait")  # "wait": in none of the others, as a driver while its workers start
# Seconds of a build, to begin with: in processes that have everything loaded, and in those that must import first.
QUICK_BUILD, SLOW_BUILD = 0.6, 8.0
MOST_IN_A_ROW = 3


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL that met a builder at work.

    stages  that its threads and workers were in
    shards  that were committed by then
    whom    "driver", or "everyone": its Dask workers as well
    """

    scenario: Scenario
    stages: frozenset[str]
    shards: int
    whom: str


@dataclass(frozen=True)
class _Undisturbed:
    tree: dict[str, str]
    ids: list[str]
    records: dict[str, Any]
    seconds: float


class Campaign:
    """Kills at moments that follow from a seed; each round ends with a rerun that must leave the undisturbed cache.

    Half of the moments are drawn from the whole length of a build, half from the times that it is in one stage, so that
    short stages are met too. Where exactly a kill lands is the machine's choice as well, and is read off afterwards.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.kills: list[Kill] = []
        self.missed = 0  # builders that had ended before their kill; not counted as kills
        self._undisturbed: dict[tuple[str, str, int], _Undisturbed] = {}
        self._length: dict[Scenario, float] = {}
        self._contexts: dict[str, Any] = {}

    def round(self, scenario: Scenario, *, kills: int = 0) -> list[Kill]:
        """Kill one cache's builders in a row, then build in peace and check everything; -> the kills that landed.

        kills  in a row; 0 draws one to three
        """
        undisturbed = self._whole(scenario)
        landed: list[Kill] = []
        with self._place() as folder:
            wanted = kills or int(self.rng.integers(1, MOST_IN_A_ROW + 1))
            for attempt in range(wanted):
                kill = self._kill(folder, scenario, folder / f"marks-{attempt}", undisturbed)
                if kill is None:
                    break
                landed.append(kill)
            self._build(folder, scenario, folder / "marks-last")
            self._all_gone(folder)
            check_finished(folder, undisturbed.tree, undisturbed.ids)
        self.kills += landed
        return landed

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """A folder for one cache; kept where something fails in it."""
        folder = Path(tempfile.mkdtemp(prefix="round-", dir=self.folder))
        try:
            yield folder
        except BaseException as error:
            error.add_note(f"the cache is kept in {folder}; what its builders said is in {folder / 'builder.log'}")
            raise
        shutil.rmtree(folder)

    def _whole(self, scenario: Scenario) -> _Undisturbed:
        """The build that nothing disturbs, by one thread."""
        import teacher_cache
        from tests.support.builds import tree

        key = (scenario.format, scenario.features, scenario.poses)
        if key not in self._undisturbed:
            folder = self.folder / "-".join(map(str, ("whole", *key)))
            alone = replace(scenario, scheduler="threads", workers=1, start="warm")
            seconds = self._build(folder, alone, None)
            path = cache_of(folder)
            assert path is not None
            cache = teacher_cache.open(path, threads=1)
            self._undisturbed[key] = _Undisturbed(
                tree(path), cache.ids, {record.id: record for record in cache}, seconds
            )
        return self._undisturbed[key]

    def _start(self, folder: Path, scenario: Scenario, marks: Path | None) -> Any:
        if scenario.start not in self._contexts:
            self._contexts[scenario.start] = builders(scenario.start)
        return start_builder(self._contexts[scenario.start], folder, scenario, marks)

    def _build(self, folder: Path, scenario: Scenario, marks: Path | None) -> float:
        begun = time.perf_counter()
        process = self._start(folder, scenario, marks)
        process.join(HANG)
        seconds = time.perf_counter() - begun
        if process.exitcode != 0:
            process.kill()
            said = (folder / "builder.log").read_text(errors="replace")[-3000:]
            raise AssertionError(f"{scenario}: a build in peace ended with {process.exitcode}\n{said}")
        return seconds

    def _kill(self, folder: Path, scenario: Scenario, marks: Path, undisturbed: _Undisturbed) -> Kill | None:
        """Start a builder and kill it; None when it had ended before."""
        quick = scenario.start == "warm"
        length = self._length.setdefault(scenario, QUICK_BUILD if quick else SLOW_BUILD)
        aim = str(self.rng.choice(AIMS)) if self.rng.random() < 0.5 else None
        process = self._start(folder, scenario, marks)
        if aim is None:
            process.join(self.rng.uniform(0, length))
        else:
            self._wait_for(process, marks, aim, nth=1 if aim == "finish" else int(self.rng.integers(1, 4)))
        workers = [pid for pid in stages_of(marks) if pid != process.pid]
        whom = "everyone" if workers and self.rng.random() < 0.5 else "driver"
        process.kill()
        if whom == "everyone":
            for pid in workers:
                _kill(pid)
        process.join(HANG)
        stages = stages_of(marks)
        if process.exitcode != -signal.SIGKILL or "done" in stages.get(process.pid, set()):
            assert process.exitcode in {0, -signal.SIGKILL}, f"{scenario}: a builder failed, {process.exitcode}"
            self.missed += 1
            self._length[scenario] = length * (0.8 if aim is None else 1)
            return None
        found = set().union(*stages.values()) if stages else {"import"}
        shards = check_unfinished(folder, undisturbed.records)
        return Kill(scenario=scenario, stages=frozenset(found - {"wait"} or {"wait"}), shards=shards, whom=whom)

    def _wait_for(self, process: Any, marks: Path, stage: str, *, nth: int) -> None:
        """Until the stage has been entered for the nth time, and a moment longer; or the builder has ended."""
        inside, deadline = False, time.monotonic() + HANG
        while process.is_alive() and time.monotonic() < deadline:
            now = any(stage in stages for stages in stages_of(marks).values())
            nth -= now and not inside
            inside = now
            if inside and nth <= 0:
                time.sleep(self.rng.uniform(0, 0.002))
                return
            time.sleep(0.0002)

    def _all_gone(self, folder: Path) -> None:
        """No process that worked for a dead driver goes on."""
        pids = [int(path.stem) for path in folder.glob("marks-*/*.stages")]
        deadline = time.monotonic() + HANG
        while left := [pid for pid in pids if _alive(pid)]:
            assert time.monotonic() < deadline, f"processes {left} outlive their driver"
            time.sleep(0.05)


def table(campaign: Campaign) -> str:
    """Kills by scenario and by what they interrupted; a kill that met threads in two stages is in both columns."""
    rows = [["scenario", "kills", *SHOWN, "rerun"]]
    by_scenario: dict[Scenario, list[Kill]] = {}
    for kill in campaign.kills:
        by_scenario.setdefault(kill.scenario, []).append(kill)
    for name, kills in [*((str(s), k) for s, k in by_scenario.items()), ("all", campaign.kills)]:
        counts = Counter(stage for kill in kills for stage in kill.stages)
        rows.append([name, str(len(kills)), *(str(counts[stage]) for stage in SHOWN), "same bytes"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if not at else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
