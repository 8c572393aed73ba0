"""Run a function in two processes that talk through gloo, as torchrun would start them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.faults import builders

WORLD = 2


def on_two_ranks(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `function(rank)`, a module-level function, returns on each of two ranks: tensors, or containers of them."""
    builders()  # starts the server that they are forked from, which has what they import
    torch.multiprocessing.start_processes(
        _run, (function, folder, dict(os.environ)), nprocs=WORLD, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _run(rank: int, function: Callable[[int], Any], folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD)
    try:
        torch.save(function(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
