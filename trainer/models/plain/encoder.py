"""The plain encoder: groups of points become tokens, and a transformer runs over those that are visible."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cuda.fps import farthest_point_sample
from cuda.gather import gather, group
from cuda.knn import knn
from trainer.models.config import PlainConfig
from trainer.models.layers.token_embedding import TokenEmbed
from trainer.models.layers.transformer import PositionEmbedding
from trainer.models.plain.blocks import EncoderBlocks, Graph

__all__ = ["FRONT", "Encoded", "Groups", "PlainEncoder", "form_groups"]

POSITION_HIDDEN = 128
FRONT: dict[str, tuple[str, ...]] = {"none": (), "class": ("cls",), "three": ("cls", "img", "text")}
"""model.front -> the tokens that stand in front, by how their names begin."""


class Groups(NamedTuple):
    """The groups of a batch; geometry without gradient.

    chosen         [B, G] int64, the centres' points into axis N
    members        [B, G, K] int64, each group's points, nearest first, into axis N
    centres        [B, G, 3] float32
    neighbourhood  [B, G, K, 3] float32, members relative to their centre
    """

    chosen: Tensor
    members: Tensor
    centres: Tensor
    neighbourhood: Tensor


class Encoded(NamedTuple):
    """What comes out of the encoder.

    front   [B, F, D], normed
    tokens  [B, L, D], normed
    blocks  [B, F + L, D] after each block, not normed
    """

    front: Tensor
    tokens: Tensor
    blocks: list[Tensor]


@torch.no_grad()
def form_groups(points: Tensor, groups: int, neighbours: int, *, skip_near_origin: bool) -> Groups:
    """Choose centres by farthest point sampling from the first point on, and their nearest points.

    points  [B, N, 3] float32.

    Raises ValueError for another shape or fewer points than groups or neighbours, TypeError for another dtype.
    """
    if points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(f"points have shape {tuple(points.shape)}; expected [B, N, 3]")
    if points.shape[1] < max(groups, neighbours):
        raise ValueError(
            f"clouds of {points.shape[1]} points for a model of {groups} groups of {neighbours}; expected at least "
            f"{max(groups, neighbours)}. Use more points, or fewer groups or neighbours."
        )
    chosen = farthest_point_sample(points, groups, skip_near_origin=skip_near_origin)
    centres = gather(points, chosen)
    members = knn(points, centres, neighbours)[1]
    return Groups(chosen, members, centres, group(points, centres, members))


class PlainEncoder(nn.Module):
    """Embedding, positions and blocks. Parameter names are the reference's, of its encoder.

    config  sizes and behaviour.
    front   the tokens in front, a key of FRONT; None: config.front.

    Source: Point-MAE (Pang et al. 2022), 3.2, and its relatives as PlainConfig says.
    """

    def __init__(self, config: PlainConfig, *, front: str | None = None):
        super().__init__()
        self.settings = config
        self.front = FRONT[config.front if front is None else front]
        # The order of registration is the reference's, in which optimisers number their states.
        for name in self.front[:1]:
            self.register_parameter(f"{name}_token", nn.Parameter(torch.zeros(1, 1, config.width)))
            self.register_parameter(f"{name}_pos", nn.Parameter(torch.zeros(1, 1, config.width)))
        for what in ("token", "pos"):
            for name in self.front[1:]:
                self.register_parameter(f"{name}_{what}", nn.Parameter(torch.zeros(1, 1, config.width)))
        embedded = config.embed_width or config.width
        self.encoder = TokenEmbed(3, config.embed_first, 2 * config.embed_first[1], embedded)
        if config.embed_width:
            self.reduce_dim = nn.Linear(embedded, config.width)
        if config.position == "sines":
            self.pos_embed = PositionEmbedding(config.width, code=config.width)
        else:
            self.pos_embed = PositionEmbedding(config.width, hidden=POSITION_HIDDEN)
        self.blocks = EncoderBlocks(config)
        self.norm = nn.LayerNorm(config.width)

    def embed(self, neighbourhood: Tensor) -> Tensor:
        """Embed groups [B, G, K, 3] -> [B, G, embed_width or width]; batch statistics are over all of them."""
        return self.encoder(neighbourhood.flatten(0, 1), None).unflatten(0, neighbourhood.shape[:2])

    def widened(self, embedded: Tensor) -> Tensor:
        """Bring embedded groups [B, L, embed_width] to [B, L, width]."""
        return self.reduce_dim(embedded) if self.settings.embed_width else embedded

    def positions(self, centres: Tensor) -> Tensor:
        """Embed the positions of centres [B, L, 3] -> [B, L, width]."""
        if self.settings.position == "sines":
            return self.pos_embed(sines(centres, self.settings.width))
        return self.pos_embed(centres)

    def transform(self, tokens: Tensor, centres: Tensor, draws: Tensor | None, *, adapted: bool = True) -> Encoded:
        """Encode tokens [B, L, width] of centres [B, L, 3].

        draws    [B, 2 * depth] uniform numbers for drop path, or None for none.
        adapted  with the adapters, where there are any.
        """
        B = tokens.shape[0]
        x, position = tokens, self.positions(centres)
        if self.front:
            ahead = [getattr(self, f"{name}_token").expand(B, -1, -1) for name in self.front]
            places = [getattr(self, f"{name}_pos").expand(B, -1, -1) for name in self.front]
            x = torch.cat((*(part.to(x.dtype) for part in ahead), x), dim=1)
            position = torch.cat((*(part.to(position.dtype) for part in places), position), dim=1)
        graph = self._graph(centres) if adapted and self.settings.adapters else None
        outputs = self.blocks(x, position, len(self.front), draws, graph)
        normed = self.norm(outputs[-1])
        return Encoded(normed[:, : len(self.front)], normed[:, len(self.front) :], outputs)

    @torch.no_grad()
    def _graph(self, centres: Tensor) -> Graph:
        nearest = min(self.settings.adapter_neighbours, centres.shape[1])
        return Graph(knn(centres.float().contiguous(), centres.float().contiguous(), nearest)[1])


def sines(centres: Tensor, width: int) -> Tensor:
    """Sines and cosines of centres [..., 3] in width / 6 frequencies -> [..., width], axis by axis.

    Frequency j is 10000^(-j / (width / 6)); for each axis all sines stand before all cosines. Source: PCP-MAE (Zhang et
    al. 2024), after Vaswani et al. 2017.
    """
    count = width // 6
    powers = torch.arange(count, dtype=torch.float32, device=centres.device) / count
    angles = centres[..., None].float() * (1.0 / 10000**powers)  # [..., 3, count]
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2).to(centres.dtype)
