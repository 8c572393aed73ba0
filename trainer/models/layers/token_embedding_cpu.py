"""The token embedding's training pass on a CPU, block by block of groups.

It computes the same layers as `token_embedding`, with the same statistics. It avoids writing arrays of all members to
memory and reading them back in each next operation and, behind the last maximum, multiplications by zero: the gradient
of a maximum is zero in all members of a group but one, channel by channel.

In bfloat16 the products of the wide layers take operands in bfloat16, which a processor with such instructions does two
to three times as fast, and add up in float32: within a product by the instructions, over blocks here. The rest, first
layer, statistics, norms, maxima's gradients and sums over members, is float32 in either case.
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cuda.twins.threads import for_each
from trainer.models.layers.batch_norm import variance_about

__all__ = ["EmbedRows"]

_BLOCK = 4096  # members in a block: its widest array is then 8 MB
_CHUNKS = 32  # of groups; each adds up on its own, then all in order, so that threads change no bit


class EmbedRows(torch.autograd.Function):
    """members [M, K, D] float32 and the layers' parameters -> [M, out], and each norm's mean and (biased) variance.

    Parameters in order: weight and bias of the first layer; weight and bias of its norm; of the second layer; the third
    layer's half for the group's maximum, its half for the members and its bias; weight and bias of its norm; weight and
    bias of the fourth layer. Weights [out, in]. Then eps of both norms, and the type of the wide products' operands:
    float32, or bfloat16, in which the second layer's output is kept too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        members: Tensor,
        expand: Tensor,
        expand_bias: Tensor,
        norm1: Tensor,
        norm1_bias: Tensor,
        mix: Tensor,
        mix_bias: Tensor,
        group_half: Tensor,
        own_half: Tensor,
        joint_bias: Tensor,
        norm2: Tensor,
        norm2_bias: Tensor,
        last: Tensor,
        last_bias: Tensor,
        eps: tuple[float, float],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        M, K, D = members.shape
        rows = members.reshape(M * K, D)
        first = F.linear(rows, expand, expand_bias)
        mean1 = first.mean(0)
        variance1 = variance_about(first, mean1)
        own = first.new_empty(M * K, mix.shape[0], dtype=dtype)
        joint = first.new_empty(M * K, own_half.shape[0])
        mix_t, own_t = mix.to(dtype).t(), own_half.to(dtype).t()
        last_weight = last
        mix_bias, last, last_bias = mix_bias.to(dtype), last.to(dtype), last_bias.to(dtype)
        highest = torch.empty(M, mix.shape[0], dtype=torch.int64)  # the member that has the group's maximum
        for groups, here in _blocks(M, K):
            active = F.batch_norm(first[here], mean1, variance1, norm1, norm1_bias, False, 0.0, eps[0]).relu_()
            torch.addmm(mix_bias, active.to(dtype), mix_t, out=own[here])
            maximum, highest[groups] = own[here].view(-1, K, mix.shape[0]).max(1)
            _product(own[here], own_t, joint[here])
            joint[here].view(-1, K, joint.shape[1]).add_(F.linear(maximum.float(), group_half, joint_bias)[:, None])
        mean2 = joint.mean(0)
        variance2 = variance_about(joint, mean2)
        out = first.new_empty(M, last.shape[0])
        chosen = torch.empty(M, last.shape[0], dtype=torch.int64)
        for groups, here in _blocks(M, K):
            active = F.batch_norm(joint[here], mean2, variance2, norm2, norm2_bias, False, 0.0, eps[1]).relu_()
            values = F.linear(active.to(dtype), last, last_bias).view(-1, K, last.shape[0])
            out[groups], chosen[groups] = values.max(1)
        ctx.save_for_backward(
            rows, first, own, joint, highest, chosen, mean1, variance1, mean2, variance2,
            expand, norm1, norm1_bias, mix, group_half, own_half, norm2, norm2_bias, last_weight,
        )  # fmt: skip
        ctx.shape, ctx.eps = members.shape, eps
        ctx.mark_non_differentiable(mean1, variance1, mean2, variance2)
        return out, mean1, variance1, mean2, variance2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (
            rows, first, own, joint, highest, chosen, mean1, variance1, mean2, variance2,
            expand, norm1, norm1_bias, mix, group_half, own_half, norm2, norm2_bias, last,
        ) = ctx.saved_tensors  # fmt: skip
        M, K, D = ctx.shape
        dtype = own.dtype
        maximum = _LastMaximum(grad.contiguous(), joint.view(M, K, -1), chosen, last)
        d_last, d_norm2, d_norm2_bias = maximum.sums(mean2, variance2, norm2, norm2_bias, ctx.eps[1])

        d_own_half, d_group_half = torch.zeros_like(own_half), torch.zeros_like(group_half)
        d_joint_bias = torch.zeros_like(norm2)
        d_mix, d_mix_bias = torch.zeros_like(mix), mix.new_zeros(mix.shape[0])
        d_active = torch.empty_like(first)
        mix, own_weight = mix.to(dtype), own_half.to(dtype)
        for groups, here in _blocks(M, K):
            d_joint = maximum.rows(groups)  # [block, K, joint]
            d_shared = d_joint.sum(1)  # what the group's maximum gave all members alike
            d_rows = d_joint.view(-1, d_joint.shape[2]).to(dtype)
            _add_product(d_own_half, d_rows.t(), own[here])
            mine = own[here].view(-1, K, own.shape[1])
            at = highest[groups][:, None]
            torch.addmm(d_group_half, d_shared.t(), mine.gather(1, at)[:, 0].float(), out=d_group_half)
            d_joint_bias += d_shared.sum(0)
            d_own = torch.mm(d_rows, own_weight)
            d_own.view(mine.shape).scatter_add_(1, at, torch.mm(d_shared, group_half)[:, None].to(dtype))
            active = F.batch_norm(first[here], mean1, variance1, norm1, norm1_bias, False, 0.0, ctx.eps[0]).relu_()
            _add_product(d_mix, d_own.t(), active.to(dtype))
            d_mix_bias += d_own.sum(0, dtype=torch.float32)
            _product(d_own, mix, d_active[here])
            d_active[here].masked_fill_(active <= 0, 0)
        d_first, d_norm1, d_norm1_bias = torch.ops.aten.native_batch_norm_backward(
            d_active, first, norm1, None, None, mean1, torch.rsqrt(variance1 + ctx.eps[0]), True, ctx.eps[0], [True] * 3
        )
        d_members = torch.mm(d_first, expand).view(M, K, D) if ctx.needs_input_grad[0] else None
        return (
            d_members, torch.mm(d_first.t(), rows), d_first.sum(0), d_norm1, d_norm1_bias, d_mix, d_mix_bias,
            d_group_half, d_own_half, d_joint_bias, d_norm2, d_norm2_bias, d_last, grad.sum(0), None, None,
        )  # fmt: skip


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left @ right to out, float32, whatever the operands' type."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(torch.mm(left, right))


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `to`, float32, whatever the operands' type."""
    if left.dtype == to.dtype:
        torch.addmm(to, left, right, out=to)
    else:
        to.add_(torch.mm(left, right))


