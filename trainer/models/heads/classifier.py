"""The fine-tuning model for classification: the encoder, a pooled feature, a small head."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.config import ModelConfig
from trainer.models.heads.config import ClassifierConfig
from trainer.models.heads.fine_tuned import ShapeClassifier, Sought
from trainer.models.heads.local_encoder import LocalEncoder, LocalPlan, sought_by_name, step_draws
from trainer.models.heads.random_inputs import Dropout, HeadDraws
from trainer.models.layers.batch_norm import BatchNorm
from trainer.models.layers.initialisation import initialise
from trainer.models.layers.pooling import feature_width, pooled_feature

__all__ = ["Classifier", "accuracy", "classification_loss"]


class Classifier(ShapeClassifier):
    """Clouds to class scores. Parameter names are the reference's.

    model   sizes and behaviour of the encoder; its settings of masking and decoder are not used.
    config  surroundings, head and loss.

    Raises ValueError listing what is wrong with the settings. Source: Point-M2AE (Zhang et al. 2022), 4.2.
    """

    HEAD = ("cls_head_finetune.",)

    def __init__(self, model: ModelConfig, config: ClassifierConfig):
        super().__init__()
        self.model = model
        self.config = config
        # The reference has a new norm at the top and none below; those are here only where they are part of the way up.
        levels = config.pooling == "levels"
        norms = model.levels if levels else model.levels - 1 if model.merge_input == "normed" else 0
        self.h_encoder = LocalEncoder(model, config, norms=norms)
        self.norm = nn.Identity() if levels else nn.LayerNorm(model.encoder_dims[-1])
        layers: list[nn.Module] = []
        width = self.feature_width
        for site, hidden in enumerate(config.hidden):
            layers += [nn.Linear(width, hidden), BatchNorm(hidden), nn.ReLU(), Dropout(config.dropout, site=site)]
            width = hidden
        self.cls_head_finetune = nn.Sequential(*layers, nn.Linear(width, config.classes))
        self.initialise()

    @property
    def feature_width(self) -> int:
        """D, the width of `pooled`."""
        if self.config.pooling == "levels":
            return feature_width(self.model.encoder_dims, "levels")
        return self.model.encoder_dims[-1] * (2 if self.config.pooling == "concat" else 1)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Reinitialise all weights by model.initialisation's rule, from `generator` (None: torch's global one)."""
        initialise(self, self.model.initialisation, generator)

    def forward(self, points: Tensor, draws: HeadDraws | None = None) -> Tensor:
        """Compute the scores of every class.

        points  [B, N, 3] float32, N at least groups[0] and neighbours[0].
        draws   random numbers of a training step; may be None in evaluation mode, which uses none, or where drop path
                and dropout are 0.
        ->      [B, classes] logits.

        Raises ValueError for a shape, too few points, missing draws, or a training batch of one shape.
        """
        return self.network(self.plan(points), draws)

    def plan(self, points: Tensor) -> LocalPlan:
        return self.h_encoder.plan(points)

    def sought(self, entries: Collection[str]) -> Sought:
        return sought_by_name(self, entries)

    def network(self, plan: LocalPlan, draws: HeadDraws | None) -> Tensor:
        """Compute all that is learnt: logits [B, classes] from a plan of `h_encoder.plan`."""
        needed = self.model.drop_path > 0 or self.config.dropout > 0
        draws = step_draws(self, draws, plan.points.shape[0], needed=needed)
        x = self.pooled(plan, None if draws is None else draws.drop_path)
        for layer in self.cls_head_finetune:
            x = layer(x, None if draws is None else draws.dropout) if isinstance(layer, Dropout) else layer(x)
        return x

    def pooled(self, plan: LocalPlan, drop_path: Tensor | None = None) -> Tensor:
        """Pool a plan for the head, [B, D]: statistics of normed tokens, by `config.pooling`."""
        encoded = self.h_encoder(plan, drop_path)
        if self.config.pooling == "levels":
            return pooled_feature(encoded, [None] * len(encoded), "levels")
        tokens = self.norm(encoded[-1])  # [B, G, D]
        mean, largest = tokens.mean(1), tokens.max(1).values
        return torch.cat((mean, largest), dim=1) if self.config.pooling == "concat" else mean + largest


def classification_loss(logits: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Compute label-smoothed cross entropy, mean over shapes.

    logits  [B, C]; labels [B] int64.
    ->      [] float32.

    The target is 1 - smoothing on the label and smoothing / (C - 1) on each other class. torch's own smoothing spreads
    its share over all classes, the label included; ours equals it with a larger share.
    """
    classes = logits.shape[1]
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing * classes / (classes - 1))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of shapes whose largest logit is their label's, [] float32 in 0..1."""
    return (logits.argmax(1) == labels).float().mean()
