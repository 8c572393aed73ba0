"""The collective operations that training needs; all are the identity for a single process.

Gradients are summed by hand, in one flat vector per step, instead of by torch's DistributedDataParallel: each rank's
loss is already divided by the counts of the whole batch, so the sum of the ranks' gradients is the gradient of the
whole batch; accumulated parts need no special mode; and names in checkpoints stay plain.
"""

import datetime
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.errors import TrainingError

__all__ = ["Place", "Ranks", "deterministic", "joined", "pick_device", "place_in_launch"]

logger = logging.getLogger(__name__)

# While rank 0 evaluates the others wait in a collective; it must not be taken for a hang.
TIMEOUT = datetime.timedelta(hours=3)


LAUNCHER = "Start with `torchrun --nproc-per-node N -m cli.main pretrain ...`, which sets them all"
# Variables that launchers set in each of several processes; without torchrun's, a process cannot find the others.
OTHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}


class Place(NamedTuple):
    """This process's place in a distributed launch.

    rank 0..size-1, size processes in all, local_rank among those of this machine (None without a launcher).
    """

    rank: int
    size: int
    local_rank: int | None


def place_in_launch(environ: Mapping[str, str] = os.environ) -> Place:
    """Read the variables torchrun sets: WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Empty counts as unset.

    Raises TrainingError naming every variable that is missing or cannot be.
    """
    given = {name: environ[name].strip() for name in environ if environ[name].strip()}
    if "WORLD_SIZE" not in given:
        if given.get("RANK", "0") != "0":
            raise TrainingError(f"RANK is {given['RANK']!r}, but WORLD_SIZE is not set. {LAUNCHER}, or unset RANK.")
        for name, launcher in OTHERS.items():
            if given.get(name, "1") not in ("0", "1"):
                raise TrainingError(
                    f"{name} is {given[name]!r}, so {launcher} started several processes, but WORLD_SIZE is not set: "
                    f"each would train alone in one run directory. {LAUNCHER}."
                )
        return Place(0, 1, None)
    problems: list[str] = []

    def number(name: str, low: int, high: int) -> int:
        text = given.get(name, "")
        if text.isascii() and text.isdecimal() and low <= int(text[:12]) <= high:
            return int(text)
        problems.append(f"{name} is {text[:40]!r}" if text else f"{name} is not set")
        return low

    size = number("WORLD_SIZE", 1, 10**6)
    if size == 1 and not problems:
        if given.get("RANK", "0") != "0":
            problems.append(f"RANK is {given['RANK'][:40]!r}, but WORLD_SIZE is 1")
        if not problems:
            return Place(0, 1, None)
    rank = number("RANK", 0, size - 1) if not problems else 0
    local = number("LOCAL_RANK", 0, size - 1)
    number("MASTER_PORT", 1, 65535)
    if "MASTER_ADDR" not in given:
        problems.append("MASTER_ADDR is not set")
    if problems:
        shown = given.get("WORLD_SIZE", "")[:40]
        raise TrainingError(f"WORLD_SIZE = {shown!r} means several processes, but {', '.join(problems)}. {LAUNCHER}.")
    return Place(rank, size, local)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all that train one model.

    rank    0..size-1; rank 0 writes.   size  processes.   device  the one this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True in the process that writes checkpoints and logs."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum values over ranks, on this rank's device; the result is the same on every rank."""
        if self.size > 1:
            values = values.to(self.device).clone()  # all_reduce works in place, and the caller keeps its tensor
            with self._together():
                dist.all_reduce(values)
        return values

    def gather_rows(self, values: Tensor) -> Tensor:
        """Gather the rows of all ranks, rank by rank, on this rank's device: [B, ...] -> [ranks * B, ...].

        Every rank passes the same number of rows. No gradient flows through.
        """
        if self.size == 1:
            return values
        # As bytes: not every transport carries booleans.
        mine = values.detach().to(self.device).contiguous().view(torch.uint8)
        with self._together():
            found = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(found, mine)
        return torch.cat(found).view(values.dtype)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks. All ranks have gradients for the same parameters."""
        if self.size == 1:
            return
        # One all-reduce of one vector, not one per parameter: fewer messages, and every rank receives the same bits.
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with self._together():
            dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def share_weights(self, model: nn.Module) -> None:
        """Broadcast rank 0's parameters and buffers to every rank."""
        if self.size > 1:
            with self._together():
                for tensor in model.state_dict().values():  # in the same order on every rank, or tensors would mix
                    dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Return when every rank has reached this call."""
        if self.size > 1:
            with self._together():
                dist.barrier()

    def agree(self, facts: Mapping[str, str]) -> None:
        """Return when every rank has reached this call with the same facts.

        Raises TrainingError in all of them where a fact differs, naming it with the values of two ranks.
        """
        if self.size == 1:
            return
        everyone = [json.loads(text) for text in self._gather(json.dumps(dict(facts)))]
        for rank, other in enumerate(everyone):
            for name in sorted({*everyone[0], *other}):
                first, here = (str(each.get(name, "not known")) for each in (everyone[0], other))
                if first != here:
                    raise TrainingError(
                        f"the ranks do not agree on {name}: {_apart(first, here)} in rank 0, {_apart(here, first)} in "
                        f"rank {rank}. Start all of them with one command, one version and one run directory."
                    )

    def _gather(self, text: str) -> list[str]:
        """Gather the texts of all ranks; as bytes, since objects would be pickled."""
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(self.device)
        with self._together():
            sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(data)], device=self.device))
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
            padded[: len(data)] = data
            texts = [torch.zeros_like(padded) for _ in range(self.size)]
            dist.all_gather(texts, padded)
        return [bytes(text[: int(size)].cpu().numpy()).decode() for text, size in zip(texts, sizes, strict=True)]

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Run a collective; if a rank is gone, report that instead of the transport's message."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise TrainingError(
                f"rank {self.rank} lost the other ranks: one of them stopped, for the reason in its own output "
                f"({reason}). Run the same command again to resume from the last checkpoint."
            ) from error


def _apart(text: str, other: str) -> str:
    """Return a value from a little before where it begins to differ from another."""
    same = next((k for k, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - 20)
    return ("..." if start else "") + text[start : start + 60] + ("..." if len(text) > start + 60 else "")


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes of this run, if there are any, and leave them at the end.

    device  as trainer.device. Under torchrun (it sets RANK, WORLD_SIZE and LOCAL_RANK) "auto" and "cuda" mean the GPU
            numbered LOCAL_RANK, and ranks talk through NCCL; on the CPU through gloo. Inside a process group that the
            caller has made already, that one is used and left open.

    Raises TrainingError for a device that is not there, and for variables that place_in_launch refuses.
    """
    if dist.is_initialized():
        yield Ranks(rank=dist.get_rank(), size=dist.get_world_size(), device=pick_device(device, None))
        return
    launch = place_in_launch()
    size = launch.size
    if size == 1:
        yield Ranks(rank=0, size=1, device=pick_device(device, None))
        return
    place = pick_device(device, launch.local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        ranks = Ranks(rank=dist.get_rank(), size=size, device=place)
        logger.info("rank %d of %d on %s", ranks.rank, ranks.size, ranks.device)
        yield ranks
    finally:
        dist.destroy_process_group()


def pick_device(name: str, local_rank: int | None) -> torch.device:
    """Return the device that a name of trainer.device means, for this process alone: no other one is spoken to.

    local_rank  of a process under torchrun, whose GPU "auto" and "cuda" mean; None: torch's current one.

    Raises TrainingError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainingError(
            f"trainer.device = {name!r}, but torch {torch.__version__} finds no GPU. "
            'Use trainer.device = "cpu" or "auto", or check the driver with nvidia-smi.'
        )
    index = int(name.partition(":")[2] or (local_rank if local_rank is not None else torch.cuda.current_device()))
    if index >= torch.cuda.device_count():
        raise TrainingError(
            f"GPU {index} was requested, but there are {torch.cuda.device_count()}. Start fewer ranks, or choose "
            "another GPU."
        )
    return torch.device("cuda", index)


@contextmanager
def deterministic(wanted: bool, ranks: Ranks) -> Iterator[None]:
    """Use torch's deterministic operators on a GPU if wanted; the CPU operators in use always are."""
    if not wanted or ranks.device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Only warns: some operators have no deterministic form on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
