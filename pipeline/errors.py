"""Errors of the offline stage, one class for each case that a caller would handle differently.

Errors of corpora are in `corpora.base`: `CorpusError`, `ShapeError` for a shape that cannot be used, which is data and
is quarantined, and `MachineFault` for faults of the machine; `corpora.faults` tells the two apart.
"""

__all__ = ["BuildError", "PipelineError", "TeacherError", "TooManyRefused"]


class PipelineError(Exception):
    """Base of every error of this package, those of its corpora included."""


class TeacherError(PipelineError):
    """The requested teacher is not available: no such model, weights missing, unsafe or of another shape."""


class BuildError(PipelineError):
    """A build that stopped: a corpus that changed under its cache, nothing usable in it, or a shard that failed."""


class TooManyRefused(BuildError):
    """A completed build that refused a larger share of its corpus than `build.max_refused`.

    path    the cache, which holds the other shapes
    others  shapes in it that the experiment does not use
    """

    def __init__(self, text: str, path: str, others: int = 0) -> None:
        super().__init__(text, path, others)
        self.path = path
        self.others = others

    def __str__(self) -> str:
        return str(self.args[0])
