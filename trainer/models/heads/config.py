"""The settings of the two fine-tuning models. The encoder's own sizes come from [model], as in pre-training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from pipeline.settings import faults
from trainer.models.config import MAX_NEIGHBOURS, ModelConfig, Neighbours, PlainConfig, Share, Size

__all__ = [
    "CLASSIFIERS",
    "MODELNET40",
    "PB_T50_RS",
    "SCANOBJECTNN",
    "SEGMENTATIONS",
    "ClassifierConfig",
    "PlainClassifierConfig",
    "PlainSegmentationConfig",
    "SegmentationConfig",
]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """[classifier]: fine-tuning for classification. The defaults are ModelNet40's.

    classes          number of classes
    neighbours       members of a token's group at each level, 1..64; instead of model.neighbours
    radius           at each level, a token attends to tokens nearer than this, in the cloud's units; 0: to all
    distance         how those distances are taken: "direct", or "expanded" (reference) as torch.cdist does by itself:
                     above 25 tokens through |a|^2 + |b|^2 - 2ab, so that a pair at the radius may fall on either side
    pooling          what the head sees of the tokens: of the top level's the "sum" of mean and maximum (ModelNet40), or
                     "concat", the two side by side (ScanObjectNN); or "levels", the feature of that name: maximum, mean
                     and standard deviation of every level, behind the encoder's own norms
    hidden           widths of the head's hidden layers, each with batch norm and ReLU; none: one linear layer
    dropout          chance that a training step zeroes a value of a hidden layer, 0..1 (1 excluded)
    label_smoothing  share of the target spread evenly over the other classes, 0..(classes - 1) / classes; 0: plain
                     cross entropy
    """

    classes: Annotated[int, Ge(2)] = 40
    neighbours: Neighbours = (48, 24, 24)
    radius: tuple[Annotated[float, Ge(0)], ...] = (0.24, 0.48, 0.96)
    distance: Literal["direct", "expanded"] = "direct"
    pooling: Literal["sum", "concat", "levels"] = "sum"
    hidden: tuple[Size, ...] = (256, 256)
    dropout: Share = 0.5
    label_smoothing: Annotated[float, Ge(0)] = 0.2

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        largest = max(self.classes - 1, 0) / max(self.classes, 1)
        if self.label_smoothing > largest:
            yield f"label_smoothing = {self.label_smoothing} is more than {largest:.4g}, (classes - 1) / classes"

    def conflicts(self, model: ModelConfig) -> Iterator[str]:
        """Yield the conflicts with these settings of [model]; names relative to this section."""
        yield from _level_conflicts(self, model)

    def least_points(self, model: ModelConfig) -> int:
        """Points that a cloud must have: one for each of the finest groups, and a group's members."""
        return max(*model.groups[:1], *self.neighbours[:1])


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """[segmentation]: fine-tuning for part segmentation. The defaults are ShapeNetPart's.

    parts        number of part labels, over all categories
    categories   number of object categories; a shape's is given to the model
    neighbours   members of a token's group at each level, 1..64; instead of model.neighbours
    radius       at each level, a token attends to tokens nearer than this, in the cloud's units; 0: to all
    distance     how those distances are taken: "direct", or "expanded" (reference), as in [classifier]. How tokens are
                 interpolated to the points is model.interpolation.
    embedding    width of a category's embedding
    propagation  widths of the two layers that follow the interpolation of a level's tokens to the points
    hidden       widths of the three hidden layers of the per-point head
    dropout      chance that a training step zeroes a value of the first hidden layer, 0..1 (1 excluded)
    """

    parts: Annotated[int, Ge(2)] = 50
    categories: Size = 16
    neighbours: Neighbours = (16, 8, 8)
    radius: tuple[Annotated[float, Ge(0)], ...] = (0.32, 0.64, 1.28)
    distance: Literal["direct", "expanded"] = "direct"
    embedding: Size = 64
    propagation: tuple[Size, Size] = (1536, 1024)
    hidden: tuple[Size, Size, Size] = (1024, 512, 256)
    dropout: Share = 0.5

    def problems(self) -> Iterator[str]:
        yield from faults(self)

    def conflicts(self, model: ModelConfig) -> Iterator[str]:
        """Yield the conflicts with these settings of [model]; names relative to this section."""
        yield from _level_conflicts(self, model)
        if model.groups and model.groups[-1] < 3:
            yield f"model.groups[-1] = {model.groups[-1]} is less than the 3 tokens a point is interpolated from"

    def least_points(self, model: ModelConfig) -> int:
        """Points that a cloud must have: one for each of the finest groups, and a group's members."""
        return max(*model.groups[:1], *self.neighbours[:1])


