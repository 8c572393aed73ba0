"""What a frozen encoder is worth: linear SVM on labelled shapes, beside baselines that say what the number means."""

__all__ = ["EvaluationError"]


class EvaluationError(Exception):
    """An evaluation cannot be carried out: labels are missing or disagree, too few shapes, features not finite."""
