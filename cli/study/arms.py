"""The arms of the studies, each a few settings away from the full method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ARMS", "BASELINE", "SCALING", "SHARES_BASELINE", "TEACHERS", "Arm", "members_of"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    name      on the command line and in tables
    settings  section.key=value, on top of the study's configuration
    teachers  "none": no teacher is used, so it runs once; "each": with every teacher; "main": with the main one only
    poses     stored of each shape in its cache; an epoch visits one of them, so every arm takes as many steps
    share     of the study's shapes that it trains on, for as many more epochs: every share takes as many steps
    epochs    how many times as many, warm-up included
    masks     of each shape in a step; batches and epochs are that many times smaller, so that it takes as many steps of
              as many samples. A warm-up of less than half an epoch is none
    """

    name: str
    settings: tuple[str, ...]
    teachers: str = "each"
    poses: int = 1
    share: float = 1.0
    epochs: int = 1
    masks: int = 1


BASELINE = "3d-random"
"""The arm without a teacher (Point-M2AE), which the others are compared with."""

ARMS = (
    Arm(BASELINE, ("masking.mode=random", "model.targets=3d", "alignment.weight=0"), "none"),
    Arm("3d-saliency", ("model.targets=3d", "alignment.weight=0")),
    Arm("2d-random", ("masking.mode=random", "alignment.weight=0")),
    Arm("global-random", ("masking.mode=random", "model.targets=3d")),
    Arm("2d-global-random", ("masking.mode=random",)),
    Arm("2d-saliency", ("alignment.weight=0",)),
    Arm("full", ()),
    Arm("full-raw", ("masking.saliency=raw", "masking.temperature=1.0"), "main"),
    Arm("full-sharp", ("masking.temperature=0.5",), "main"),
    Arm("live", ("trainer.teacher=live",), "main"),
    Arm("align-views", ("alignment.contrast=views",), "main"),
    Arm("align-sample", ("alignment.negatives=640",), "main"),
    Arm("align-sharp", ("alignment.temperature=0.05",), "main"),
    Arm("align-soft", ("alignment.temperature=0.2",), "main"),
    Arm("full-long", (), "main", epochs=7),  # about as much time as `live` takes
    Arm("poses4", ("trainer.scale=[1.0, 1.0]", "trainer.shift=0.0", "trainer.renormalise=false"), "main", poses=4),
    Arm("masks4", (), "main", masks=4),
    Arm("full-cold", ("trainer.warmup_epochs=0",), "main"),  # what `masks4` is to be compared with
)

SCALING = tuple(Arm(f"share-{share}", (), "main", share=share) for share in (0.1, 0.3, 1.0))
"""The arms of the scaling study: the full method on parts of one cache, which lie within one another."""

SHARES_BASELINE = SCALING[0].name
"""The arm that the others of the scaling study are compared with."""

TEACHERS = {
    "random": ("teacher.architecture=i2p-vit-tiny-16", "teacher.pretrained=random"),
    "embedded": ("teacher.architecture=i2p-vit-tiny-16", "teacher.pretrained=embedded"),
}
"""Settings of each teacher: section.key=value. Without a "=", the first is a combination of others: A+B."""


def members_of(name: str, teachers: Mapping[str, Sequence[str]]) -> tuple[list[str], tuple[str, ...]]:
    """Return the teachers that a name stands for, the first one's cache first, and settings of runs with all of them.

    Raises ValueError for a combination of teachers that are none, or combinations themselves.
    """
    settings = teachers[name]
    if "=" in settings[0]:
        return [name], ()
    members = settings[0].split("+")
    for member in members:
        if member not in teachers or "=" not in teachers[member][0]:
            raise ValueError(f"--teacher {name}: {member!r} is no teacher of its own; teachers: {', '.join(teachers)}")
    if len(set(members)) < max(2, len(members)):
        raise ValueError(f"--teacher {name}={settings[0]}: expected two teachers or more, each once")
    return members, tuple(settings[1:])
