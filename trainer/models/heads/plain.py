"""The fine-tuning models on a plain encoder: a classifier and a part segmenter. Parameter names are the reference's."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda.untraced import untraced
from trainer.models.config import PlainConfig
from trainer.models.heads.config import PlainClassifierConfig, PlainSegmentationConfig
from trainer.models.heads.fine_tuned import PointSegmenter, ShapeClassifier, Sought
from trainer.models.heads.local_encoder import step_draws
from trainer.models.heads.part_segmenter import LABEL_SLOPE, CategoryEmbedding, PointPropagation
from trainer.models.heads.random_inputs import Dropout, HeadDraws
from trainer.models.hierarchical.decoder import interpolation_weights
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.initialisation import initialise
from trainer.models.layers.pooling import pooled_feature
from trainer.models.layers.transformer import Pointwise
from trainer.models.plain.encoder import FRONT, Encoded, Groups, PlainEncoder, form_groups

__all__ = ["PlainClassifier", "PlainPlan", "PlainSegmenter"]

STUDENT = "MAE_encoder."  # put before the encoder's names in pre-training
ENCODER = ("encoder.", "reduce_dim.", "pos_embed.", "blocks.")
IN_FRONT = tuple(f"{name}_{what}" for name in FRONT["three"] for what in ("token", "pos"))


class PlainPlan(NamedTuple):
    """The geometry of one batch.

    groups        of the cloud
    interpolated  [B, N, G] float32 weights of the groups at each point; None for a classifier
    """

    groups: Groups
    interpolated: Tensor | None


class PlainClassifier(PlainEncoder, ShapeClassifier):
    """Clouds to class scores.

    model   sizes and behaviour of the encoder; its settings of the decoder are not used.
    config  groups, pooling and head.

    Raises ValueError listing what is wrong with the settings. Source: Point-MAE (Pang et al. 2022), 4.2.
    """

    HEAD = ("cls_head_finetune.", "cls_token", "cls_pos")  # what the field trains on a frozen encoder

    def __init__(self, model: PlainConfig, config: PlainClassifierConfig):
        _refuse(model, "classifier", config)
        joined = config.pooling == "joined"
        super().__init__(model, front="class" if joined and model.front == "none" else model.front)
        self.model, self.config = model, config
        width = self.feature_width
        layers: list[nn.Module] = []
        for site, hidden in enumerate(config.hidden):
            norm = [BatchNorm(hidden)] if config.batch_norm else []
            layers += [nn.Linear(width, hidden), *norm, nn.ReLU(), Dropout(config.dropout, site=site)]
            width = hidden
        self.cls_head_finetune = nn.Sequential(*layers, nn.Linear(width, config.classes))
        self.initialise()

    @property
    def feature_width(self) -> int:
        """D, the width of `pooled`."""
        vectors = {"joined": 1 + len(self.front), "mean": 2, "levels": 3}
        return self.model.width * vectors[self.config.pooling]

    def initialise(self, generator: torch.Generator | None = None) -> None:
        initialise(self, self.model.initialisation, generator, encoder=ENCODER, decoder=())

    def forward(self, points: Tensor, draws: HeadDraws | None = None) -> Tensor:
        """Compute the scores of every class.

        points  [B, N, 3] float32, N at least config.least_points(model).
        draws   random numbers of a training step; may be None in evaluation mode, which uses none, or where drop path
                and dropout are 0.
        ->      [B, classes] logits.

        Raises ValueError for a shape, too few points, missing draws, or a training batch of one shape.
        """
        return self.network(self.plan(points), draws)

    @torch.no_grad()
    @untraced
    def plan(self, points: Tensor) -> PlainPlan:
        return PlainPlan(_groups(points, self.model, self.config), None)

    def sought(self, entries: Collection[str]) -> Sought:
        return _sought(self, entries)

    def network(self, plan: PlainPlan, draws: HeadDraws | None) -> Tensor:
        """Compute all that is learnt: logits [B, classes] from a plan."""
        needed = self.model.drop_path > 0 or self.config.dropout > 0
        draws = step_draws(self, draws, plan.groups.centres.shape[0], needed=needed)
        x = self.pooled(plan, None if draws is None else draws.drop_path)
        for layer in self.cls_head_finetune:
            x = layer(x, None if draws is None else draws.dropout) if isinstance(layer, Dropout) else layer(x)
        return x

    def encoded(self, plan: PlainPlan, drop_path: Tensor | None = None) -> Encoded:
        """Encode all tokens of a plan; drop_path [B, 2 * depth] uniform numbers or None."""
        tokens = self.widened(self.embed(plan.groups.neighbourhood))
        return self.transform(tokens, plan.groups.centres, drop_path)

    def pooled(self, plan: PlainPlan, drop_path: Tensor | None = None) -> Tensor:
        """Pool a plan for the head, [B, D]."""
        encoded = self.encoded(plan, drop_path)
        if self.config.pooling == "levels":
            return pooled_feature([encoded.tokens], [None], "levels")
        largest = encoded.tokens.max(1).values
        if self.config.pooling == "joined":
            return torch.cat((encoded.front.flatten(1), largest), dim=1)
        return torch.cat((encoded.tokens.mean(1), largest), dim=1)


class PlainSegmenter(PlainEncoder, PointSegmenter):
    """Clouds and their categories to per-point part scores.

    model   sizes and behaviour of the encoder; its settings of the decoder are not used. A class token is left out, as
            in the reference, and the three of two streams stay.
    config  groups, taps and head.

    Raises ValueError listing what is wrong with the settings. Source: Point-MAE (Pang et al. 2022), 4.2, and its code.
    """

    HEAD = ("label_conv.", "propagation_0.", "convs", "bns", "drop.")

    def __init__(self, model: PlainConfig, config: PlainSegmentationConfig):
        _refuse(model, "segmentation", config)
        super().__init__(model, front="three" if model.front == "three" else "none")
        self.model, self.config = model, config
        seen = len(config.taps) * model.width
        shape = 2 * seen + (model.width if self.front else 0) + config.embedding
        first, second = config.hidden
        self.label_conv = nn.Sequential(
            CategoryEmbedding(config.categories, config.embedding),
            BatchNorm(config.embedding),
            nn.LeakyReLU(LABEL_SLOPE),
        )
        self.propagation_0 = PointPropagation(seen, config.propagation)
        self.convs1 = Pointwise(config.propagation[1] + shape, first)
        self.convs2 = Pointwise(first, second)
        self.convs3 = Pointwise(second, config.parts)
        self.bns1 = BatchNorm(first)
        self.bns2 = BatchNorm(second)
        self.drop = Dropout(config.dropout, site=0)
        self.initialise()

    def initialise(self, generator: torch.Generator | None = None) -> None:
        initialise(self, self.model.initialisation, generator, encoder=ENCODER, decoder=())
        self.label_conv[0].initialise(generator)  # type: ignore[operator]

    def forward(self, points: Tensor, category: Tensor, draws: HeadDraws | None = None) -> Tensor:
        """Compute the log-probability of every part at every point.

        points    [B, N, 3] float32, N at least config.least_points(model).
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
        return self.network(self.plan(points), points, category, draws)

    @torch.no_grad()
    @untraced
    def plan(self, points: Tensor) -> PlainPlan:
        groups = _groups(points, self.model, self.config)
        expanded = self.config.interpolation == "expanded"
        return PlainPlan(groups, interpolation_weights(points, groups.centres, expanded=expanded))

    def sought(self, entries: Collection[str]) -> Sought:
        return _sought(self, entries)

    def encoded(self, plan: PlainPlan, drop_path: Tensor | None = None) -> Encoded:
        """Encode all tokens of a plan; drop_path [B, 2 * depth] uniform numbers or None."""
        tokens = self.widened(self.embed(plan.groups.neighbourhood))
        return self.transform(tokens, plan.groups.centres, drop_path)

    def propagated(self, plan: PlainPlan, points: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """The tapped tokens, normed and side by side, [B, G, D]; and at the points, [B, N, propagation[1]]."""
        front = len(self.front)
        tapped = torch.cat([self.norm(encoded.blocks[tap][:, front:]) for tap in self.config.taps], dim=2)
        assert plan.interpolated is not None
        return tapped, self.propagation_0(points, tapped, plan.interpolated)

    def network(self, plan: PlainPlan, points: Tensor, category: Tensor, draws: HeadDraws | None) -> Tensor:
        """Compute all that is learnt: log-probabilities [B, N, parts] from a plan of `points`."""
        needed = self.model.drop_path > 0 or self.config.dropout > 0
        draws = step_draws(self, draws, points.shape[0], needed=needed)
        encoded = self.encoded(plan, None if draws is None else draws.drop_path)
        tapped, at_points = self.propagated(plan, points, encoded)
        front = len(self.front)
        ahead = [encoded.blocks[-1][:, :front].max(1).values] if front else []
        label = self.label_conv(category).to(tapped.dtype)
        shape = torch.cat((tapped.max(1).values, tapped.mean(1), *ahead, label), dim=1)
        # The layer sees [point; shape]. Its matrix is split: what a shape's points share goes through once.
        of_point, of_shape = self.convs1.weight[:, :, 0].split([at_points.shape[2], shape.shape[1]], dim=1)
        x = F.linear(at_points, of_point) + F.linear(shape, of_shape, self.convs1.bias)[:, None]
        x = self.drop(F.relu(self.bns1(x)), None if draws is None else draws.dropout)
        x = F.relu(self.bns2(self.convs2(x)))
        return F.log_softmax(self.convs3(x).float(), dim=2)


def _groups(points: Tensor, model: PlainConfig, config: PlainClassifierConfig | PlainSegmentationConfig) -> Groups:
    return form_groups(
        points,
        config.groups or model.groups,
        config.neighbours or model.neighbours,
        skip_near_origin=model.fps_skip_near_origin,
    )


def _sought(model: PlainClassifier | PlainSegmenter, entries: Collection[str]) -> Sought:
    """Take the encoder from a student, whose names have a prefix, or from a fine-tuned model, whose names have none.

    Tokens in front stay new where the checkpoint has none, and are left over where the model has none; the settings of
    [model] say so beforehand.
    """
    prefix = STUDENT if any(name.startswith(STUDENT) for name in entries) else ""
    names = {
        name: prefix + name
        for name in model.state_dict()
        if name.startswith((*ENCODER, "norm.", *IN_FRONT)) and not name.startswith("cls_head")
    }
    wanted = set(names.values())
    strange = [
        name
        for name in entries
        if name.startswith(tuple(prefix + part for part in (*ENCODER, "norm."))) and name not in wanted
    ]
    new = not any(name.startswith(tuple(prefix + part for part in IN_FRONT)) for name in entries)
    return Sought(names, [name for name in names if name.startswith(IN_FRONT)] if new else (), strange)


def _refuse(model: PlainConfig, section: str, config: PlainClassifierConfig | PlainSegmentationConfig) -> None:
    problems = list(_problems(model, section, config))
    if problems:
        raise ValueError("\n  ".join((f"{len(problems)} problems in the model's settings", *problems)))


def _problems(
    model: PlainConfig, section: str, config: PlainClassifierConfig | PlainSegmentationConfig
) -> Iterator[str]:
    yield from (f"model.{text}" for text in model.problems())
    yield from (f"{section}.{text}" for text in (*config.problems(), *config.conflicts(model)))
