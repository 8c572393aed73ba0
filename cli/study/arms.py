"""The arms of the studies, each a few settings away from the full method."""

from dataclasses import dataclass

__all__ = ["ARMS", "BASELINE", "SCALING", "TEACHERS", "Arm"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    name      on the command line and in tables
    settings  section.key=value, on top of the study's configuration
    teachers  "none": no teacher is used, so it runs once; "each": with every teacher; "main": with the main one only
    poses     stored of each shape in its cache; an epoch visits one of them, so every arm takes as many steps
    seeds     students trained at most: fewer than the study asks for, where they cost too much
    share     of the study's shapes that it trains on, for as many more epochs: every share takes as many steps
    """

    name: str
    settings: tuple[str, ...]
    teachers: str = "each"
    poses: int = 1
    seeds: int | None = None
    share: float = 1.0


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
    Arm("live", ("trainer.teacher=live",), "main", seeds=1),  # the teacher in every step takes most of an hour
    Arm("poses4", ("trainer.scale=[1.0, 1.0]", "trainer.shift=0.0", "trainer.renormalise=false"), "main", poses=4),
)

SCALING = tuple(Arm(f"share-{share}", (), "main", share=share) for share in (0.1, 0.3, 1.0))
"""The arms of the scaling study: the full method on parts of one cache, which lie within one another."""

TEACHERS = {
    "random": ("teacher.architecture=i2p-vit-tiny-16", "teacher.pretrained=random"),
    "embedded": ("teacher.architecture=i2p-vit-tiny-16", "teacher.pretrained=embedded"),
}
