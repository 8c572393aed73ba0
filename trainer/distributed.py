"""One process or many: the few collective operations that training needs, all of them the identity for one process.

Gradients are summed by hand, in one flat vector a step, instead of by torch's DistributedDataParallel: each rank's loss
is already divided by the counts of the whole batch, so the sum of the ranks' gradients is the gradient of the whole
batch; accumulated parts need no special mode; and names in checkpoints stay plain.
"""

import datetime
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.errors import TrainingError

__all__ = ["Ranks", "deterministic", "joined"]

logger = logging.getLogger(__name__)

# While rank 0 evaluates the others wait in a collective; it must not be taken for a hang.
TIMEOUT = datetime.timedelta(hours=3)


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
        """Sum over ranks, on this rank's device; the same on every rank."""
        if self.size > 1:
            values = values.to(self.device).clone()
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks. All ranks have gradients for the same parameters."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def share_weights(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes of this run, if there are any, and leave them at the end.

    device  as trainer.device. Under torchrun (it sets RANK, WORLD_SIZE and LOCAL_RANK) "auto" and "cuda" mean the GPU
            numbered LOCAL_RANK, and ranks talk through NCCL; on the CPU through gloo. Inside a process group that the
            caller has made already, that one is used and left open.

    Raises TrainingError for a device that is not there.
    """
    if dist.is_initialized():
        yield Ranks(rank=dist.get_rank(), size=dist.get_world_size(), device=_device(device, None))
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(rank=0, size=1, device=_device(device, None))
        return
    place = _device(device, int(os.environ["LOCAL_RANK"]))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        ranks = Ranks(rank=dist.get_rank(), size=size, device=place)
        logger.info("rank %d of %d on %s", ranks.rank, ranks.size, ranks.device)
        yield ranks
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
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
            f"GPU {index} is asked for; there are {torch.cuda.device_count()}. Start fewer ranks, or name another."
        )
    return torch.device("cuda", index)


@contextmanager
def deterministic(wanted: bool, ranks: Ranks) -> Iterator[None]:
    """Choose torch's deterministic operators on a GPU, where wanted; those in use on the CPU always are."""
    if not wanted or ranks.device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
