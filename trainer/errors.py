"""What stops a run, other than a cache or a checkpoint that does not fit."""

__all__ = ["TrainingError"]


class TrainingError(Exception):
    """Training cannot go on: the loss is not finite, the directory is in use, or the device is not there."""
