"""An experiment: one frozen dataclass a section, and the faults that only show when sections are seen together."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig, conflicts
from teacher_cache.config import CacheConfig
from trainer.config import AlignmentConfig, EvaluationConfig, TrainerConfig, absurd, alignment_conflicts
from trainer.models.config import MaskingConfig, ModelConfig

__all__ = ["SECTIONS", "Experiment"]

SECTIONS: dict[str, type] = {
    "corpus": CorpusConfig,
    "projection": ProjectionConfig,
    "teacher": TeacherConfig,
    "cache": CacheConfig,
    "build": BuildConfig,
    "model": ModelConfig,
    "masking": MaskingConfig,
    "alignment": AlignmentConfig,
    "trainer": TrainerConfig,
    "evaluation": EvaluationConfig,
}
_LOOK_THEMSELVES = ("alignment", "trainer", "evaluation")  # for absurd numbers


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything one run is made from.

    name  of the preset or file it was read from; names the run's folder.
    """

    name: str
    corpus: CorpusConfig
    projection: ProjectionConfig
    teacher: TeacherConfig
    cache: CacheConfig
    build: BuildConfig
    model: ModelConfig
    masking: MaskingConfig
    alignment: AlignmentConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig

    def problems(self) -> Iterator[str]:
        """Every fault, with the full name of the setting."""
        for section in SECTIONS:
            settings = getattr(self, section)
            for problem in (*(() if section in _LOOK_THEMSELVES else absurd(settings)), *settings.problems()):
                yield f"{section}.{problem}"
        yield from conflicts(self.corpus, self.projection)
        yield from alignment_conflicts(self.alignment, self.trainer)
        stored, seen = self.corpus.points, self.trainer.points or self.corpus.points
        if seen > stored:
            yield f"trainer.points = {seen} is more than the corpus.points = {stored} that are stored"
        if self.model.groups and self.model.groups[0] > seen:
            yield f"model.groups[0] = {self.model.groups[0]} is more than the trainer.points = {seen} the student sees"
        if self.evaluation.enabled and self.model.groups and self.model.groups[0] > self.evaluation.points:
            yield (
                f"model.groups[0] = {self.model.groups[0]} is more than evaluation.points = {self.evaluation.points}; "
                "an encoder cannot form more groups than a cloud has points"
            )
