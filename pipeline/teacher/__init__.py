"""Frozen image models that encode depth views: ``from pipeline.teacher import load_teacher, Teacher``.

Loaded on demand, so that importing the settings of a teacher does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.teacher.tower import Teacher, load_teacher

__all__ = ["Teacher", "load_teacher"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("pipeline.teacher.tower"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
