"""Errors of training and evaluation."""

__all__ = ["EvaluationError", "TrainingError"]


class EvaluationError(Exception):
    """An evaluation cannot be carried out: labels are missing or disagree, too few shapes, features not finite."""


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, the directory is in use, or the device is not there."""
