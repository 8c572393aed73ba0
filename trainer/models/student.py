"""What a student is: the methods by which it is fed, trained, evaluated, checkpointed and resumed.

Loader, step, loop, checkpoints and evaluation know students by this class alone. An architecture is a folder beside
`hierarchical/` with a subclass, its settings (a StudentConfig), and a line in `trainer.models.config.ARCHITECTURES` and
in `trainer.models.build.STUDENTS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cuda.token_maps import TokenMaps
from trainer.losses.terms import Losses
from trainer.models.config import MaskingConfig, StudentConfig
from trainer.models.layers.pooling import Feature
from trainer.models.random_inputs import Draws

__all__ = [
    "Further",
    "HiddenGroups",
    "PointFeatures",
    "Predicted",
    "Said",
    "Shown",
    "Student",
    "TokenLevel",
]


class Further(NamedTuple):
    """A teacher beside the first, and what the student predicts of it.

    channels, views  C and V of its maps
    features         predict its patch features, if the student's settings have such a target at all
    whole            have a head for its global loss
    """

    channels: int
    views: int
    features: bool
    whole: bool


class Said(NamedTuple):
    """What a network says of a further teacher.

    features  [M, K * V * C], as the student's own for the first one; None where they are no target
    whole     [B, V * C] the answer of its global loss, not scaled; None without its head
    """

    features: Tensor | None
    whole: Tensor | None


class Predicted(Protocol):
    """What a network says about a plan, as far as others look at it.

    whole  [B, V * C] the answer of the global loss for each sample, not scaled; None without its head

    Of a student with further teachers it also has `further`, a sequence of Said.
    """

    @property
    def whole(self) -> Tensor | None: ...


class TokenLevel(NamedTuple):
    """Tokens of one level, in the student's frame: centres [B, G, 3] float32, visible [B, G] bool."""

    centres: Tensor
    visible: Tensor


class HiddenGroups(NamedTuple):
    """Hidden neighbourhoods and what is predicted for them, in the student's frame.

    sample             [H] int64, the cloud of the batch that each is of
    truth, predicted   [H, K, 3] float32; points of the two do not correspond
    """

    sample: Tensor
    truth: Tensor
    predicted: Tensor


class PointFeatures(NamedTuple):
    """The teacher's features at points and what is predicted for them.

    sample            [M] int64, the cloud of the batch that each is of
    points            [M, 3] float32, the student's frame; a point may come more than once
    truth, predicted  [M, V, C] float32
    """

    sample: Tensor
    points: Tensor
    truth: Tensor
    predicted: Tensor


class Shown(NamedTuple):
    """What a student lets people see of a plan and its prediction; None where there is nothing to see.

    levels    finest first
    groups    hidden neighbourhoods beside their reconstruction
    features  the teacher's beside the student's
    reasons   for each of these three that is None, by its name: why
    """

    levels: list[TokenLevel] | None
    groups: HiddenGroups | None
    features: PointFeatures | None
    reasons: Mapping[str, str]


class Student(nn.Module, ABC):
    """A pre-training model. Made by its class from settings, as `trainer.models.build.new_student` does.

    config            the section [model]; least_points and random_numbers are its
    masking           which tokens are hidden
    teacher_channels  C, the width of the teacher's features
    views             V
    whole             with the head of the global loss (trainer.losses.alignment)

    A student with `several_teachers` also takes `further`, a sequence of Further, and its `plan` their maps by that
    name: a TokenMaps each, or None where only the whole is a target.

    A student with `several_masks` takes draws of B * M samples for B clouds: M masks of each, those of one cloud one
    after the other. Its losses are then sums over all samples, and its `whole` is of each of them. Other students get
    as many draws as clouds.

    A forward pass has two parts. `plan` is geometry and targets, without gradient, and the only place where the host
    may have to wait for the device. `network` is all that is learnt. Plans are the student's own and opaque to others.
    """

    several_teachers: ClassVar[bool] = False
    several_masks: ClassVar[bool] = False
    config: StudentConfig
    masking: MaskingConfig
    teacher_channels: int
    views: int

    @abstractmethod
    def __init__(
        self, model: Any, masking: MaskingConfig, *, teacher_channels: int, views: int = 3, whole: bool = False
    ):
        super().__init__()

    @property
    @abstractmethod
    def features(self) -> Mapping[Feature, int]:
        """The evaluation features that `encode` knows, with the number of values of each."""

    def feature_columns(self, feature: Feature, within: Feature) -> slice | None:
        """Return the columns of `encode(points, within)` that are `encode(points, feature)`; None where none are."""
        return slice(None) if feature == within else None

    @abstractmethod
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Reinitialise all weights from `generator` (None: torch's global one); the same for the same generator."""

    @abstractmethod
    def plan(self, points: Tensor, points_canonical: Tensor, maps: TokenMaps | None, draws: Draws | None) -> Any:
        """Everything about a batch that is not learnt.

        points            [B, N, 3] float32, the cloud as the student sees it, N at least config.least_points.
        points_canonical  [B, N, 3] float32, the same points in the frame the maps were made in.
        maps              what the teacher says; may be None where the settings need none.
        draws             as many random numbers a sample as config.random_numbers says.
        """

    @abstractmethod
    def network(self, plan: Any, drop_path: Tensor | None) -> Predicted:
        """Encode and predict. drop_path [B, R] of the draws; ignored outside training mode."""

    @abstractmethod
    def losses(self, plan: Any, prediction: Any) -> Losses:
        """Compare a prediction with the plan's targets: the sums by name, over loss_counts."""

    @abstractmethod
    def loss_counts(self, plan: Any) -> dict[str, Tensor]:
        """Count what the losses of a plan will be sums over, [] float32 each, before anything is computed.

        The same names for every plan; a loss that is off counts 0. One name means one thing in all students
        (`trainer.losses.terms`).
        """

    @abstractmethod
    def encode(self, points: Tensor, feature: Feature = "levels") -> Tensor:
        """One vector a cloud, with nothing masked: [B, N, 3] float32 -> [B, features[feature]] float32.

        Row i depends on cloud i alone in evaluation mode. Raises ValueError for a feature it does not know.
        """

    def show(self, plan: Any, prediction: Any) -> Shown:
        """Return what reports and notebooks show of a prediction, without gradient. A student without own tokens and
        targets of these kinds leaves it at this answer."""
        name = self.config.architecture
        reasons = {
            "levels": f"the {name} student does not say which parts it saw",
            "groups": f"the {name} student does not say what it reconstructs",
            "features": f"the {name} student does not say which features it predicts",
        }
        return Shown(None, None, None, reasons)
