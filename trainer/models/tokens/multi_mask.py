"""Several masks of one cloud in a step.

M masks of each of B clouds make B * M samples, those of one cloud one after the other. What does not depend on the mask
is computed once a cloud: its groups, the teacher's features at points, and the embedding of groups of points, which
comes before attention.
"""

from typing import NamedTuple

from torch import Tensor

from trainer.models.tokens.grouping import Level
from trainer.models.tokens.visible import Tokens, pad, select

__all__ = ["Shared", "copies_of", "repeat", "seen_in_any", "share"]


class Shared(NamedTuple):
    """The finest groups of clouds that have several masks each.

    masks   M, 2 or more
    level   the groups, of B clouds
    tokens  the layout of those that any mask shows, of B clouds
    place   [B, M * L] int64: for each place of the samples' padded tokens, the group's among the shown ones of its
            cloud; where no token belongs, 0. None: samples are laid out as `tokens` is
    """

    masks: int
    level: Level
    tokens: Tokens
    place: Tensor | None


def repeat(x: Tensor, masks: int) -> Tensor:
    """Repeat what a cloud has for each of its masks: [B, ...] -> [B * M, ...]."""
    return x if masks == 1 else x[:, None].expand(-1, masks, *x.shape[1:]).flatten(0, 1)


def copies_of(level: Level, masks: int) -> Level:
    """Repeat a level's groups for each mask."""
    return Level(repeat(level.centres, masks), repeat(level.members, masks))


def seen_in_any(visible: Tensor, masks: int) -> Tensor:
    """Tell which tokens any of a cloud's masks shows: [B * M, G] bool -> [B, G] bool."""
    return visible.unflatten(0, (-1, masks)).any(1)


def share(level: Level, masks: int, tokens: Tokens, samples: Tokens) -> Shared:
    """Find the samples' tokens among those of their clouds.

    level    of B clouds.   tokens  layout of `seen_in_any`.   samples  layout of the B * M samples.
    """
    if tokens.rank is None:
        return Shared(masks, level, tokens, None)
    place = pad(select(repeat(tokens.rank, masks)[:, :, None], samples.rows), samples)  # [B * M, L, 1]
    return Shared(masks, level, tokens, place.view(len(tokens.rank), -1))
