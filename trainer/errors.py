"""Errors of training and evaluation, one class for each case that a caller would handle differently.

Faults of a cache raise `teacher_cache.errors`, faults of a corpus to evaluate on `pipeline.errors`.
"""

__all__ = ["CheckpointDamaged", "CheckpointError", "DataError", "EvaluationError", "TrainerError", "TrainingError"]


class TrainerError(Exception):
    """Base of every error of this package."""


class TrainingError(TrainerError):
    """Training cannot continue: the loss is not finite, the directory is in use, or the device does not exist."""


class DataError(TrainerError):
    """The cache cannot feed this run: too few records for a batch, too few points in a record, nothing but damage."""


class EvaluationError(TrainerError):
    """An evaluation cannot be carried out: labels are missing or disagree, too few shapes, features not finite."""


class CheckpointError(TrainerError):
    """A checkpoint is missing, damaged, of another kind, or does not fit the run that wants to resume from it."""


class CheckpointDamaged(CheckpointError):
    """A file of a checkpoint is missing, cut short or changed."""
