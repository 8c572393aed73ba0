"""Two arrays become one row of the table; the tolerances, all of them, with their reasons."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

__all__ = [
    "FAILED",
    "MISSING",
    "OK",
    "PAST",
    "TOLERANCES",
    "UNCOMPARED",
    "Row",
    "Tolerance",
    "compare",
    "merged",
    "missing",
    "same",
]

OK = "ok"
PAST = "PAST TOLERANCE"
MISSING = "missing"
FAILED = "FAILED"  # the comparison could not be made
UNCOMPARED = (
    "not compared"  # recorded under a name that this program does not know; the one verdict besides ok that passes
)
_BY_WEIGHT = (OK, UNCOMPARED, MISSING, FAILED, PAST)
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Tolerance:
    """How far a value may be from the recorded one.

    kind   "exact"; "abs": bound on the difference; "rel": bound on the difference over the recorded value
    bound  the largest that is allowed
    """

    kind: Literal["exact", "abs", "rel"]
    bound: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "exact" else f"{self.kind} {self.bound:g}"


EXACT = Tolerance("exact")

# What the recorded folder's README asks for. Its noise is the distance between its float32 run and the same in float64;
# bounds are about ten times that.
TOLERANCES: dict[str, Tolerance] = {
    # indices, counts, names, masks: every decision came out alike in float32 and float64
    "exact": EXACT,
    "projection.img": Tolerance("abs", 1e-5),  # the recorded sums are float32 in the order of the points: 7e-7
    "projection.sigmoid": Tolerance("abs", 2e-6),  # the same before the division by a spread of about 0.225
    "projection.sum": Tolerance("abs", 1e-5),  # the same before the sigmoid, whose slope is at most 1/4
    "backprojection.features": Tolerance("abs", 1e-5),  # 16 products in another order: 5e-7
    "backprojection.saliency": Tolerance("abs", 1e-7),  # the same, values of about 1/197: 5e-9
    "teacher.features": Tolerance("abs", 5e-5),  # 4e-6, in a ViT of any depth
    "teacher.attention": Tolerance("abs", 3e-6),  # 2e-7, values of about 1/197
    "image moments": Tolerance("abs", 1e-5),  # as projection.img
    "saliency": Tolerance("abs", 1e-6),  # teacher.attention, averaged over views
    "encoder": Tolerance("abs", 5e-5),  # 2e-6
    "decoder": Tolerance("abs", 1e-4),  # 4e-6
    "evaluation feature": Tolerance("abs", 1e-4),  # 2e-6
    "position": Tolerance("abs", 1e-5),  # 3e-7, before any block
    "plain decoder": Tolerance("abs", 5e-5),  # 1.4e-6
    "deep block": Tolerance("abs", 1e-4),  # 5e-6 after twelve blocks without a norm
    "plain gradient": Tolerance("abs", 1e-5),  # 3e-7
    "relative training loss of a head": Tolerance("rel", 1e-4),  # of logits normalised over a handful of samples
    "score": Tolerance("abs", 1e-9),  # counts, divided
    "loss": Tolerance("rel", 1e-5),  # 2e-7
    "gradient norm": Tolerance("rel", 3e-3),  # 1e-5, but a maximum may flip between two nearly equal entries
    "gradient noise": Tolerance("abs", 1e-3),  # biases in front of a batch norm: zero but for rounding, 1e-4
    "gradient": Tolerance("abs", 1e-3),  # 2e-5, and flips as above
    "buffer norm": Tolerance("rel", 1e-5),  # means over a batch
    "buffer": Tolerance("abs", 1e-5),
    "parameter norm": Tolerance("rel", 2e-4),  # 4e-6
    "parameter noise": Tolerance("abs", 1e-2),  # AdamW's first step follows the sign of a gradient that is noise
    "logits": Tolerance("abs", 3e-5),  # 1.3e-6
    "training logits": Tolerance("abs", 5e-4),  # 4e-5: the head normalises over a handful of samples
    "training loss of a head": Tolerance("abs", 5e-4),  # of those logits
    "full-size logits": Tolerance("abs", 5e-5),  # 1.5e-6
    "checksum": Tolerance("rel", 1e-9),  # a float64 sum of millions of equal terms in another order
    "learning rate": Tolerance("rel", 1e-13),  # the same formula in float64: 7e-15, the order of two products
}

NOISE_BELOW = 1e-3
"""A parameter whose recorded gradient has a norm up to this has, to the README, a gradient of noise."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    what       what is compared
    values     numbers compared
    absolute   largest difference; None where there is none to speak of (names, missing arrays)
    relative   largest difference over the recorded value. Where the bound is on the difference itself, a value below a
               thousandth of the array's largest counts as that much, or values near zero would be all that shows.
    tolerance  the bound
    verdict    OK, PAST, MISSING, FAILED or UNCOMPARED
    note       what is wrong, in words; "" when nothing is
    """

    what: str
    values: int = 0
    absolute: float | None = None
    relative: float | None = None
    tolerance: Tolerance | None = None
    verdict: str = OK
    note: str = ""

    @property
    def passed(self) -> bool:
        """True unless something is wrong."""
        return self.verdict in (OK, UNCOMPARED)

    def renamed(self, what: str) -> "Row":
        """The same under another name."""
        return replace(self, what=what)


def compare(what: str, ours: Any, recorded: Any, tolerance: str) -> Row:
    """Compare an array with a recorded one.

    ours, recorded  arrays, tensors or numbers of any real type, the same shape; no NaN or infinity on either side.
    tolerance       a name in TOLERANCES.
    """
    bound = TOLERANCES[tolerance]
    a, b = _array(ours), _array(recorded)
    row = Row(what=what, values=b.size, tolerance=bound)
    if a.shape != b.shape:
        return replace(row, verdict=PAST, note=f"shape {_shape(a)}, recorded {_shape(b)}")
    if not b.size:
        return replace(row, verdict=FAILED, note="the recorded array is empty")
    for whose, array in (("our", a), ("recorded", b)):
        broken = int((~np.isfinite(array)).sum())
        if broken:
            return replace(row, verdict=PAST, note=f"{broken} of {array.size} {whose} values are not finite")
    difference, size = np.abs(a - b), np.abs(b)
    past = difference > bound.bound * (size if bound.kind == "rel" else 1.0)
    floor = 0.0 if bound.kind == "rel" else 1e-3 * size.max()
    relative = _ratio(difference, np.maximum(size, floor))
    row = replace(row, absolute=float(difference.max()), relative=float(relative.max()))
    if not past.any():
        return row
    return replace(row, verdict=PAST, note=f"{int(past.sum())} of {b.size} values")


def same(what: str, ours: Sequence[Any], recorded: Sequence[Any]) -> Row:
    """Compare two lists of names, or of anything that is equal or not, in order."""
    row = Row(what=what, values=len(recorded), tolerance=EXACT)
    if list(ours) == list(recorded):
        return row
    extra, absent = ([item for item in one if item not in other] for one, other in ((ours, recorded), (recorded, ours)))
    notes = [f"{len(items)} {kind}: {_some(items)}" for kind, items in (("extra", extra), ("absent", absent)) if items]
    return replace(row, verdict=PAST, note="; ".join(notes) or "the same entries in another order or number")


def missing(what: str, why: str = "not in the folder") -> Row:
    """A row for something that the folder does not hold, or not whole."""
    return Row(what=what, verdict=MISSING, note=why)


def merged(what: str, rows: Iterable[tuple[str, Row]]) -> Row:
    """One row for the same quantity of several things, with the names of those that do not agree.

    rows  (name of the thing, its row), at least one.
    """
    named = list(rows)
    if not named:
        return Row(what=what, verdict=MISSING, note="recorded for nothing")
    worst = max((row.verdict for _, row in named), key=_BY_WEIGHT.index)
    notes = [f"{name}: {row.note}" for name, row in named if row.note]
    return Row(
        what=what,
        values=sum(row.values for _, row in named),
        absolute=_largest(row.absolute for _, row in named),
        relative=_largest(row.relative for _, row in named),
        tolerance=named[0][1].tolerance,
        verdict=worst,
        note="; ".join(notes),
    )


def _array(values: Any) -> np.ndarray:
    """float64, which holds every float32 and every index exactly."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise TypeError(f"an array of {array.dtype} cannot be compared as numbers")
    return array.astype(np.float64)


def _ratio(difference: np.ndarray, size: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / size)  # infinite where something was recorded as nothing


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _shape(array: np.ndarray) -> str:
    return "[" + ", ".join(map(str, array.shape)) + "]"


def _some(items: Sequence[Any]) -> str:
    more = ", ..." if len(items) > _NAMES_SHOWN else ""
    return ", ".join(str(item) for item in items[:_NAMES_SHOWN]) + more
