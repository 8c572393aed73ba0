"""Run a function in two processes that talk through gloo, as torchrun would start them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2


def on_two_ranks(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `function(rank)`, a module-level function, returns on each of two ranks: tensors, or containers of them."""
    torch.multiprocessing.start_processes(_run, (function, folder), nprocs=WORLD, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _run(rank: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD)
    try:
        torch.save(function(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