@dataclass(frozen=True, kw_only=True)
class PlainClassifierConfig:
    """[classifier] on a plain encoder. The defaults are Point-MAE's for ModelNet40.

    classes          number of classes
    groups           tokens of a cloud, which may be others than in pre-training; 0: model.groups
    neighbours       points of a token's group, 1..64; 0: model.neighbours
    pooling          what the head sees: "joined": each token in front, then the maximum over the cloud's (a class token
                     is new where the encoder has none); "mean": mean and maximum over the cloud's, no new token;
                     "levels": maximum, mean and standard deviation over the cloud's, no new token
    hidden           widths of the head's hidden layers, each with ReLU; none: one linear layer
    batch_norm       before each ReLU (Point-BERT's head has none)
    dropout          chance that a training step zeroes a value of a hidden layer, 0..1 (1 excluded)
    label_smoothing  share of the target spread evenly over the other classes, 0..(classes - 1) / classes; 0: plain
                     cross entropy
    """

    classes: Annotated[int, Ge(2)] = 40
    groups: Annotated[int, Ge(0)] = 0
    neighbours: Annotated[int, Ge(0), Le(MAX_NEIGHBOURS)] = 0
    pooling: Literal["joined", "mean", "levels"] = "joined"
    hidden: tuple[Size, ...] = (256, 256)
    batch_norm: bool = True
    dropout: Share = 0.5
    label_smoothing: Annotated[float, Ge(0)] = 0.0

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        largest = max(self.classes - 1, 0) / max(self.classes, 1)
        if self.label_smoothing > largest:
            yield f"label_smoothing = {self.label_smoothing} is more than {largest:.4g}, (classes - 1) / classes"

    def conflicts(self, model: PlainConfig) -> Iterator[str]:
        """Yield the conflicts with these settings of [model]: none, whatever they are."""
        yield from ()

    def least_points(self, model: PlainConfig) -> int:
        """Points that a cloud must have: one for each group, and a group's members."""
        return max(self.groups or model.groups, self.neighbours or model.neighbours)


@dataclass(frozen=True, kw_only=True)
class PlainSegmentationConfig:
    """[segmentation] on a plain encoder. The defaults are Point-MAE's for ShapeNetPart.

    parts          number of part labels, over all categories
    categories     number of object categories; a shape's is given to the model
    groups         tokens of a cloud; 0: model.groups
    neighbours     points of a token's group, 1..64; 0: model.neighbours
    taps           blocks, from 0 on, whose outputs the head sees, ascending
    interpolation  of tokens to points: squared distances "direct", or "expanded" (reference) as |a|^2 + |b|^2 - 2ab
    embedding      width of a category's embedding
    propagation    widths of the two layers that follow the interpolation of tokens to the points
    hidden         widths of the two hidden layers of the per-point head
    dropout        chance that a training step zeroes a value of the first hidden layer, 0..1 (1 excluded)
    """

    parts: Annotated[int, Ge(2)] = 50
    categories: Size = 16
    groups: Annotated[int, Ge(0)] = 128
    neighbours: Annotated[int, Ge(0), Le(MAX_NEIGHBOURS)] = 32
    taps: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (3, 7, 11)
    interpolation: Literal["direct", "expanded"] = "direct"
    embedding: Size = 64
    propagation: tuple[Size, Size] = (1536, 1024)
    hidden: tuple[Size, Size] = (512, 256)
    dropout: Share = 0.5

    def problems(self) -> Iterator[str]:
        yield from faults(self)
        if list(self.taps) != sorted(set(self.taps)):
            yield f"taps = {self.taps} do not ascend"

    def conflicts(self, model: PlainConfig) -> Iterator[str]:
        """Yield the conflicts with these settings of [model]; names relative to this section."""
        if any(tap >= model.depth for tap in self.taps):
            yield f"taps = {self.taps} are not all of the blocks 0..{model.depth - 1} that model.depth has"
        groups = self.groups or model.groups
        if model.streams == "two" and model.front == "class":
            yield 'model.streams = "two" with model.front = "class", which a segmenter leaves out: no token is left'
        if groups < 3:
            yield f"groups = {groups} is fewer than the 3 tokens a point is interpolated from"

    def least_points(self, model: PlainConfig) -> int:
        """Points that a cloud must have: one for each group, and a group's members."""
        return max(self.groups or model.groups, self.neighbours or model.neighbours)


MODELNET40 = ClassifierConfig()
SCANOBJECTNN = ClassifierConfig(
    classes=15, neighbours=(32, 16, 16), radius=(0.32, 0.64, 1.28), pooling="concat", label_smoothing=0.0
)
"""OBJ-BG and OBJ-ONLY."""
PB_T50_RS = ClassifierConfig(
    classes=15, neighbours=(32, 16, 16), radius=(0.48, 0.96, 1.92), pooling="concat", label_smoothing=0.0
)
"""ScanObjectNN's hardest variant."""


CLASSIFIERS: dict[str, type] = {"hierarchical": ClassifierConfig, "plain": PlainClassifierConfig}
"""model.architecture -> the class of [classifier]; the model's own is in trainer.models.heads.build."""

SEGMENTATIONS: dict[str, type] = {"hierarchical": SegmentationConfig, "plain": PlainSegmentationConfig}
"""The same of [segmentation]."""


def _level_conflicts(config: ClassifierConfig | SegmentationConfig, model: ModelConfig) -> Iterator[str]:
    for name in ("neighbours", "radius"):
        if len(getattr(config, name)) != model.levels:
            yield (
                f"{name} = {getattr(config, name)} must have one value per level; "
                f"model.groups = {model.groups} has {len(model.groups)}"
            )
    for level, k in enumerate(config.neighbours[1 : model.levels], start=1):
        if k > model.groups[level - 1]:
            yield f"neighbours[{level}] = {k} is more than model.groups[{level - 1}] = {model.groups[level - 1]}"
