"""Selection of a table's x, y and z columns: by name, by the user's option, or by a rule that is certain.

Where neither settles it the file is refused, with the option that does: a shifted column is a wrong shape that nothing
later would notice.
"""

import re
from collections.abc import Sequence

import numpy as np

from pipeline.corpora.formats.geometry import Malformed

__all__ = ["REMEDY", "chosen_columns", "named_columns", "part_column", "sure_columns", "whole_parts"]

REMEDY = "name the columns of x, y and z with columns=, by number (columns=2,3,4) or by the names in the header"
COUNTING = 32  # rows from which a column that counts up by one is a row number and no coordinate

_UNIT = re.compile(r"\s*[\[(].*?[\])]\s*$")
_PREFIXES = ("", "p", "pos", "position", "coord", "coordinate", "point", "points", "vertex", "center", "centre")


def _spellings(axis: str, number: int) -> frozenset[str]:
    names = {f"{prefix}{axis}" for prefix in _PREFIXES} | {f"{axis}coord", f"{axis}coordinate", f"{axis}pos"}
    return frozenset(names | {f"points:{number}", f"position:{number}", f"coordinates:{number}"})


_AXES = tuple(_spellings(axis, number) for number, axis in enumerate("xyz"))


def named_columns(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Find x, y and z among a header's names, or None if any is missing or occurs twice.

    ``X``, ``pos_x``, ``x-coord``, ``Points:0`` and ``x [m]`` are read as x.
    """
    plain = [re.sub(r"[_\-. ]", "", _UNIT.sub("", name.strip().lower()[:80])) for name in names]
    found = []
    for spellings in _AXES:
        at = [k for k, name in enumerate(plain) if name in spellings]
        if len(at) != 1:
            return None
        found.append(at[0])
    return found[0], found[1], found[2]


def chosen_columns(columns: Sequence[str], names: Sequence[str] | None, width: int) -> tuple[int, int, int]:
    """Resolve the user's ``columns=``, each a 1-based number or one of the file's ``names``, to positions."""
    if len(columns) != 3:
        raise Malformed(f"columns= names {len(columns)} columns; expected three, for x, y and z")
    found = [_position(column, names, width, "columns") for column in columns]
    if len(set(found)) < 3:
        raise Malformed(f"columns={','.join(columns)} names one column twice")
    return found[0], found[1], found[2]


def part_column(parts: str, names: Sequence[str] | None, width: int) -> int:
    """Resolve the column that ``parts=`` names, by 1-based number or by name, to its position."""
    return _position(parts, names, width, "parts")


def _position(column: str, names: Sequence[str] | None, width: int, option: str) -> int:
    if names is not None and list(names).count(column) == 1:
        return list(names).index(column)
    if column.isascii() and column.isdecimal() and len(column) < 7:
        if not 1 <= int(column) <= width:
            raise Malformed(f"{option}= has column {column}; the file has columns 1 to {width}")
        return int(column) - 1
    held = "no header" if names is None else f"a header of {', '.join(names)[:80]}"
    raise Malformed(f"{option}= has the column {column!r}; the file has {held}")


def sure_columns(first_four: np.ndarray, width: int, whole: Sequence[bool]) -> tuple[tuple[int, int, int], int]:
    """Find x, y and z in a table without names, and the number of leading row-number columns.

    first_four  [n, 3 or 4] float64, the leading columns.
    width       columns of the table.
    whole       for each leading column, whether all of it is whole numbers (as written, where that is known).

    The first three, as everywhere in this field, unless the first looks like no coordinate: a column that counts up by
    one from row to row is a row number where three columns follow it. Raises Malformed where neither is certain.
    """
    first = first_four[:, 0]
    counts = len(first) >= COUNTING and whole[0] and bool((np.diff(first) == 1).all())
    if counts and width >= 4:
        return (1, 2, 3), 1
    if counts:
        raise Malformed(
            f"its first column counts {first[0]:g}, {first[1]:g}, {first[2]:g}, ... like row numbers; {REMEDY}"
        )
    if width >= 4 and whole[0] and not any(whole[1:4]):
        raise Malformed(
            f"its first column holds whole numbers only, unlike the next three; a label or a number? {REMEDY}"
        )
    return (0, 1, 2), 0


def whole_parts(values: np.ndarray, name: str) -> np.ndarray:
    """Convert a float64 column to part labels [n] int64. Raises Malformed unless all are whole and fit in 16 bits."""
    if not (np.isfinite(values).all() and (values == np.floor(values)).all() and np.abs(values).max(initial=0) < 2**15):
        raise Malformed(
            f"column {name!r}, requested as part labels, contains values other than whole numbers below 32768"
        )
    return values.astype(np.int64)
