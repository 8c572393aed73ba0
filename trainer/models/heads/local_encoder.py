"""The encoder for fine-tuning: nothing masked, every token attends to its neighbourhood only."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cuda.untraced import untraced
from trainer.models.config import ModelConfig
from trainer.models.heads.config import ClassifierConfig, SegmentationConfig
from trainer.models.heads.fine_tuned import Sought
from trainer.models.heads.radius import within_radius
from trainer.models.heads.random_inputs import HeadDraws
from trainer.models.hierarchical.encoder import Encoder
from trainer.models.tokens.grouping import Level, gather, neighbourhoods, tokenise

__all__ = ["LocalEncoder", "LocalPlan", "sought_by_name", "step_draws"]

ENCODER, NORMS = "h_encoder.", "h_encoder.encoder_norms."


class LocalPlan(NamedTuple):
    """The geometry of one batch.

    points  [B, N, 3] float32
    levels  the groups of each level, finest first
    near    [B, 1, G, G] bool a level, which tokens attend to which; None: all to all
    """

    points: Tensor
    levels: list[Level]
    near: list[Tensor | None]


class LocalEncoder(nn.Module):
    """The parts of the pre-training encoder, under their names, run over all tokens with radius-limited attention.

    model   sizes and behaviour; its settings of masking and decoder are not used.
    config  neighbours, radii and their distance.
    norms   how many levels, from the finest, have a final layer norm of their own here.

    Raises ValueError listing what is wrong with the settings. Source: Point-M2AE (Zhang et al. 2022), 3.4.
    """

    def __init__(self, model: ModelConfig, config: ClassifierConfig | SegmentationConfig, *, norms: int):
        super().__init__()
        problems = list(_problems(model, config))
        if problems:
            raise ValueError("\n  ".join((f"{len(problems)} problems in the model's settings", *problems)))
        self.config = replace(model, neighbours=config.neighbours)
        self.radius = config.radius
        self.distance = config.distance
        parts = Encoder(self.config)
        self.token_embed = parts.token_embed
        self.encoder_pos_embeds = parts.encoder_pos_embeds
        self.encoder_blocks = parts.encoder_blocks
        self.encoder_norms = parts.encoder_norms[:norms]

    @torch.no_grad()
    @untraced
    def plan(self, points: Tensor) -> LocalPlan:
        """Group a batch at every level and find each token's neighbourhood.

        points  [B, N, 3] float32, N at least groups[0] and neighbours[0].

        Raises ValueError for another shape or fewer points, TypeError for another dtype.
        """
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(f"points have shape {tuple(points.shape)}; expected [B, N, 3]")
        groups, K = self.config.groups[0], self.config.neighbours[0]
        if points.shape[1] < max(groups, K):
            raise ValueError(
                f"clouds have {points.shape[1]} points; {groups} groups of {K} neighbours need at least "
                f"{max(groups, K)}. Use more points, or fewer groups or neighbours."
            )
        levels, _ = tokenise(points, self.config)
        near = [
            within_radius(level.centres, radius, distance=self.distance) if radius > 0 else None
            for level, radius in zip(levels, self.radius, strict=True)
        ]
        return LocalPlan(points, levels, near)

    def forward(self, plan: LocalPlan, drop_path: Tensor | None) -> list[Tensor]:
        """Encode every level's tokens.

        drop_path  [B, 2 * blocks] uniform numbers, or None for none.
        ->         [B, G, D] a level, normed where the level has a norm here.
        """
        encoded: list[Tensor] = []
        below = plan.points
        first = 0
        for i, (level, near) in enumerate(zip(plan.levels, plan.near, strict=True)):
            members = neighbourhoods(below, level) if i == 0 else gather(below, level.members)  # [B, G, K, D]
            x = self.token_embed[i](members.flatten(0, 1), None).unflatten(0, members.shape[:2])  # [B, G, D]
            last = first + 2 * self.config.encoder_depths[i]
            draws = None if drop_path is None else drop_path[:, first:last]
            x = self.encoder_blocks[i](x, self.encoder_pos_embeds[i](level.centres), near, draws)
            first = last
            encoded.append(self.encoder_norms[i](x) if i < len(self.encoder_norms) else x)
            below = encoded[-1] if self.config.merge_input == "normed" else x
        return encoded


def sought_by_name(model: nn.Module, entries: Collection[str]) -> Sought:
    """What a model on a LocalEncoder takes: its encoder, under the same names.

    Level norms alone, which a classifier has no use for, may be left over.
    """
    names = {name: name for name in model.state_dict() if name.startswith(ENCODER)}
    strange = [n for n in entries if n.startswith(ENCODER) and n not in names and not n.startswith(NORMS)]
    return Sought(names, (), strange)


def step_draws(model: nn.Module, draws: HeadDraws | None, batch: int, *, needed: bool) -> HeadDraws | None:
    """Return the draws that a forward pass of a fine-tuning model uses: none outside training mode.

    Raises ValueError where training needs draws and has none, or for a batch of one shape, whose statistics the batch
    norm over shapes cannot take (data-parallel training takes them over all ranks).
    """
    if not model.training:
        return None
    if batch < 2 and not _many_ranks():
        raise ValueError(
            f"a training batch has {batch} shape; expected at least 2, because the head normalises over the shapes of "
            "a batch. Use larger batches and drop the last incomplete one."
        )
    if draws is None and needed:
        raise ValueError("no draws in training mode; expected HeadDraws, or a model with drop path and dropout at 0")
    return draws


def _problems(model: ModelConfig, config: ClassifierConfig | SegmentationConfig) -> Iterator[str]:
    section = "classifier" if isinstance(config, ClassifierConfig) else "segmentation"
    yield from (f"model.{text}" for text in model.problems())
    yield from (f"{section}.{text}" for text in (*config.problems(), *config.conflicts(model)))


def _many_ranks() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
