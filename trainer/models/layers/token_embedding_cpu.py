"""The token embedding's training pass on a CPU, block by block of groups.

It computes the same layers as `token_embedding`, with the same statistics. It avoids writing arrays of all members to
memory and reading them back in each next operation and, behind the last maximum, multiplications by zero: the gradient
of a maximum is zero in all members of a group but one, channel by channel.

A step of the preset `quickstart` takes 0.85 of the CPU time that it takes layer by layer, one of `study` 0.90 (one
thread, in turn; before norms, maxima and their gradients were single passes of `row_kernels`).

In bfloat16 the products of the wide layers take operands in bfloat16, which a processor with such instructions does two
to three times as fast, and add up in float32: within a product by the instructions, over blocks here. The rest, first
layer, statistics, norms, maxima's gradients and sums over members, is float32 in either case.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cuda.twins.threads import for_each
from trainer.models.layers.row_kernels import Moments, add_at, group_maximum, moments, normed_relu, slope_and_offset

__all__ = ["EmbedRows"]

_BLOCK = 4096  # members in a block: its widest array is then 8 MB
_ROWS = 256  # that are summed at a time
_CHUNKS = 8  # of a block's groups; each adds up on its own, then all in order, so that threads change no bit


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
        mean1, variance1 = moments(first)
        slope, offset = slope_and_offset(mean1, variance1, norm1, norm1_bias, eps[0])
        # Block by block, because the system clears the pages of an array above 32 MB anew in every step.
        owns = [first.new_empty(len(first[here]), mix.shape[0], dtype=dtype) for _, here in _blocks(M, K)]
        joints = [first.new_empty(len(own), own_half.shape[0]) for own in owns]
        mix_t, own_t = mix.to(dtype).t(), own_half.to(dtype).t()
        last_weight = last
        mix_bias, last, last_bias = mix_bias.to(dtype), last.to(dtype), last_bias.to(dtype)
        maximum = first.new_empty(M, mix.shape[0])
        highest = torch.empty(M, mix.shape[0], dtype=torch.int64)  # the member that has the group's maximum
        statistics = Moments()
        for (groups, here), own, joint in zip(_blocks(M, K), owns, joints, strict=True):
            active = normed_relu(first[here], slope, offset)
            torch.addmm(mix_bias, active.to(dtype), mix_t, out=own)
            maximum[groups], highest[groups] = group_maximum(own.view(-1, K, own.shape[1]))
            _product(own, own_t, joint)
            shared = F.linear(maximum[groups], group_half, joint_bias)
            joint.view(-1, K, joint.shape[1]).add_(shared[:, None])
            statistics.add(joint)
        mean2, variance2 = statistics.result()
        slope, offset = slope_and_offset(mean2, variance2, norm2, norm2_bias, eps[1])
        out = first.new_empty(M, last.shape[0])
        chosen = torch.empty(M, last.shape[0], dtype=torch.int64)
        for (groups, _), joint in zip(_blocks(M, K), joints, strict=True):
            active = normed_relu(joint, slope, offset)
            values = F.linear(active.to(dtype), last, last_bias).view(-1, K, last.shape[0])
            out[groups], chosen[groups] = group_maximum(values)
        ctx.save_for_backward(
            rows, first, maximum, highest, chosen, mean1, variance1, mean2, variance2,
            expand, norm1, norm1_bias, mix, group_half, own_half, norm2, norm2_bias, last_weight, *owns, *joints,
        )  # fmt: skip
        ctx.shape, ctx.eps = members.shape, eps
        ctx.mark_non_differentiable(mean1, variance1, mean2, variance2)
        return out, mean1, variance1, mean2, variance2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (
            rows, first, highest_values, highest, chosen, mean1, variance1, mean2, variance2,
            expand, norm1, norm1_bias, mix, group_half, own_half, norm2, norm2_bias, last, *kept,
        ) = ctx.saved_tensors  # fmt: skip
        M, K, D = ctx.shape
        blocks = _blocks(M, K)
        owns, joints = kept[: len(blocks)], kept[len(blocks) :]
        dtype = owns[0].dtype
        maximum = _LastMaximum(grad.contiguous(), [joint.view(-1, K, joint.shape[1]) for joint in joints], chosen, last)
        d_last, d_norm2, d_norm2_bias = maximum.sums(mean2, variance2, norm2, norm2_bias, ctx.eps[1])

        d_own_half, d_group_half = torch.zeros_like(own_half), torch.zeros_like(group_half)
        d_joint_bias = torch.zeros_like(norm2)
        d_mix, d_mix_bias = torch.zeros_like(mix), mix.new_zeros(mix.shape[0])
        d_first = torch.empty_like(first)  # of its norm's output, until the last pass
        mix, own_weight = mix.to(dtype), own_half.to(dtype)
        norm = _FirstNorm(mean1, variance1, norm1, norm1_bias, ctx.eps[0])
        for (groups, here), own in zip(blocks, owns, strict=True):
            # [block, K, joint], and [block, joint]: what the group's maximum gave all members alike
            d_joint, d_shared = maximum.next_rows()
            d_rows = d_joint.view(-1, d_joint.shape[2]).to(dtype)
            _add_product(d_own_half, d_rows.t(), own)
            torch.addmm(d_group_half, d_shared.t(), highest_values[groups], out=d_group_half)
            d_joint_bias += d_shared.sum(0)
            d_own = torch.mm(d_rows, own_weight)
            add_at(d_own.view(-1, K, d_own.shape[1]), highest[groups], torch.mm(d_shared, group_half))
            active = normed_relu(first[here], norm.slope, norm.offset)
            _add_product(d_mix, d_own.t(), active.to(dtype))
            d_mix_bias += d_own.sum(0, dtype=torch.float32)
            _product(d_own, mix, d_first[here])
            norm.add(first[here], active, d_first[here])
        d_norm1, d_norm1_bias = norm.finish(first, d_first)
        d_members = torch.mm(d_first, expand).view(M, K, D) if ctx.needs_input_grad[0] else None
        # the narrow operand first: a product with few columns is three times as slow as one with few rows
        return (
            d_members, torch.mm(rows.t(), d_first).t(), d_first.sum(0), d_norm1, d_norm1_bias, d_mix, d_mix_bias,
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

    grad [M, out]; joints: blocks of [M, K, H]; chosen [M, out] int64: the member each maximum came from; weight
    [out, H].
    """

    def __init__(self, grad: Tensor, joints: Sequence[Tensor], chosen: Tensor, weight: Tensor):
        sizes = [len(joint) for joint in joints]
        parts = zip(grad.split(sizes), joints, chosen.split(sizes), strict=True)
        self._blocks = [tuple(tensor.detach().numpy() for tensor in part) for part in parts]
        self._weight = weight.detach().numpy()
        self._norm: tuple[np.ndarray, ...] = ()
        self._shares: tuple[np.ndarray, ...] = ()
        self._next = iter(self._blocks)

    def sums(
        self, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of the fourth layer's weight, and of the norm's weight and bias."""
        slope, offset = slope_and_offset(mean, variance, scale, shift, eps)
        self._norm = tuple(t.detach().numpy() for t in (mean, torch.rsqrt(variance + eps), slope, offset))
        d_weight = np.zeros((_CHUNKS, *self._weight.shape), np.float32)
        sums, rows = np.zeros((_CHUNKS, 2, self._weight.shape[1])), 0
        for grad, joint, chosen in self._blocks:
            chunks = min(_CHUNKS, len(joint))
            for_each(chunks, _add_up, chunks, grad, joint, chosen, self._weight, *self._norm, d_weight, sums)
            rows += joint.shape[0] * joint.shape[1]
        total = sums.sum(0)
        self._shares = tuple((total / rows).astype(np.float32))
        d_bias, d_scale = torch.from_numpy(total.astype(np.float32))
        return torch.from_numpy(d_weight.sum(0)), d_scale, d_bias

    def next_rows(self) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the next block of the third layer's output, [M, K, H], and its sum over members."""
        grad, joint, chosen = next(self._next)
        out, total = np.empty_like(joint), np.empty((len(joint), joint.shape[2]), np.float32)
        for_each(len(joint), _to_joint, grad, joint, chosen, self._weight, *self._norm, *self._shares, out, total)
        return torch.from_numpy(out), torch.from_numpy(total)


class _FirstNorm:
    """The gradient through ReLU and norm of the first layer's output x [M, D], piece by piece.

    slope, offset  of the norm, [D] float32.
    """

    def __init__(self, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, eps: float):
        self.slope, self.offset = slope_and_offset(mean, variance, scale, shift, eps)
        inverse = torch.rsqrt(variance + eps)
        self._norm = (mean.numpy(), inverse.numpy(), self.slope.numpy())
        self._sums: list[np.ndarray] = []

    def add(self, x: Tensor, active: Tensor, grad: Tensor) -> None:
        """Close `grad`, in place, where the ReLU did, and add up what the norm needs: all [rows, D]."""
        chunks = -(-len(x) // _ROWS)
        sums = np.empty((chunks, 2, x.shape[1]))
        for_each(chunks, _close, x.numpy(), active.numpy(), *self._norm[:2], grad.numpy(), sums)
        self._sums.append(sums)

    def finish(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Bring `grad` [M, D], in place, through the norm -> gradients of its weight and bias, [D] each."""
        total = np.concatenate(self._sums).sum(0)
        shares = (total / len(x)).astype(np.float32)
        for_each(len(x), _through_norm, x.numpy(), *self._norm, *shares, grad.numpy())
        d_bias, d_scale = torch.from_numpy(total.astype(np.float32))
        return d_scale, d_bias


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_up(begin, end, chunks, grad, joint, chosen, weight, mean, inverse, slope, offset, d_weight, sums):
    """Add chunks ``begin..end`` of the groups: d_weight [.., out, H] f32, sums [.., 2, H] f64: dy, dy * xhat."""
    M, K, H = joint.shape
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
def _to_joint(begin, end, grad, joint, chosen, weight, mean, inverse, slope, offset, share, tilt, out, total):
    """Compute groups ``begin..end``: out [M, K, H] = slope * (dy - mean of dy - xhat * mean of dy * xhat).

    total  [M, H]: its sum over members.
    """
    K, H = joint.shape[1:]
    active = np.empty((K, H), np.float32)
    added = np.empty(H, np.float32)
    for m in range(begin, end):
        _through_relu(grad[m], joint[m], chosen[m], weight, slope, offset, active, out[m])
        added[:] = 0
        for k in range(K):
            row = out[m, k]
            for h in range(H):
                xhat = (joint[m, k, h] - mean[h]) * inverse[h]
                value = slope[h] * (row[h] - share[h] - xhat * tilt[h])
                row[h] = value
                added[h] += value
        total[m] = added


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _close(begin, end, x, active, mean, inverse, grad, sums):
    """Chunks ``begin..end`` of rows: grad [M, D] = 0 where active is; sums [chunks, 2, D] f64: dy, dy * xhat."""
    M, D = x.shape
    plain = np.empty(D, np.float32)
    tilted = np.empty(D, np.float32)
    for chunk in range(begin, end):
        plain[:] = 0
        tilted[:] = 0
        for i in range(chunk * _ROWS, min((chunk + 1) * _ROWS, M)):
            row, here, shown = grad[i], x[i], active[i]
            for c in range(D):
                value = np.float32(0) if shown[c] <= np.float32(0) else row[c]
                row[c] = value
                plain[c] += value
                tilted[c] += value * ((here[c] - mean[c]) * inverse[c])
        sums[chunk, 0] = plain
        sums[chunk, 1] = tilted


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _through_norm(begin, end, x, mean, inverse, slope, share, tilt, grad):
    """Rows ``begin..end``: grad [M, D] = slope * (dy - mean of dy - xhat * mean of dy * xhat)."""
    D = x.shape[1]
    for i in range(begin, end):
        for c in range(D):
            xhat = (x[i, c] - mean[c]) * inverse[c]
            grad[i, c] = slope[c] * (grad[i, c] - share[c] - xhat * tilt[c])


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
