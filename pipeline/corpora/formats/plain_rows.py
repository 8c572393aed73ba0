"""Fast reading of purely numeric tables by ``numpy.loadtxt``, which covers nearly all text clouds.

The careful readers parse every line in Python, which takes ten times as long. The result here equals theirs bit for
bit; anything else gives None, and is left to them to read or refuse.
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["PlainRows", "plain_rows"]

_NUMBERS = b"0123456789+-.eE" + b"naNA"  # the latter for NaN, which organised clouds have
_LINE_ENDS = b"\r\n"


class PlainRows(NamedTuple):
    """Lines with equally many numbers each.

    values     [n, width] float64, a row for each line that holds any.
    separator  what stands between numbers: None for blanks and tabs, or a comma or semicolon without blanks.
    text       what they were read from, ASCII.
    """

    values: np.ndarray
    separator: str | None
    text: str

    @property
    def marked(self) -> bool:
        """True when any number is written with a decimal point or an exponent; NaN is written with neither."""
        return any(mark in self.text for mark in ".eE")

    def lines(self) -> Iterator[str]:
        """Yield the lines that hold numbers, as written."""
        return (line for line in self.text.splitlines() if line.strip())


def plain_rows(body: bytes) -> PlainRows | None:
    """Parse the numbers of a text; None unless it is a plain table.

    Every word must be a number in plain ASCII, and every line must have as many as the first, with one kind of
    separator.
    """
    others = body.translate(None, _NUMBERS + _LINE_ENDS + b" \t")
    separator = chr(others[0]) if others else None
    if separator is not None and (separator not in ",;" or others.count(others[0]) < len(others)):
        return None
    if (separator is not None and (b" " in body or b"\t" in body)) or not body or body.isspace():
        return None
    text = body.decode("ascii")
    try:
        values = np.loadtxt(io.StringIO(text, newline=""), ndmin=2, comments=None, delimiter=separator)
    except ValueError:
        return None
    return PlainRows(values, separator, text)
