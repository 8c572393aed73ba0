"""What stops a run or an evaluation, other than a cache or a checkpoint that does not fit."""

__all__ = ["EvaluationError", "TrainingError"]


class EvaluationError(Exception):
    """An evaluation cannot be carried out: labels are missing or disagree, too few shapes, features not finite."""


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, the directory is in use, or the device is not there."""
