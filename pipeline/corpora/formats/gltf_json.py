"""Values of a glTF's JSON, each of the type that the specification gives it: a stranger's document may hold anything
anywhere, null, true for 1 and 5126.0 for 5126 included.
"""

import math
from collections.abc import Collection, Sized
from typing import Any

from pipeline.corpora.formats.geometry import Malformed

__all__ = ["flag", "items", "listed", "named", "numbers", "object_of", "shown", "title", "whole", "word"]

MAX_WHOLE = 2**53  # beyond it not every JSON parser keeps whole numbers exact
MAX_NUMBER = 1e300


def shown(value: Any) -> str:
    """Format a value, short and in ASCII, for an error message."""
    return ascii(value)[:40]


def items(owner: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of objects, empty if absent. Raises Malformed for anything else."""
    found = owner.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Malformed(f"its {key} must be a list of objects")
    return found


def listed(owner: dict[str, Any], key: str, what: str) -> list[Any]:
    """Return a list of anything, empty if absent. Raises Malformed for anything else."""
    found = owner.get(key, [])
    if not isinstance(found, list):
        raise Malformed(f"{what} has {key} {shown(found)}; expected a list")
    return found


def object_of(owner: dict[str, Any], key: str, what: str) -> dict[str, Any]:
    """Return an object, empty if absent. Raises Malformed for anything else."""
    found = owner.get(key, {})
    if not isinstance(found, dict):
        raise Malformed(f"{what} has {key} {shown(found)}; expected an object")
    return found


def named(value: Any, among: Sized, what: str, owner: str) -> int:
    """Return the number of one of ``among``. Raises Malformed for anything else."""
    if type(value) is not int or not 0 <= value < len(among):
        raise Malformed(f"{owner} refers to {what} {shown(value)}; there are {len(among)}")
    return value


def whole(owner: dict[str, Any], key: str, what: str, default: int | None = None, *, least: int = 0) -> int:
    """Return a whole number, required if there is no default. Raises Malformed for anything else."""
    value = owner.get(key, default)
    if type(value) is not int or not least <= value < MAX_WHOLE:
        raise Malformed(f"{what}: {key} is {shown(value)}; expected a whole number of at least {least}")
    return value


def word(owner: dict[str, Any], key: str, what: str, among: Collection[str]) -> str:
    """Return one of a few words. Raises Malformed for anything else."""
    value = owner.get(key)
    if not isinstance(value, str) or value not in among:
        raise Malformed(f"{what} is of {key} {shown(value)}; expected {' or '.join(among)}")
    return value


def flag(owner: dict[str, Any], key: str, what: str, default: bool) -> bool:
    """Return true or false. Raises Malformed for anything else."""
    value = owner.get(key, default)
    if not isinstance(value, bool):
        raise Malformed(f"{what} has {key} {shown(value)}; expected true or false")
    return value


def title(owner: dict[str, Any], default: str) -> str:
    """Return the name of an object, or the default. Raises Malformed for a name that is no text."""
    value = owner.get("name", default)
    if not isinstance(value, str):
        raise Malformed(f"{default} has the name {shown(value)}; expected text")
    return value or default


def numbers(owner: dict[str, Any], key: str, what: str, count: int) -> list[float]:
    """So many finite numbers. Raises Malformed for anything else."""
    value = owner.get(key)
    if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
        raise Malformed(f"{what} has {key} {shown(value)}; expected {count} finite numbers")
    return [float(one) for one in value]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER and math.isfinite(value)
