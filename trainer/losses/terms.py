"""Losses by name, as sums and counts, so that a mean can be taken over more than one process sees.

A step has a dict of losses. A loss keeps its name everywhere: "2d" has the weight `trainer.weight_2d`, is `loss_2d` in
train.jsonl, metrics.json and checkpoints, and `loss/2d` in TensorBoard; "2d_2" is the same loss of a second teacher.
Nothing outside this folder, the student that predicts what is compared and the setting of the weight knows which losses
there are.

`weighted_sum` of a dict is the loss of one process. Under data parallelism or gradient accumulation the mean must be
over all masked tokens of the whole batch, not a mean of means: add up the counts over the parts (they carry no
gradient), and differentiate `weighted_sum(losses, counts=...)`, whose sum over the parts is the loss of the whole
batch. (DistributedDataParallel averages gradients over ranks: multiply by the number of ranks before the backward
pass.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

__all__ = ["COORDINATES", "FEATURES", "WHOLE", "LossTerm", "Losses", "of_further", "weighted_sum"]

COORDINATES = "3d"  # neighbourhoods of hidden tokens, trainer.losses.reconstruction.chamfer_sum
FEATURES = "2d"  # the teacher's features, a mean over its channels, trainer.losses.reconstruction.squared_error_sum
WHOLE = "global"  # whole shapes, trainer.losses.alignment


def of_further(name: str, index: int) -> str:
    """Name the loss `name` of further teacher `index`, from 0: "2d_2" is that of the second teacher."""
    return f"{name}_{index + 2}"


@dataclass(frozen=True)
class LossTerm:
    """One loss of one part of a batch.

    sum    [] float32, over everything that is compared
    count  [] float32 without gradient: of what the sum is over; 0 where the loss is off
    """

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean loss, [] float32; 0 where the loss is off."""
        return self.sum / self.count.clamp(min=1)


Losses = dict[str, LossTerm]


def weighted_sum(
    losses: Mapping[str, LossTerm],
    *,
    counts: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """Add up the means of some losses, at least one, [] float32.

    counts   name -> [] float32, what each mean is over; None: the terms' own. Those of a whole batch make this the
             part's share of the batch's loss.
    weights  name -> factor; 1 where none is given, as the reference adds its losses.
    """
    factors = weights or {}
    # A loss that is off, or has nothing to compare here, has count 0: its share is 0 and not NaN.
    return reduce(
        add,
        (
            factors.get(name, 1.0) * term.sum / (term.count if counts is None else counts[name]).clamp(min=1)
            for name, term in losses.items()
        ),
    )
