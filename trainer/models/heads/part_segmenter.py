"""The fine-tuning model for part segmentation: all levels' tokens interpolated to the points, and a per-point head.

As in Point-M2AE's part segmentation script, whose recorded outputs it reproduces.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.config import ModelConfig
from trainer.models.heads.config import SegmentationConfig
from trainer.models.heads.fine_tuned import PointSegmenter, Sought
from trainer.models.heads.local_encoder import LocalEncoder, LocalPlan, sought_by_name, step_draws
from trainer.models.heads.random_inputs import Dropout, HeadDraws
from trainer.models.hierarchical.decoder import interpolation_weights
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.initialisation import initialise
from trainer.models.layers.transformer import Pointwise

__all__ = ["PartSegmenter", "segmentation_loss"]

LABEL_SLOPE = 0.2  # of the leaky ReLU after the category's embedding


class PartSegmenter(PointSegmenter):
    """Clouds and their categories to per-point part scores. Parameter names are the reference's.

    model   sizes and behaviour of the encoder; its settings of masking and the decoder's sizes are not used.
    config  surroundings and head.

    Raises ValueError listing what is wrong with the settings. Source: Point-M2AE (Zhang et al. 2022), 4.2.
    """

    HEAD = ("label_conv.", "propagations.", "convs", "bns", "drop.")

    def __init__(self, model: ModelConfig, config: SegmentationConfig):
        super().__init__()
        self.model = model
        self.config = config
        self.h_encoder = LocalEncoder(model, config, norms=model.levels)
        self.label_conv = nn.Sequential(
            CategoryEmbedding(config.categories, config.embedding),
            BatchNorm(config.embedding),
            nn.LeakyReLU(LABEL_SLOPE),
        )
        self.propagations = nn.ModuleList(PointPropagation(width, config.propagation) for width in model.encoder_dims)
        whole = model.levels * config.propagation[-1]
        first, second, third = config.hidden
        self.convs1 = Pointwise(whole + config.embedding + whole, first)
        self.convs2 = Pointwise(first, second)
        self.convs3 = Pointwise(second, third)
        self.convs4 = Pointwise(third, config.parts)
        self.bns1 = BatchNorm(first)
        self.bns2 = BatchNorm(second)
        self.bns3 = BatchNorm(third)
        self.drop = Dropout(config.dropout, site=0)
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Reinitialise all weights by model.initialisation's rule, from `generator` (None: torch's global one)."""
        initialise(self, self.model.initialisation, generator)
        self.label_conv[0].initialise(generator)  # type: ignore[operator]

    def forward(self, points: Tensor, category: Tensor, draws: HeadDraws | None = None) -> Tensor:
        """Compute the log-probability of every part at every point.

        points    [B, N, 3] float32, N at least groups[0] and neighbours[0].
        category  [B] int64, 0..categories - 1.
        draws     random numbers of a training step; may be None in evaluation mode, which uses none, or where drop path
                  and dropout are 0.
        ->        [B, N, parts] float32.

        Raises ValueError for a shape, too few points, missing draws, or a training batch of one shape.
        """
        if category.shape != points.shape[:1]:
            raise ValueError(
                f"category has shape {tuple(category.shape)} for points of shape {tuple(points.shape)}; expected [B], "
                "the number of each shape's category"
            )
        plan = self.plan(points)
        expanded = self.model.interpolation == "expanded"
        weights = [interpolation_weights(points, level.centres, expanded=expanded) for level in plan.levels]
        return self.network(plan, weights, category, draws)

    def plan(self, points: Tensor) -> LocalPlan:
        return self.h_encoder.plan(points)

    def sought(self, entries: Collection[str]) -> Sought:
        return sought_by_name(self, entries)

    def network(self, plan: LocalPlan, weights: list[Tensor], category: Tensor, draws: HeadDraws | None) -> Tensor:
        """Compute all that is learnt, given the geometry; `weights` of `interpolation_weights`, one per level."""
        needed = self.model.drop_path > 0 or self.config.dropout > 0
        draws = step_draws(self, draws, plan.points.shape[0], needed=needed)
        encoded = self.h_encoder(plan, None if draws is None else draws.drop_path)
        levels = [
            propagation(plan.points, tokens, weight)  # [B, N, D]
            for propagation, tokens, weight in zip(self.propagations, encoded, weights, strict=True)
        ]
        shape = torch.cat([x.max(1).values + x.mean(1) for x in levels], dim=1)
        shape = torch.cat((shape, self.label_conv(category).to(shape.dtype)), dim=1)  # [B, D of all levels + embedding]
        x = F.relu(self.bns1(self._first_layer(shape, levels)))
        x = self.drop(x, None if draws is None else draws.dropout)
        x = F.relu(self.bns2(self.convs2(x)))
        x = F.relu(self.bns3(self.convs3(x)))
        return F.log_softmax(self.convs4(x).float(), dim=2)

    def _first_layer(self, shape: Tensor, levels: list[Tensor]) -> Tensor:
        # The layer sees [shape; the levels at the point]. Its matrix is split: what is the same for all points of a
        # shape goes through once a shape, and the levels need no copy side by side. Exact, half the multiplications.
        widths = [shape.shape[1], *(x.shape[2] for x in levels)]
        of_shape, *of_levels = self.convs1.weight[:, :, 0].split(widths, dim=1)
        x = F.linear(shape, of_shape, self.convs1.bias)[:, None]
        for level, weight in zip(levels, of_levels, strict=True):
            x = x + F.linear(level, weight)  # [B, N, D]
        return x


class CategoryEmbedding(nn.Module):
    """An embedding per category: the reference's 1 x 1 convolution of one-hot vectors, [D, categories, 1], no bias."""

    def __init__(self, categories: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, categories, 1))
        self.initialise(None)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None) -> None:
        """Draw the weights by torch's default for a convolution of this size."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    def forward(self, category: Tensor) -> Tensor:
        """Embed category [B] int64 -> [B, D]."""
        return F.embedding(category, self.weight[:, :, 0].T)


class PointPropagation(nn.Module):
    """Interpolation of a level's tokens to the points, then two per-point layers on them and the coordinates.

    Source: PointNet++'s feature propagation (Qi et al. 2017).
    """

    def __init__(self, width_in: int, widths: tuple[int, int]):
        super().__init__()
        steps = ((3 + width_in, widths[0]), widths)
        self.mlp_convs = nn.ModuleList(Pointwise(*step) for step in steps)
        self.mlp_bns = nn.ModuleList(BatchNorm(width) for width in widths)

    def forward(self, points: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """Propagate tokens [B, G, D] to points [B, N, 3] by weights [B, N, G] -> [B, N, widths[1]]."""
        raised = torch.bmm(weights.to(tokens.dtype), tokens)
        x = torch.cat((points.to(raised.dtype), raised), dim=2)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = F.relu(norm(conv(x)))
        return x


def segmentation_loss(log_probs: Tensor, target: Tensor, possible: Tensor | None = None) -> Tensor:
    """Compute the mean negative log-likelihood over all points.

    log_probs [B, N, parts], target [B, N] int64 -> [] float32.
    possible  [B, parts] bool, the parts that a shape can have, its own among them: likelihoods among these; None: all.
    """
    if possible is not None:
        log_probs = log_probs.masked_fill(~possible[:, None], -torch.inf).log_softmax(2)
    return F.nll_loss(log_probs.flatten(0, 1), target.flatten())
