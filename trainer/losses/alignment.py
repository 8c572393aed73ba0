"""The global loss: InfoNCE between the student's view of a whole shape and the teacher's, against other shapes.

A shape's target is the concatenation of its views' class tokens, each centred by the corpus' mean of that view and
normalised to length 1; the concatenation is normalised again. The student's answer comes from its visible top tokens.
The loss is InfoNCE (van den Oord et al. 2018) from student to target: the shape's own target against those of other
shapes. Negatives are targets, not answers, so a shape's loss depends neither on the ranks nor on the parts that a batch
is computed in.

Letters: B shapes, M candidates, V views, C channels, D = V * C.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Candidates", "alignment_sum", "targets"]

SAME = 1 - 1e-5  # cosine from which on two targets are one: float32 and float16 leave equal ones within 1e-6
NOTHING = 1e-6  # of a class token's length: what is left of it beside the mean is rounding


class Candidates(NamedTuple):
    """Targets that an answer is contrasted with.

    targets  [M, D] float32, of length 1, or 0 where nothing is known
    known    [M] bool, False for a target of nothing but rounding
    shapes   [M] int64, whose they are: poses of one shape have one number
    """

    targets: Tensor
    known: Tensor
    shapes: Tensor


def targets(wholes: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the targets of shapes, and which of them are more than rounding.

    wholes  [B, V, C] float32.   mean  [V, C] float32, the corpus' of each view.
    ->      [B, V * C] float32 of length 1, or 0 where every view is the mean; [B] bool, True where one is not.
    """
    apart = wholes - mean
    length = torch.linalg.vector_norm(apart, dim=2, keepdim=True)
    scale = torch.linalg.vector_norm(wholes, dim=2, keepdim=True)
    views = torch.where(length > NOTHING * scale, apart / length.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    known = (views != 0).flatten(1).any(1)
    return F.normalize(views.flatten(1), dim=1), known


def alignment_sum(
    answers: Tensor, own: Candidates, others: Candidates, temperature: float, *, parts: int = 1
) -> Tensor:
    """Sum -log(e^own / (e^own + sum of e^other)) over shapes with a known target, [] float32.

    answers      [B, D] any float dtype; scaled to length 1.   own  their targets, row by row.
    others       the candidates, which may include the own targets. Unknown targets, targets of the same shape and equal
                 targets are not negatives: duplicates in a corpus must not be pushed apart.
    temperature  divides every cosine.
    parts        of the D numbers, equal and contiguous, that are contrasted each on its own; a shape's loss is their
                 mean, to which a part without a target adds 0. V for views, 1 for the whole.

    A shape without negatives has loss 0, and no gradient.
    """
    if parts > 1:
        slices = zip(answers.chunk(parts, 1), _split(own, parts), _split(others, parts), strict=True)
        return torch.stack([alignment_sum(*one, temperature) for one in slices]).sum() / parts
    with torch.autocast(answers.device.type, enabled=False):  # half precision would round cosines before / temperature
        answers = F.normalize(answers.float(), dim=1)
        mine = (answers * own.targets).sum(1, keepdim=True) / temperature  # [B, 1]
        cosines = answers @ others.targets.T / temperature  # [B, M]
        same = own.targets @ others.targets.T > SAME
        negative = others.known & (own.shapes[:, None] != others.shapes) & ~same
        # The own target always stands in column 0, so a row of masked negatives stays finite: its loss is 0.
        logits = torch.cat((mine, cosines.masked_fill(~negative, -torch.inf)), dim=1)
        each = logits.logsumexp(1) - mine[:, 0]
        return each.masked_fill(~own.known, 0).sum()


def _split(candidates: Candidates, parts: int) -> list[Candidates]:
    """Split targets into parts of length 1, or 0 where nothing of a part is known."""
    return [
        Candidates(F.normalize(part, dim=1), candidates.known & (part != 0).any(1), candidates.shapes)
        for part in candidates.targets.chunk(parts, 1)
    ]
