"""What a fine-tuning model is to the loop, transfers, votes and features, whichever student it is built on."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from trainer.models.config import StudentConfig
from trainer.models.heads.random_inputs import HeadDraws

__all__ = ["FineTuned", "HeadConfig", "PointSegmenter", "ShapeClassifier", "Sought"]


class HeadConfig(Protocol):
    """The settings of a fine-tuning model, a section of its own for every architecture of encoder."""

    def problems(self) -> Iterable[str]:
        """Every fault of the section, with names relative to it."""

    def conflicts(self, model: Any) -> Iterable[str]:
        """Every conflict with these settings of [model]; names relative to this section."""

    def least_points(self, model: Any) -> int:
        """Points that a cloud must have for an encoder of these settings."""


class Sought(NamedTuple):
    """What a fine-tuning model takes from a checkpoint.

    names     name of each of its encoder's weights -> the checkpoint's name for it
    optional  of the former, those that stay new where the checkpoint does not have them
    strange   names of the checkpoint's encoder that the model cannot use, and must not do without
    """

    names: Mapping[str, str]
    optional: Collection[str]
    strange: Collection[str]


class FineTuned(nn.Module, ABC):
    """A model with an encoder and a head, to be trained on labels.

    model   [model], the encoder's settings;  config  the head's section
    HEAD    how the names of the weights begin that are trained where the encoder is frozen
    """

    HEAD: ClassVar[tuple[str, ...]]
    model: Any
    config: Any

    @abstractmethod
    def initialise(self, generator: Any = None) -> None:
        """Draw all weights anew by model.initialisation's rule, from `generator` (None: torch's global one)."""

    @abstractmethod
    def plan(self, points: Tensor) -> Any:
        """Geometry of clouds [B, N, 3] float32, without gradient; the model's own."""

    @abstractmethod
    def sought(self, entries: Collection[str]) -> Sought:
        """What to take from a checkpoint with these names, of a pre-training or a fine-tuning model."""

    @property
    def settings_of_encoder(self) -> StudentConfig:
        """[model], by its general class."""
        found: StudentConfig = self.model
        return found

    def in_head(self, name: str) -> bool:
        """Tell whether a weight is trained where the encoder is frozen."""
        return name.startswith(self.HEAD)

    def hold_still(self) -> None:
        """Put all but the head in evaluation mode: no batch statistics, no paths dropped."""
        for name, part in self.named_children():
            if not self.in_head(f"{name}."):
                part.eval()


class ShapeClassifier(FineTuned):
    """Clouds to class scores; `config.classes`, `config.hidden`, `config.label_smoothing`."""

    @abstractmethod
    def forward(self, points: Tensor, draws: HeadDraws | None = None) -> Tensor:
        """Compute the scores of every class: points [B, N, 3] float32 -> [B, classes].

        draws  random numbers of a training step; may be None in evaluation mode, which uses none.
        """

    @abstractmethod
    def pooled(self, plan: Any, drop_path: Tensor | None = None) -> Tensor:
        """The vector that the head sees, [B, D]."""


class PointSegmenter(FineTuned):
    """Clouds and their categories to part scores of points; `config.parts`, `config.categories`."""

    @abstractmethod
    def forward(self, points: Tensor, category: Tensor, draws: HeadDraws | None = None) -> Tensor:
        """Compute log-probabilities: points [B, N, 3] float32, category [B] int64 -> [B, N, parts] float32.

        draws  as of ShapeClassifier.
        """
