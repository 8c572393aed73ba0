"""Batch normalisation over rows, some of which may not count, over all processes of a data-parallel group."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BatchNorm"]


class BatchNorm(nn.Module):
    """Batch norm of the last axis, with torch.nn.BatchNorm1d's parameters, buffers and running averages.

    Two things differ from torch's: rows can be left out of the statistics, and when torch.distributed runs with more
    than one process the statistics are over the rows of all of them (torch's SyncBatchNorm needs a GPU). Every process
    must then take part in every training-mode call. Statistics are at least float32, under autocast too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise.

        x       [..., D] float.
        weight  None: every row counts. Otherwise a float32 tensor of x's leading axes, 1 for rows that make the
                statistics and 0 for rows that are only normalised by them.
        ->      [..., D], x's dtype.
        """
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        if not self.training:
            normed = F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        elif weight is None and not _distributed():
            self.num_batches_tracked.add_(1)
            normed = F.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
        else:
            self.num_batches_tracked.add_(1)
            normed = self._normalise(rows, None if weight is None else weight.reshape(-1))
        return normed if x.ndim == 2 else normed.view(x.shape)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, momentum={self.momentum}"

    def _normalise(self, x: Tensor, weight: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            values = x if x.dtype == torch.float64 else x.float()  # [M, D]
            # the mean first, then the spread about it: one pass over sums of squares would cancel in float32
            total, count = _sum_rows(values, weight)
            total, count = _over_processes(total), _over_processes(count).clamp(min=1)
            mean = total / count
            centred = values - mean
            squares = _over_processes(_sum_rows(centred.square(), weight)[0])
            variance = squares / count
            with torch.no_grad():
                unbiased = variance * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            normed = centred * (torch.rsqrt(variance + self.eps) * self.weight) + self.bias
        return normed.to(x.dtype)


def _sum_rows(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    if weight is None:
        return x.sum(0), x.new_tensor(float(x.shape[0]))
    return weight @ x, weight.sum()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _over_processes(x: Tensor) -> Tensor:
    return _AllReduceSum.apply(x) if _distributed() else x


class _AllReduceSum(torch.autograd.Function):
    """y = sum of x over the processes; so the gradient of x is the sum of the gradients of y over them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
