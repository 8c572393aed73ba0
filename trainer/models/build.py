"""From the section [model] to a student."""

from collections.abc import Mapping

import torch

from trainer.models.config import MaskingConfig, StudentConfig
from trainer.models.hierarchical.student import I2PMAE
from trainer.models.student import Student

__all__ = ["STUDENTS", "new_student"]

STUDENTS: dict[str, type[Student]] = {"hierarchical": I2PMAE}
"""model.architecture -> class; the class of its settings is in trainer.models.config.ARCHITECTURES."""


def new_student(
    model: StudentConfig, masking: MaskingConfig, teacher: Mapping[str, int], *, seed: int, whole: bool = False
) -> Student:
    """Make a student with first weights drawn from `seed`, on the CPU, so that they are the same whatever it runs on.

    teacher  channels and views of the teacher's maps.
    whole    with the head of the global loss, which does not change the other initial weights.

    Raises ValueError for an unknown architecture, and listing what is wrong with the settings.
    """
    student = STUDENTS.get(model.architecture)
    if student is None:
        raise ValueError(f"model.architecture = {model.architecture!r} is none of {', '.join(STUDENTS)}")
    network = student(model, masking, teacher_channels=teacher["channels"], views=teacher["views"], whole=whole)
    network.initialise(torch.Generator().manual_seed(seed))
    return network
