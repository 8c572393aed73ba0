"""The teacher's features at the members of visible tokens."""

from torch import Tensor, arange

from cuda.backproject import backproject
from cuda.token_maps import TokenMaps
from trainer.models.tokens.grouping import Level
from trainer.models.tokens.multi_mask import repeat
from trainer.models.tokens.visible import Tokens, pad, select

__all__ = ["feature_targets"]


def feature_targets(
    maps: TokenMaps, centres_canonical: Tensor, level: Level, here: Tokens, below: Tokens, *, masks: int
) -> Tensor:
    """Look up features at members of visible tokens, [M, K * V * C] float32.

    centres_canonical  [B, G, 3] float32, at least as many as the level below has.
    level              the groups of B clouds.
    here               the level's layout of the B * masks samples.
    below              layout of the B clouds at the level below, in which every member of a token that `here` shows is
                       visible.
    """
    # Members of visible tokens are visible below, many of them shared, so features are looked up there once.
    G = below.visible.shape[1]
    wanted = pad(select(centres_canonical[:, :G], below.rows), below)  # [B, L, 3]
    features = backproject(maps.features, wanted, maps.geometry, image_side=maps.image_side)  # [B, L, V, C]
    members = level.members
    if below.rank is not None:
        members = below.rank.gather(1, members.flatten(1)).view(members.shape)
    members = members + arange(members.shape[0], device=members.device).mul_(below.length)[:, None, None]
    rows = select(repeat(members, masks), here.rows)  # [M, K] into B * L
    return features.flatten(2).flatten(0, 1).index_select(0, rows.reshape(-1)).view(rows.shape[0], -1)