class _LastMaximum:
    """The gradient behind the last maximum: through the fourth layer, ReLU and norm, to the third layer's output.

    grad [M, out], joint [M, K, H], chosen [M, out] int64: the member each maximum came from; weight [out, H].
    """

    def __init__(self, grad: Tensor, joint: Tensor, chosen: Tensor, weight: Tensor):
        self._grad, self._joint, self._chosen, self._weight = (
            tensor.detach().numpy() for tensor in (grad, joint, chosen, weight)
        )
        self._norm: tuple[np.ndarray, ...] = ()
        self._shares: tuple[np.ndarray, ...] = ()

    def sums(
        self, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of the fourth layer's weight, and of the norm's weight and bias."""
        M, K, H = self._joint.shape
        inverse = torch.rsqrt(variance + eps)
        slope = inverse * scale
        self._norm = tuple(t.detach().numpy() for t in (mean, inverse, slope, shift - mean * slope))
        chunks = min(_CHUNKS, M)
        d_weight = np.zeros((chunks, *self._weight.shape), np.float32)
        sums = np.zeros((chunks, 2, H))
        for_each(chunks, _add_up, self._grad, self._joint, self._chosen, self._weight, *self._norm, d_weight, sums)
        total = sums.sum(0)
        self._shares = tuple((total / (M * K)).astype(np.float32))
        d_bias, d_scale = torch.from_numpy(total.astype(np.float32))
        return torch.from_numpy(d_weight.sum(0)), d_scale, d_bias

    def rows(self, groups: slice) -> Tensor:
        """Compute the gradient of the third layer's output in some groups, [block, K, H]."""
        joint = self._joint[groups]
        out = np.empty_like(joint)
        some = (self._grad[groups], joint, self._chosen[groups])
        for_each(len(joint), _to_joint, *some, self._weight, *self._norm, *self._shares, out)
        return torch.from_numpy(out)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_up(begin, end, grad, joint, chosen, weight, mean, inverse, slope, offset, d_weight, sums):
    """Sum chunks of groups ``begin..end``: d_weight [chunks, out, H] f32, sums [chunks, 2, H] f64: dy, dy * xhat."""
    M, K, H = joint.shape
    chunks = len(sums)
    active = np.empty((K, H), np.float32)
    back = np.empty((K, H), np.float32)
    plain = np.empty(H, np.float32)
    tilted = np.empty(H, np.float32)
    for chunk in range(begin, end):
        for m in range(M * chunk // chunks, M * (chunk + 1) // chunks):
            _through_relu(grad[m], joint[m], chosen[m], weight, slope, offset, active, back)
            for c in range(grad.shape[1]):
                _add_scaled(d_weight[chunk, c], grad[m, c], active[chosen[m, c]])
            plain[:] = 0
            tilted[:] = 0
            for k in range(K):
                for h in range(H):
                    plain[h] += back[k, h]
                    tilted[h] += back[k, h] * ((joint[m, k, h] - mean[h]) * inverse[h])
            for h in range(H):
                sums[chunk, 0, h] += plain[h]
                sums[chunk, 1, h] += tilted[h]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _to_joint(begin, end, grad, joint, chosen, weight, mean, inverse, slope, offset, share, tilt, out):
    """Compute groups ``begin..end``: out [M, K, H] = slope * (dy - mean of dy - xhat * mean of dy * xhat)."""
    K, H = joint.shape[1:]
    active = np.empty((K, H), np.float32)
    for m in range(begin, end):
        _through_relu(grad[m], joint[m], chosen[m], weight, slope, offset, active, out[m])
        for k in range(K):
            for h in range(H):
                xhat = (joint[m, k, h] - mean[h]) * inverse[h]
                out[m, k, h] = slope[h] * (out[m, k, h] - share[h] - xhat * tilt[h])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _through_relu(grad, joint, chosen, weight, slope, offset, active, back):
    """Compute one group: active [K, H], where the ReLU passed; back [K, H], the gradient before the ReLU."""
    K, H = joint.shape
    for k in range(K):
        for h in range(H):
            value = joint[k, h] * slope[h] + offset[h]
            active[k, h] = value if value > np.float32(0) else np.float32(0)
            back[k, h] = 0
    for c in range(len(grad)):
        _add_scaled(back[chosen[c]], grad[c], weight[c])
    for k in range(K):
        for h in range(H):
            back[k, h] = back[k, h] if active[k, h] > np.float32(0) else np.float32(0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_scaled(to, factor, row):
    for h in range(len(to)):
        to[h] += factor * row[h]


def _blocks(groups: int, members: int) -> list[tuple[slice, slice]]:
    """Return slices of groups, and of their members' rows, of about _BLOCK members each."""
    size = max(1, _BLOCK // members)
    starts = range(0, groups, size)
    return [(slice(s, min(s + size, groups)), slice(s * members, min(s + size, groups) * members)) for s in starts]
