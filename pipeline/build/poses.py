"""Stored poses: a shape in its canonical pose, and copies under the student's augmentation.

Pose 0 is the canonical cloud. Pose k > 0 is drawn from (shape id, k) alone, so it depends neither on the order of the
work nor on the workers. The poses of a shape are adjacent records in one shard; to the corpus, the plan and the
quarantine it is one shape.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.build.plan import CommittedShard
from pipeline.corpora.base import shape_generator
from pipeline.errors import BuildError
from teacher_cache.format.manifest import Receipt

__all__ = ["SCALE", "SHIFT", "check_ids", "in_pose", "pose_id", "pose_settings", "shapes_of"]

SCALE = (2 / 3, 3 / 2)  # of each axis, and
SHIFT = 0.2  # of each axis, either way: the defaults of trainer.scale and trainer.shift
_NAME_OF_A_POSE = re.compile(r"@pose[0-9]+\Z")


def in_pose(points: np.ndarray, id: str, pose: int) -> np.ndarray:
    """Return the cloud of one pose of shape `id`.

    points  [N, 3] float32, canonical frame.
    ->      [N, 3] float32: `points` for pose 0, else times a factor uniform in SCALE plus an offset uniform in
            -SHIFT..SHIFT, per axis, as `trainer.engine.augmentation.scale_and_shift` computes them. Not normalised
            again.
    """
    if pose == 0:
        return points
    drawn = shape_generator(0, id, f"pose {pose}").random(6).astype(np.float32)
    low, high = np.float32(SCALE[0]), np.float32(SCALE[1])
    moved: np.ndarray = points * (low + (high - low) * drawn[:3]) + np.float32(SHIFT) * (2 * drawn[3:] - 1)
    return moved


def pose_id(id: str, pose: int) -> str:
    """Return the id of a pose's record: the shape's own for pose 0, `<id>@pose<k>` for the others."""
    return f"{id}@pose{pose}" if pose else id


def pose_settings(poses: int) -> dict[str, Any]:
    """Return the recipe's entries about poses; empty for one pose, so that such caches keep their name."""
    return {} if poses == 1 else {"poses": poses, "pose_scale": list(SCALE), "pose_shift": SHIFT}


def check_ids(ids: Sequence[str], poses: int) -> None:
    """Raise BuildError for a shape whose id could be that of another shape's pose."""
    taken = [id for id in ids if _NAME_OF_A_POSE.search(id)] if poses > 1 else []
    if taken:
        raise BuildError(
            f"{len(taken)} shapes have ids with the ending of stored poses, first {taken[0]!r}.\n"
            "  Rename them, or set corpus.poses = 1."
        )


def shapes_of(receipts: Mapping[int, Receipt], poses: int) -> dict[int, CommittedShard]:
    """Return committed shards by the ids of their shapes: those of every `poses`-th record, and the refused."""
    return {
        shard: CommittedShard(receipt.ids[::poses], [refused.id for refused in receipt.quarantined])
        for shard, receipt in receipts.items()
    }
