"""Libraries that do what a part of this project does: which are installed, and timing beside them in turn.

None is a dependency. A benchmark measures those that can be imported and names the others with the command that
installs them.
"""

import importlib
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._table import Timing

__all__ = ["CLOCKS", "PEERS", "Peer", "available", "in_turn", "ratio", "timing", "torch_fps_from_0"]


@dataclass(frozen=True)
class Peer:
    """A library by its name at the package index and the module that it installs."""

    package: str
    module: str


PEERS = {
    peer.package: peer
    for peer in (
        Peer("torch-quickfps", "torch_quickfps"),
        Peer("torch-fps", "torch_fps"),
        Peer("fpsample", "fpsample"),
        Peer("litdata", "litdata"),
        Peer("mosaicml-streaming", "streaming"),
    )
}


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Wall time, for an idle machine; or the processor time of all threads, on which the load of others hardly tells.
Threads that wait in a loop count in it, so it compares fairly where torch has one thread (OMP_NUM_THREADS=1)."""


def available(packages: Iterable[str]) -> dict[str, Any]:
    """Import the modules of those that are installed; the others are named on standard output with the remedy.

    -> module by package. What a module raises on import other than ImportError passes.
    """
    found: dict[str, Any] = {}
    missing: list[str] = []
    for package in packages:
        try:
            found[package] = importlib.import_module(PEERS[package].module)
        except ImportError as error:
            missing.append(package)
            print(f"not measured: {package} ({error}); install it with: pip install {package}")
        else:
            print(f"{package} {importlib.metadata.version(package)}")
    return found


def in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, clock: str = "wall", warmup: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of each, all of them once in every round: load of others hits a round, not one of its ratios."""
    now = CLOCKS[clock]
    for run in runs.values():
        for _ in range(warmup):
            run()
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = now()
            run()
            spent[name].append((now() - start) * 1e3)
    return spent


def timing(spent: Sequence[float]) -> Timing:
    """Median and 20th and 80th percentile; two rounds at least."""
    p20, _, _, p80 = statistics.quantiles(spent, n=5, method="inclusive")
    return Timing(p50=statistics.median(spent), p20=p20, p80=p80)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Timing:
    """How many times as long theirs took, round by round."""
    return timing([a / b for a, b in zip(theirs, ours, strict=True)])


def torch_fps_from_0(function: Callable[..., Any], points: Tensor, k: int, *more: int) -> Any:
    """Call one of torch-fps's samplers on whole clouds [B, N, 3] from point 0, without its checks of values."""
    B, N, _ = points.shape
    start = torch.zeros(B, dtype=torch.int64, device=points.device)
    valid = torch.ones(B, N, dtype=torch.bool, device=points.device)
    return function(points, valid, k, *more, start_idx=start, validate=False, assume_finite=True)
