"""Random numbers as a pure function of their purpose.

A record's numbers follow from (seed, epoch, record, purpose) alone, so they depend neither on the other records of the
batch nor on the number of ranks or loader workers.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

__all__ = ["UNIFORM_BITS", "Purpose", "record_uniforms"]


class Purpose(IntEnum):
    """Purposes of random numbers.

    Purposes share no numbers. A value in use is never given to another purpose: runs that were started with it resume
    with it.
    """

    MASK = 1  # which top-level tokens stay visible
    DROP_PATH = 2  # which residual branches are kept
    DROPOUT = 3  # the key of a shape in fine-tuning
    POINTS = 16  # which of the stored points a record shows
    AUGMENTATION = 17  # scale and shift
    SUBSET = 18  # which points of a shape are evaluated
    POSE = 19  # which stored pose of a shape is shown
    ORDER = 20  # which batch of fine-tuning a shape comes in
    ROTATION = 21  # by which angle a cloud is turned in fine-tuning


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
UNIFORM_BITS = 23  # (h + 0.5) / 2^23 then has 24 significant bits: exact in float32, and never 0 or 1


def record_uniforms(
    records: Sequence[int] | np.ndarray, count: int, *, seed: int, epoch: int, purpose: int
) -> np.ndarray:
    """Return `count` uniform numbers for each record.

    records  [B] whole numbers >= 0.
    seed, epoch, purpose  whole numbers >= 0 below 2^64; see `Purpose`.
    ->       [B, count] float32 in (0, 1), both ends excluded; row i depends on records[i] alone.

    Source: splitmix64 (Steele, Lea, Flood 2014) as a hash of the parts and then as a counter-based generator.
    """
    state = np.zeros(len(records), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        # Mixed after each part, so that (1, 2) and (2, 1) or sums that agree do not share a stream.
        for part in (seed, epoch, purpose):
            state = _mix(state + _GOLDEN + np.uint64(part))
        state = _mix(state + _GOLDEN + np.asarray(records, np.uint64))
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(state[:, None] + steps)  # [B, count]
    # The high bits, as an integer below 2^23: it, and with 0.5 added, is exact in float32.
    top = (bits >> np.uint64(64 - UNIFORM_BITS)).astype(np.float32)
    return (top + np.float32(0.5)) / np.float32(1 << UNIFORM_BITS)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
