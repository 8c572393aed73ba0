"""Measuring and printing: one process, warm, medians with their spread, each row beside its floor and its baseline."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Row", "Timing", "environment", "measure", "print_table", "write_json"]


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median and 20th and 80th percentile of the repeats."""

    p50: float
    p20: float
    p80: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case: what it had to cost, what it cost, what the usual way costs."""

    case: str
    floor: float | None  # ms; None where no floor is worked out
    ours: Timing
    baseline_name: str
    baseline: Timing | None  # None: could not be run here, `note` says why
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.baseline.p50 / self.ours.p50 if self.baseline else None


def measure(run: Callable[[], object], *, seconds: float = 1.0, least: int = 5, warmup: int = 2) -> Timing:
    """Time repeats of ``run`` for about ``seconds``. On a GPU, ``run`` must synchronise."""
    for _ in range(warmup):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    return Timing(p50=statistics.median(times), p20=p20, p80=p80)


def print_table(title: str, rows: Sequence[Row]) -> None:
    """A Markdown table on standard output."""
    print(f"\n### {title}\n")
    print("| case | floor ms | ours p50 (p20-p80) ms | baseline | its p50 ms | ratio | share of floor |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for row in rows:
        floor = f"{row.floor:.2f}" if row.floor is not None else "-"
        share = f"{row.floor / row.ours.p50:.0%}" if row.floor is not None else "-"
        ours = f"{row.ours.p50:.2f} ({row.ours.p20:.2f}-{row.ours.p80:.2f})"
        baseline = f"{row.baseline.p50:.2f}" if row.baseline else row.note or "not run"
        ratio = f"{row.ratio:.1f}x" if row.ratio is not None else "-"
        print(f"| {row.case} | {floor} | {ours} | {row.baseline_name} | {baseline} | {ratio} | {share} |")


def environment() -> dict[str, str | int]:
    """What a figure depends on."""
    import numba
    import numpy
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": name,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none: nothing here has run on a GPU",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": numpy.__version__,
    }


def write_json(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Append this run to ``path``, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"title": title, "environment": environment(), "rows": [asdict(row) for row in rows]}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run, sort_keys=True) + "\n")
