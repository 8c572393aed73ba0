"""The global loss: the student's view of a whole shape is to find the teacher's among those of other shapes.

A shape's target is what the teacher makes of its views as wholes, seen from the middle of the corpus: of each view the
class token less the corpus' mean of that view, scaled to length 1; the views one after the other, scaled to length 1.
The student's answer comes from its visible top tokens. The loss is InfoNCE (van den Oord et al. 2018) from student to
target: the own target against those of other shapes. Negatives are targets, not answers, so a shape's loss depends
neither on the ranks nor on the parts that a batch is computed in.

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
    """Targets that an answer may have to be told from.

    targets  [M, D] float32, of length 1, or 0 where nothing is known
    known    [M] bool, False for a target of nothing but rounding
    shapes   [M] int64, whose they are: poses of one shape have one number
    """

    targets: Tensor
    known: Tensor
    shapes: Tensor


def targets(wholes: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of shapes, and which of them are more than rounding.

    wholes  [B, V, C] float32.   mean  [V, C] float32, the corpus' of each view.
    ->      [B, V * C] float32 of length 1, or 0 where every view is the mean; [B] bool, True where one is not.
    """
    apart = wholes - mean
    length = torch.linalg.vector_norm(apart, dim=2, keepdim=True)
    scale = torch.linalg.vector_norm(wholes, dim=2, keepdim=True)
    views = torch.where(length > NOTHING * scale, apart / length.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    known = (views != 0).flatten(1).any(1)
    return F.normalize(views.flatten(1), dim=1), known


def alignment_sum(answers: Tensor, own: Candidates, others: Candidates, temperature: float) -> Tensor:
    """Sum over shapes with a known target of -log(e^own / (e^own + sum of e^other)), [] float32.

    answers      [B, D] any float dtype; scaled to length 1.   own  their targets, row by row.
    others       the candidates, which may hold the own targets. Not a negative of a shape is what is not known, what is
                 of the same shape, and what is the same target: duplicates in a corpus are not to be told apart.
    temperature  divides every cosine.

    A shape without negatives loses nothing, and learns nothing.
    """
    with torch.autocast(answers.device.type, enabled=False):
        answers = F.normalize(answers.float(), dim=1)
        mine = (answers * own.targets).sum(1, keepdim=True) / temperature  # [B, 1]
        cosines = answers @ others.targets.T / temperature  # [B, M]
        same = own.targets @ others.targets.T > SAME
        negative = others.known & (own.shapes[:, None] != others.shapes) & ~same
        logits = torch.cat((mine, cosines.masked_fill(~negative, -torch.inf)), dim=1)
        each = logits.logsumexp(1) - mine[:, 0]
        return each.masked_fill(~own.known, 0).sum()
