"""An experiment: one frozen dataclass per section, and checks across sections."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig, conflicts
from teacher_cache.config import CacheConfig
from trainer.config import (
    AlignmentConfig,
    EvaluationConfig,
    TeachersConfig,
    TrainerConfig,
    absurd,
    alignment_conflicts,
)
from trainer.models.config import MaskingConfig, ModelConfig, StudentConfig, settings_class

__all__ = ["SECTIONS", "Experiment", "section_class"]

SECTIONS: dict[str, type] = {
    "corpus": CorpusConfig,
    "projection": ProjectionConfig,
    "teacher": TeacherConfig,
    "cache": CacheConfig,
    "build": BuildConfig,
    "model": ModelConfig,
    "masking": MaskingConfig,
    "alignment": AlignmentConfig,
    "teachers": TeachersConfig,
    "trainer": TrainerConfig,
    "evaluation": EvaluationConfig,
}
_LOOK_THEMSELVES = ("alignment", "trainer", "evaluation")  # for absurd numbers


def section_class(name: str, table: Mapping[str, Any]) -> type:
    """The dataclass of a section; of [model], the one of the architecture that it names.

    Raises ValueError for an unknown architecture.
    """
    return settings_class(table) if name == "model" else SECTIONS[name]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings of one run.

    name  of the preset or file it was read from; names the run's folder.
    """

    name: str
    corpus: CorpusConfig
    projection: ProjectionConfig
    teacher: TeacherConfig
    cache: CacheConfig
    build: BuildConfig
    model: StudentConfig
    masking: MaskingConfig
    alignment: AlignmentConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    teachers: TeachersConfig = field(default_factory=TeachersConfig)

    @property
    def hierarchical(self) -> ModelConfig:
        """The section [model], for what exists for the hierarchical student alone; TypeError where it is another's."""
        if not isinstance(self.model, ModelConfig):
            raise TypeError(f"model.architecture is {self.model.architecture!r}; expected 'hierarchical'")
        return self.model

    def problems(self) -> Iterator[str]:
        """Yield every fault, with the full name of the setting."""
        for section in SECTIONS:
            settings = getattr(self, section)
            for problem in (*(() if section in _LOOK_THEMSELVES else absurd(settings)), *settings.problems()):
                yield f"{section}.{problem}"
        yield from conflicts(self.corpus, self.projection)
        yield from alignment_conflicts(self.alignment, self.trainer)
        stored, seen = self.corpus.points, self.trainer.points or self.corpus.points
        if seen > stored:
            yield f"trainer.points = {seen} is more than the stored corpus.points = {stored}"
        least, reason = self.model.least_points, self.model.least_points_reason
        if least > seen:
            yield f"{reason} needs at least {least} points, more than the trainer.points = {seen} the student sees"
        if self.evaluation.enabled and least > self.evaluation.points:
            yield f"{reason} needs at least {least} points, more than evaluation.points = {self.evaluation.points}"
