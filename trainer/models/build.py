"""From the section [model] to a student."""

from collections.abc import Mapping
from typing import Any

import torch

from trainer.models.config import MaskingConfig, StudentConfig
from trainer.models.hierarchical.student import I2PMAE
from trainer.models.plain.student import PlainStudent
from trainer.models.student import Further, Student

__all__ = ["STUDENTS", "new_student"]

STUDENTS: dict[str, type[Student]] = {"hierarchical": I2PMAE, "plain": PlainStudent}
"""model.architecture -> class; the class of its settings is in trainer.models.config.ARCHITECTURES."""


def new_student(
    model: StudentConfig, masking: MaskingConfig, teacher: Mapping[str, Any], *, seed: int, whole: bool = False
) -> Student:
    """Make a student with first weights drawn from `seed`, on the CPU, so that they are the same whatever it runs on.

    teacher  channels and views of the teacher's maps; "further": a mapping with the fields of Further for each further
             teacher, if there are any. Their heads do not change the other initial weights.
    whole    with the head of the global loss, which does not change the other initial weights.

    Raises ValueError for an unknown architecture or one that takes a single teacher, and listing what is wrong with
    the settings; KeyError and TypeError for a teacher's sizes.
    """
    student = STUDENTS.get(model.architecture)
    if student is None:
        raise ValueError(f"model.architecture = {model.architecture!r} is none of {', '.join(STUDENTS)}")
    further = [Further(**sizes) for sizes in teacher.get("further", ())]
    if further and not student.several_teachers:
        raise ValueError(
            f"model.architecture = {model.architecture!r} learns from one teacher; {1 + len(further)} given"
        )
    more = {"further": further} if further else {}
    network = student(model, masking, teacher_channels=teacher["channels"], views=teacher["views"], whole=whole, **more)
    network.initialise(torch.Generator().manual_seed(seed))
    return network
