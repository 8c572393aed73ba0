"""The entry `under_way` of checkpoint.json: what a checkpoint within an epoch says of its steps so far."""

from collections.abc import Mapping
from typing import Any

from trainer.losses.terms import COORDINATES, FEATURES, WHOLE

__all__ = ["is_under_way", "totals_from_json", "totals_to_json"]

NORM = "gradient_norm"
LISTED = (COORDINATES, FEATURES, NORM, WHOLE)  # what the numbers of a list are; the last only with a global loss


def totals_to_json(losses: Mapping[str, float], gradient_norm: float) -> list[float] | dict[str, float]:
    """Sums over steps as JSON: a list where the losses are those that a list is about, else an object of names.

    The list is what versions before losses had names wrote: they read it, and checkpoints keep their bytes.
    """
    totals = {**losses, NORM: gradient_norm}
    if set(totals) in (set(LISTED), set(LISTED[:-1])):
        return [totals[name] for name in LISTED if name in totals]
    return {NORM: gradient_norm} | {f"loss_{name}": value for name, value in losses.items()}


def totals_from_json(totals: list[float] | Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Parse losses by name and the gradient norm from an entry that is_under_way; inverse of totals_to_json."""
    if isinstance(totals, Mapping):
        losses = {name.removeprefix("loss_"): float(value) for name, value in totals.items() if name != NORM}
        return losses, float(totals[NORM])
    named = dict(zip(LISTED, map(float, totals), strict=False))
    return {name: value for name, value in named.items() if name != NORM}, named[NORM]


def is_under_way(value: Any) -> bool:
    """Tell whether a header's entry has the expected form: None, or `steps`, `skipped` and `totals`."""
    if value is None:
        return True
    counts, totals = [value.get("steps"), value.get("skipped")], value.get("totals")
    return (
        set(value) == {"steps", "skipped", "totals"}
        and all(type(count) is int and count >= 0 for count in counts)
        and (_is_list(totals) or _is_object(totals))
    )


def _is_list(totals: Any) -> bool:
    return isinstance(totals, list) and [type(total) for total in totals] in ([float] * 3, [float] * 4)


def _is_object(totals: Any) -> bool:
    return (
        isinstance(totals, dict)
        and NORM in totals
        and all(name == NORM or name.startswith("loss_") for name in totals)
        and all(type(total) is float for total in totals.values())
    )
