"""What can go wrong in the offline stage, one class for each thing a caller would handle differently.

A shape that cannot be used is not here: it is data, raised as `corpora.ShapeError` and quarantined.
"""

__all__ = ["BuildError", "PipelineError", "TeacherError"]


class PipelineError(Exception):
    """Base of every error of this package but those of its corpora."""


class TeacherError(PipelineError):
    """The teacher cannot be had as it was asked for: no such model, weights missing, unsafe or of another shape."""


class BuildError(PipelineError):
    """A build that stopped: a corpus that changed under its cache, nothing usable in it, or a shard that failed."""
