"""The live teacher of an experiment."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.experiment.sections import Experiment

__all__ = ["live_teacher"]


def live_teacher(experiment: "Experiment", cache: Any) -> Any:
    """Load the live teacher if the experiment asks for one, in the channels of its opened cache; else None."""
    if experiment.trainer.teacher == "cached":
        return None
    from pipeline.teacher.live import LiveTeacher
    from pipeline.teacher.tower import load_teacher

    return LiveTeacher(experiment.projection, load_teacher(experiment.teacher), cache.basis)
